"""An instance from start to end where systemd is not PID 1: supervisor, rolemesh-llama, llama-server."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rolemesh.address import UpstreamAddress
from rolemesh.agent.child_supervisor import ChildSupervisor, rolemesh_llama_argv
from rolemesh.agent.child_unit import Limits
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.errors import UnitFailed, UpstreamError
from rolemesh.names import InstanceName
from rolemesh.relay.fetch import fetch
from tests.fakes.node_config import write_node_config
from tests.lab.poll import eventually
from tests.lab.processes import is_running, run_to_end

CPU0 = InstanceName("cpu0")
SAYS = "Hello from tiny-a . one two three four five six seven eight ."


class Node:
    """One supervisor with one instance, and what its model says."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self._folder = folder
        self.seen: list[UnitStatus] = []
        self.control = ChildSupervisor(
            directory=folder,
            argv_of=lambda instance: rolemesh_llama_argv(
                instance,
                parameters=folder / "parameters" / f"{instance}.json",
                config_args=(f"--config={folder / 'node.yaml'}",),
            ),
            limits=Limits(**limits),
        )
        self.control.subscribe(self.seen.append)

    @property
    def status(self) -> UnitStatus:
        return self.control.statuses()[CPU0]

    def server_pid(self) -> int:
        main_pid = self.status.main_pid
        return int(Path(f"/proc/{main_pid}/task/{main_pid}/children").read_text())

    async def answer(self) -> str:
        body = json.dumps({"prompt": "a", "max_tokens": 40}).encode()
        address = UpstreamAddress.unix(str(self._folder / CPU0 / "http.sock"))
        try:
            reply = await fetch(address, "POST", "/v1/completions", body=body, timeout_s=20)
        except UpstreamError:
            return ""
        return (
            str(json.loads(reply.body)["choices"][0]["text"]).strip() if reply.status == 200 else ""
        )

    async def restarted(self, times: int) -> None:
        def active_again() -> bool:
            return self.status.restarts == times and self.status.active is ActiveState.ACTIVE

        await eventually(active_again, what="restarted and ready", deadline_s=30)


@contextlib.asynccontextmanager
async def running(folder: Path, program: Path, model: Path, **limits: Any) -> AsyncIterator[Node]:
    write_node_config(
        folder, program=program, models={"coder": {"path": model}}, runs={CPU0: "coder"}
    )
    node = Node(folder, **limits)
    async with node.control:
        await node.control.start(CPU0)
        yield node


async def test_an_instance_is_started_asked_and_stopped(
    short_path: Path, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    async with running(short_path, llama_server, make_model("tiny-a")) as node:
        assert await node.answer() == SAYS
        pids = (node.status.main_pid, node.server_pid())
        await node.control.stop(CPU0)
        assert [pid for pid in pids if pid and is_running(pid)] == []
        assert (node.status.active, node.status.result) == (ActiveState.INACTIVE, "success")


async def test_a_killed_llama_server_is_ready_again(
    short_path: Path, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    async with running(short_path, llama_server, make_model("tiny-a")) as node:
        for times in (1, 2):
            os.kill(node.server_pid(), signal.SIGKILL)
            await node.restarted(times)
            assert await node.answer() == SAYS
        texts = [status.status_text for status in node.seen]
        assert any(text.startswith("llama-server was killed by SIGKILL") for text in texts)


async def test_a_killed_rolemesh_llama_is_ready_again_and_never_overlaps(
    short_path: Path, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    async with running(short_path, llama_server, make_model("tiny-a")) as node:
        main_pid, server_pid = node.status.main_pid, node.server_pid()
        assert main_pid is not None
        os.kill(main_pid, signal.SIGKILL)
        await node.restarted(1)
        assert not is_running(server_pid)
        assert await node.answer() == SAYS


async def test_a_silent_llama_server_is_restarted_within_the_watchdogs_time(
    short_path: Path, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    model = make_model("tiny-a")
    async with running(short_path, llama_server, model, watchdog_s=2) as node:
        pid = node.server_pid()
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        await node.restarted(1)
        assert time.monotonic() - begun < 2 + 5
        assert "watchdog" in {status.result for status in node.seen}
        assert not is_running(pid)
        assert await node.answer() == SAYS


async def test_a_model_that_is_missing_fails_the_start_for_good(
    short_path: Path, llama_server: Path
) -> None:
    absent = short_path / "absent.gguf"
    with pytest.raises(UnitFailed) as caught:
        async with running(short_path, llama_server, absent):
            pytest.fail("started")
    assert caught.value.result == "exit-code"
    assert caught.value.status_text.endswith(f"models.coder.path: {absent} does not exist")


AGENT = """
import asyncio, os, signal, sys
from pathlib import Path
from rolemesh.agent.child_supervisor import ChildSupervisor, rolemesh_llama_argv
async def main():
    folder = Path(sys.argv[1])
    def argv_of(instance):
        config = (f"--config={folder / 'node.yaml'}",)
        return rolemesh_llama_argv(instance, parameters=folder / "absent", config_args=config)
    async with ChildSupervisor(directory=folder, argv_of=argv_of) as control:
        await control.start("cpu0")
        main_pid = control.statuses()["cpu0"].main_pid
        server_pid = int(Path(f"/proc/{main_pid}/task/{main_pid}/children").read_text())
        print(main_pid, server_pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_a_killed_agent_leaves_no_process_behind(
    short_path: Path, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    models = {"coder": {"path": make_model("tiny-a")}}
    write_node_config(short_path, program=llama_server, models=models, runs={CPU0: "coder"})
    finished = await run_to_end([sys.executable, "-c", AGENT, short_path])
    assert finished.status == -9, finished.stderr
    pids = [int(pid) for pid in finished.stdout.split()]
    assert len(pids) == 2
    await eventually(lambda: not any(map(is_running, pids)), what="all are gone", deadline_s=15)
