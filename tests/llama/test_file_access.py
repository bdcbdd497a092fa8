"""Why a file cannot be used, said with what helps."""

import os
import pwd
from pathlib import Path

import pytest

from rolemesh.llama.file_access import (
    NotRegular,
    explain_absence,
    explain_refusal,
    open_regular,
    user_name,
)

NOBODY = 65534
HOME_REMEDY = (
    "; services do not see /home: move it (to /var/lib/rolemesh/models), or run "
    "`systemctl edit rolemesh-llama@.service` and add a line [Service] and a line "
    "ProtectHome=read-only"
)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    assert explain_absence(path, in_unit=True).startswith(f"{path} does not exist")


def test_a_missing_directory_may_be_a_missing_mount(tmp_path: Path) -> None:
    path = tmp_path / "mnt" / "disk" / "x.gguf"
    expected = f"{path} does not exist: there is no {tmp_path}/mnt (is it mounted?)"
    assert explain_absence(path, in_unit=False) == expected


@pytest.mark.parametrize(("in_unit", "remedy"), [(True, HOME_REMEDY), (False, "")])
def test_a_home_directory_is_hidden_only_from_services(*, in_unit: bool, remedy: str) -> None:
    path = Path("/home/absent-person/x.gguf")
    explanation = explain_absence(path, in_unit=in_unit)
    assert explanation.endswith("(is it mounted?)" + remedy)


def test_tmp_is_another_one_for_services() -> None:
    assert explain_absence(Path("/tmp/absent.gguf"), in_unit=True).endswith("PrivateTmp=no")


def test_a_refusal_names_the_user(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    user = pwd.getpwuid(os.geteuid()).pw_name
    expected = f"{path} may not be read by user {user}; change its owner or mode"
    assert explain_refusal(path, in_unit=False) == expected
    assert explain_refusal(Path("/home/a/x.gguf"), in_unit=True).endswith(HOME_REMEDY)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "is a directory"), (tmp_path / "pipe", "is not a regular file")):
        with pytest.raises(NotRegular) as caught:
            open_regular(path)
        assert caught.value.strerror == kind


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_refusal_names_the_directory_that_is_closed(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        explanation = explain_refusal(closed / "x.gguf", in_unit=False)
        user = user_name()
    finally:
        os.seteuid(0)
    assert f" may not be read by user {user}: " in explanation
    assert " is closed to it" in explanation


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert user_name() == "54321"
