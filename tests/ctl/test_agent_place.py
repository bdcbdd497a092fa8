from pathlib import Path

import pytest

from rolemesh.ctl.agent_place import agent_place, other_directories
from rolemesh.ctl.outcomes import BadUsage


def test_the_first_agent_reads_all_directories() -> None:
    place = agent_place(None, None, {})
    assert place.directory == Path("/etc/rolemesh/node.d")
    assert place.key_file == Path("/etc/rolemesh/node.key")
    assert place.unit == "rolemesh-node-agent.service"
    assert place.sockets == (Path("/run/rolemesh/node/control.sock"),)
    assert place.source.directories[-1] == place.directory
    assert place.source.config_dir is None


def test_a_named_agent_has_a_directory_alone() -> None:
    place = agent_place("left", None, {})
    assert place.directory == place.source.config_dir == Path("/etc/rolemesh/node-left.d")
    assert place.key_file == Path("/etc/rolemesh/node-left.key")
    assert place.unit == "rolemesh-node-agent@left.service"
    assert place.sockets == (Path("/run/rolemesh/node-left/control.sock"),)


def test_an_agent_of_a_user_has_no_unit(tmp_path: Path) -> None:
    place = agent_place(None, tmp_path / "conf.d", {"XDG_RUNTIME_DIR": "/run/user/1"})
    assert place.source.config_dir == tmp_path / "conf.d"
    assert place.sockets == (Path("/run/user/1/rolemesh/node/control.sock"),)
    assert (place.unit, place.is_running()) == ("", False)


@pytest.mark.parametrize("name", ["", "Left", "../x", "a b", "-x", "x" * 33])
def test_a_name_that_is_none_is_a_mistake(name: str) -> None:
    with pytest.raises(BadUsage, match="is not an agent's name"):
        agent_place(name, None, {})


def test_the_other_agents_of_a_host_are_found(tmp_path: Path) -> None:
    for name in ("node.d", "node-left.d", "node-right.d", "gateway.d"):
        (tmp_path / name).mkdir()
    place = agent_place(None, tmp_path / "node-left.d", {})
    assert other_directories(place) == (tmp_path / "node-right.d", tmp_path / "node.d")
