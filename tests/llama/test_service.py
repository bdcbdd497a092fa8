"""What rolemesh-llama does before it has an event loop: little, and it can be stopped."""

import fcntl
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fakes.node_config import write_node_config
from tests.lab.notify import NotifySocket
from tests.lab.poll import eventually
from tests.lab.processes import Program

LATE = ("aiohttp", "asyncio", "concurrent.futures", "httptools", "jsonschema", "msgspec", "ssl")


def test_little_is_loaded_before_the_llama_server_is_started() -> None:
    code = f"import sys, rolemesh.llama.main; print(*sorted({set(LATE)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


async def test_it_can_be_told_to_stop_while_it_waits_for_the_lock(
    short_path: Path, notify_socket: NotifySocket, start_program: Callable[..., Program]
) -> None:
    model = short_path / "m.gguf"
    model.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    config = write_node_config(
        short_path, program="/bin/true", models={"m": {"path": model}}, runs={"cpu0": "m"}
    )
    (short_path / "run").mkdir()
    with (short_path / "run" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        program = start_program(
            [sys.executable, "-m", "rolemesh.llama", "cpu0", "--config", str(config)],
            {"RUNTIME_DIRECTORY": str(short_path / "run"), **notify_socket.environment},
        )
        waits = "waiting for somebody, to end"
        await eventually(lambda: waits in notify_socket.values("STATUS"), what="it waits")
        program.send(signal.SIGTERM)
        assert await program.end() == 0
