import errno
from pathlib import Path

import pytest

from rolemesh.ctl.agent_place import AgentPlace
from rolemesh.ctl.changes import guarded, loaded_with, loader, put_file
from rolemesh.ctl.outcomes import BadConfig, Failed


def test_a_file_that_somebody_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    place = AgentPlace(directory=tmp_path, sockets=())
    file = tmp_path / "60-x.yaml"
    file.write_text("# mine\n")
    with pytest.raises(Failed, match="exists already"):
        put_file(place, file, "# ours\n", old=None)
    assert file.read_text() == "# mine\n"
    put_file(place, file, "# ours\n", old="# mine\n")
    assert file.read_text() == "# ours\n"


class Impatient(AgentPlace):
    """An agent's place whose user does not wait for the agent (Ctrl-C)."""

    def take_up(self, *, restarts: bool) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize("old", [None, "# old\n"])
def test_who_does_not_wait_for_the_agent_finds_the_files_as_they_were(
    tmp_path: Path, old: str | None
) -> None:
    file = tmp_path / "60-x.yaml"
    if old is not None:
        file.write_text(old)
    with pytest.raises(KeyboardInterrupt):
        put_file(Impatient(directory=tmp_path, sockets=()), file, "# new\n", old=old)
    assert (file.read_text() if file.exists() else None) == old


def test_an_agent_that_rests_is_judged_without_its_credentials(tmp_path: Path) -> None:
    (tmp_path / "10-a.yaml").write_text(
        "gateways: [{url: 'http://gw:8000', api_key_file: a-credential}]\n"
    )
    place = AgentPlace(directory=tmp_path, unit="rolemesh-none.service", name="none", sockets=())
    text = "policy: {allow_cpu: false}\n"
    found = loaded_with(place.source, tmp_path / "60-x.yaml", text, loader(place))
    assert not found.settings.policy.allow_cpu
    own = AgentPlace(directory=tmp_path, sockets=())
    with pytest.raises(BadConfig):
        loaded_with(own.source, tmp_path / "60-x.yaml", text, loader(own))


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EDQUOT, "make room there"),
        (errno.EROFS, "what is there is read-only"),
        (errno.EACCES, "use sudo, or --directory"),
    ],
)
def test_what_cannot_be_written_is_told_with_what_helps(number: int, remedy: str) -> None:
    def fail() -> None:
        raise OSError(number, "no")

    with pytest.raises(Failed, match=f"/x cannot be written: no; {remedy}"):
        guarded(Path("/x"), fail)
