"""A llama-server that the kernel kills for want of memory is told from one that somebody killed."""

import contextlib
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.errors import UpstreamError
from rolemesh.relay.fetch import fetch
from tests.fakes.node_config import write_node_config
from tests.lab.notify import NotifySocket
from tests.lab.poll import eventually_sync
from tests.lab.processes import Program

FAKE = Path(__file__).parents[1] / "fakes" / "llama_program.py"
HIERARCHY = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 256 << 20


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with little memory."""
    group = HIERARCHY / f"rolemesh-test-{secrets.token_hex(4)}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as err:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group with a memory limit (v1) can be made here: {err}")
    yield group
    procs = group / "cgroup.procs"
    eventually_sync(lambda: not procs.read_text(), what="the group is empty")
    group.rmdir()


async def test_the_kernel_is_named_as_who_ended_it(
    short_path: Path,
    start_program: Callable[..., Program],
    notify_socket: NotifySocket,
    small_group: Path,
) -> None:
    model = short_path / "m.gguf"
    model.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    config = write_node_config(
        short_path,
        program=FAKE,
        models={"coder": {"path": model, "args": ["--fake", "greedy"]}},
        runs={"cpu0": "coder"},
    )
    program = start_program(
        [
            *("sh", "-c", f'echo $$ > {small_group}/cgroup.procs && exec "$@"', "sh"),
            *(sys.executable, "-m", "rolemesh.llama", "cpu0", "--config", str(config)),
            *("--parameters", str(short_path / "absent.json")),
        ],
        {"RUNTIME_DIRECTORY": str(short_path / "run"), **notify_socket.environment},
    )
    await notify_socket.ready()
    address = UpstreamAddress.unix(str(short_path / "run" / "http.sock"))
    with contextlib.suppress(UpstreamError):
        await fetch(address, "POST", "/v1/chat/completions", body=b"{}", timeout_s=60)
    assert await program.end() == 137
    assert notify_socket.values("STATUS")[-1] == (
        "llama-server was killed by SIGKILL: out of memory: the kernel ended it (OOM killer), "
        "because the machine, or a limit such as MemoryMax=, has no room for it"
    )
