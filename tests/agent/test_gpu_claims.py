"""Each GPU has one owner among the agents of a host."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rolemesh.agent.gpu_claims import GpuClaims, claims_directory
from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.names import NodeId

HOLD = """
import sys
from pathlib import Path
from rolemesh.agent.gpu_claims import GpuClaims
claims = GpuClaims(Path(sys.argv[1]), node_id="other", config="--config-dir=/etc/node-b.d")
claims.claim(sys.argv[2:])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Return another agent, which has GPU-a and cpu0."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "GPU-a", "cpu0"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def claims_in(directory: Path, node_id: str = "box") -> GpuClaims:
    return GpuClaims(directory, node_id=NodeId(node_id))


def test_what_nobody_has_can_be_claimed_once(tmp_path: Path) -> None:
    first, second = claims_in(tmp_path), claims_in(tmp_path, "second")
    assert first.claim(["GPU-a", "GPU-b"]) == {}
    assert first.claim(["GPU-a", "GPU-b"]) == {}
    refused = second.claim(["GPU-b", "GPU-c"])
    assert refused == {"GPU-b": f"the agent of node box (pid {os.getpid()})"}
    assert first.claim(["GPU-a", "GPU-b", "GPU-c"]).keys() == {"GPU-c"}


def test_the_owner_is_named_with_its_configuration(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    owner = f"the agent of node other (pid {other.pid}, --config-dir=/etc/node-b.d)"
    assert claims_in(tmp_path).claim(["GPU-a", "GPU-b", "cpu0"]) == {"GPU-a": owner, "cpu0": owner}


def test_the_claims_of_an_agent_end_with_it(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.communicate()
    assert claims_in(tmp_path).claim(["GPU-a", "cpu0"]) == {}


def test_what_is_not_wanted_any_more_is_free(tmp_path: Path) -> None:
    first, second = claims_in(tmp_path), claims_in(tmp_path)
    first.claim(["GPU-a", "GPU-b"])
    first.claim(["GPU-a"])
    assert second.claim(["GPU-a", "GPU-b"]).keys() == {"GPU-a"}
    first.close()
    assert second.claim(["GPU-a", "GPU-b"]) == {}
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_may_be_kept_until_it_is_known_whether_it_is_wanted(tmp_path: Path) -> None:
    first, second = claims_in(tmp_path), claims_in(tmp_path)
    first.claim(["GPU-a", "cpu0"])
    assert first.claim(["GPU-b"], keep=["cpu0", "cpu1"]) == {}
    assert second.claim(["GPU-a", "cpu0", "cpu1"]).keys() == {"cpu0"}


def test_any_uuid_can_be_claimed(tmp_path: Path) -> None:
    slices = ["MIG-GPU-5d1c2a30/7/0", "RPC0[192.0.2.7:50052]", ".."]
    assert claims_in(tmp_path).claim(slices) == {}
    assert claims_in(tmp_path).claim(slices).keys() == set(slices)


@pytest.mark.parametrize("record", ["", "{", "[]", '{"pid": 7}', "\0"])
def test_an_owner_that_does_not_say_who_it_is_is_one_too(tmp_path: Path, record: str) -> None:
    first = claims_in(tmp_path)
    first.claim(["GPU-a"])
    (tmp_path / "GPU-a.lock").write_text(record)
    assert claims_in(tmp_path).claim(["GPU-a"]) == {"GPU-a": "another agent"}


def test_where_nothing_can_be_locked_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    claims = claims_in(tmp_path / "file" / "owners")
    assert claims.claim(["GPU-a"]) == {}
    assert claims.problem.startswith("cannot claim GPUs in ")
    (tmp_path / "file").unlink()
    assert claims.claim(["GPU-a"]) == {}
    assert claims.problem == ""
    assert claims_in(tmp_path / "file" / "owners").claim(["GPU-a"]).keys() == {"GPU-a"}


def test_agents_that_may_use_the_same_gpus_share_a_directory(tmp_path: Path) -> None:
    systemd = claims_directory(InstanceFiles.of_systemd(), {"XDG_RUNTIME_DIR": "/run/user/7"})
    assert systemd == Path("/run/rolemesh/llama/owners")
    files = InstanceFiles.below(tmp_path)
    users = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert claims_directory(files, users) == Path("/run/user/7/rolemesh-gpus")
    assert claims_directory(files, {}).name == f"rolemesh-gpus-{os.geteuid()}"


def test_another_process_of_the_same_agent_goes_on_with_its_locks(tmp_path: Path) -> None:
    old = claims_in(tmp_path)
    old.claim(["GPU-a"])
    shared = {name: os.dup(fd) for name, fd in old.held.items()}
    new = GpuClaims(tmp_path, node_id=NodeId("box"), inherited=shared)
    assert new.claim(["GPU-a"]) == {}
    old.hand_over()
    old.close()
    assert "the agent of node box" in claims_in(tmp_path, "second").claim(["GPU-a"])["GPU-a"]
    new.close()
    assert claims_in(tmp_path, "second").claim(["GPU-a"]) == {}
