"""A llama-server that answers /health but does not go on: rolemesh-llama finds out and says why."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.agent.child_supervisor import ChildSupervisor, rolemesh_llama_argv
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.errors import UpstreamError
from rolemesh.names import InstanceName
from rolemesh.relay.fetch import FetchReply, fetch
from rolemesh.runtime.tasks import TaskScope
from tests.fakes.node_config import write_node_config
from tests.lab import one_thread
from tests.lab.notify import NotifySocket
from tests.lab.poll import eventually
from tests.lab.processes import Program

CPU0 = InstanceName("cpu0")
FAKE = Path(__file__).parents[1] / "fakes" / "llama_program.py"


async def ask(address: UpstreamAddress, path: str, **fields: Any) -> FetchReply | None:
    """Ask for something; None: the connection ended without an answer."""
    body = json.dumps(fields).encode()
    kind = (("Content-Type", "application/json"),)
    try:
        return await fetch(address, "POST", path, body=body, fields=kind, timeout_s=60)
    except UpstreamError:
        return None


class Instance:
    """rolemesh-llama with a fake llama-server, and whoever asks that one something."""

    def __init__(
        self, folder: Path, start_program: Callable[..., Program], notified: NotifySocket
    ) -> None:
        self._folder = folder
        self._start_program = start_program
        self.notified = notified
        self.address = UpstreamAddress.unix(str(folder / "run" / "http.sock"))

    async def start(self, *args: str, wedge_after_s: float) -> Program:
        """Start the fake, with batches of 8 tokens, and return once it is ready."""
        model = self._folder / "m.gguf"
        model.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
        return await self.start_real(FAKE, model, "-b", "8", *args, wedge_after_s=wedge_after_s)

    async def start_real(
        self, llama_server: Path, model: Path, *args: str, wedge_after_s: float, **fields: Any
    ) -> Program:
        """Start a llama-server, and return once it is ready."""
        config = write_node_config(
            self._folder,
            program=llama_server,
            models={"coder": {"path": model, "args": args, **fields}},
            runs={"cpu0": "coder"},
            policy={"wedge_after_s": wedge_after_s},
        )
        program = self._start_program(
            [
                *(sys.executable, "-m", "rolemesh.llama", "cpu0", "--config", str(config)),
                *("--parameters", str(self._folder / "absent.json")),
            ],
            {
                "RUNTIME_DIRECTORY": str(self._folder / "run"),
                "WATCHDOG_USEC": "1000000",
                **self.notified.environment,
            },
        )
        await self.notified.ready()
        return program

    async def chat(self) -> FetchReply | None:
        """Ask something; None: the connection ended without an answer."""
        return await self.post("/v1/chat/completions")

    async def post(self, path: str, **fields: Any) -> FetchReply | None:
        """Ask for something at a path."""
        return await ask(self.address, path, **fields)


@pytest.fixture
def instance(
    short_path: Path, start_program: Callable[..., Program], notify_socket: NotifySocket
) -> Instance:
    return Instance(short_path, start_program, notify_socket)


async def test_a_wedged_one_is_reported_to_the_watchdog_with_the_reason(instance: Instance) -> None:
    program = await instance.start("--fake", "wedged", wedge_after_s=1)
    assert await asyncio.gather(
        instance.chat(), instance.notified.field("WATCHDOG", "trigger", deadline_s=30)
    )
    reason = instance.notified.values("STATUS")[-1]
    assert "is wedged: busy for" in reason
    assert "slot 0 (task 1), 0 prompt tokens done, 0 tokens generated" in reason
    (line,) = (line for line in program.lines() if " CRITICAL " in line)
    assert line.endswith(reason)
    # Nobody has killed it, as a service manager would have: it ends by itself, to be restarted.
    assert await program.end() == 1


async def test_a_slow_prompt_is_waited_for_however_often_nothing_moves(instance: Instance) -> None:
    """Eight batches of 0.25 s: nothing moves for twice as long as an instance may be still."""
    batches = ("--fake-batch-s", "0.25", "-b", "2048")
    await instance.start("--fake", "slow", *batches, wedge_after_s=0.1)
    reply = await instance.chat()
    assert reply is not None
    assert reply.status == 200
    assert "trigger" not in instance.notified.values("WATCHDOG")


async def test_one_that_does_not_show_its_slots_is_left_alone_and_that_is_said(
    instance: Instance,
) -> None:
    program = await instance.start("--fake", "untelling", wedge_after_s=0.4)
    async with TaskScope() as scope:
        _ = scope.start(instance.chat(), name="chat")
        await program.line(r"a wedged llama-server cannot be told from a busy one: .*status 501")
        pings = len(instance.notified.values("WATCHDOG"))
        await eventually(
            lambda: len(instance.notified.values("WATCHDOG")) > pings + 3, what="alive"
        )
    assert "trigger" not in instance.notified.values("WATCHDOG")


async def test_a_wedged_one_is_started_anew_by_the_supervisor_and_the_reason_is_seen(
    short_path: Path,
) -> None:
    model = short_path / "m.gguf"
    model.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    models = {"coder": {"path": model, "args": ["-b", "8", "--fake", "wedged"]}}
    policy = {"wedge_after_s": 0.4}
    config = write_node_config(
        short_path, program=FAKE, models=models, runs={CPU0: "coder"}, policy=policy
    )
    seen: list[UnitStatus] = []

    def argv(instance: InstanceName) -> tuple[str, ...]:
        absent = short_path / "absent.json"
        return rolemesh_llama_argv(instance, parameters=absent, config_args=(f"--config={config}",))

    async with ChildSupervisor(directory=short_path, argv_of=argv) as control, TaskScope() as scope:
        control.subscribe(seen.append)
        await control.start(CPU0)
        address = UpstreamAddress.unix(str(short_path / CPU0 / "http.sock"))
        _ = scope.start(ask(address, "/v1/chat/completions"), name="chat")
        await eventually(lambda: control.statuses()[CPU0].restarts == 1, what="restarted")
        await eventually(
            lambda: control.statuses()[CPU0].active is ActiveState.ACTIVE, what="ready again"
        )
    (reason,) = {each.status_text for each in seen if each.result == "watchdog"}
    assert "is wedged: busy for" in reason


# --- a real llama-server --------------------------------------------------------------------


async def test_a_real_one_whose_engine_stands_still_is_found_wedged(
    instance: Instance, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    """Its other threads go on answering /health."""
    model = make_model("endless", loop=True, context=1 << 17)
    program = await instance.start_real(llama_server, model, "-b", "32", wedge_after_s=1)
    (server_pid,) = (pid for pid in program.processes() if pid != program.pid)
    async with TaskScope() as scope:
        _ = scope.start(instance.post("/v1/completions", prompt="a", max_tokens=100_000), name="a")
        await program.line(r"task [1-9]\d* \| processing task")
        with one_thread.stopped(server_pid):
            pings = len(instance.notified.values("WATCHDOG"))
            await instance.notified.field("WATCHDOG", "trigger", deadline_s=30)
        assert await program.end() == 1
    assert len(instance.notified.values("WATCHDOG")) > pings + 1  # it was in sound health
    assert "is wedged: busy for" in instance.notified.values("STATUS")[-1]


async def test_a_real_one_that_reads_a_long_prompt_is_not_taken_for_wedged(
    instance: Instance, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    """Four batches, each of which takes longer than anything may stand still."""
    model = make_model("slow-reader", big_mib=64)
    program = await instance.start_real(
        llama_server, model, "-b", "1024", "-t", "1", wedge_after_s=0.1, context_size=4096
    )
    reply = await instance.post("/v1/completions", prompt="the " * 3800, max_tokens=1)
    assert "trigger" not in instance.notified.values("WATCHDOG"), instance.notified.values("STATUS")
    assert reply is not None
    assert reply.status == 200
    assert program.status is None
