"""Units as children: real processes, real notifications, real signals."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rolemesh.agent.child_events import Notified
from rolemesh.agent.child_supervisor import (
    ChildSupervisor,
    read_notification,
    rolemesh_llama_argv,
)
from rolemesh.agent.child_unit import Limits
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.errors import StartError, UnitFailed, UnitStuck
from rolemesh.names import InstanceName
from tests.lab import freezer
from tests.lab.poll import eventually
from tests.lab.processes import environment_of, is_running, run_to_end

PROGRAM = Path(__file__).parents[1] / "fakes" / "unit_program.py"
GPU0, GPU1 = InstanceName("gpu0"), InstanceName("gpu1")


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


class Stage:
    """A supervisor whose units do what the test says; `seen` are all status changes."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.folder = folder
        self.does: dict[InstanceName, tuple[str, ...]] = {}
        self.seen: list[UnitStatus] = []
        self.control = ChildSupervisor(
            directory=folder, argv_of=self._argv, limits=Limits(**limits)
        )
        self.control.subscribe(self.seen.append)

    def _argv(self, instance: InstanceName) -> tuple[str, ...]:
        return (sys.executable, str(PROGRAM), *self.does[instance])

    def status(self, instance: InstanceName = GPU0) -> UnitStatus:
        return self.control.statuses()[instance]

    async def failure(self, *does: str) -> UnitFailed:
        self.does[GPU0] = does
        with pytest.raises(UnitFailed) as caught:
            await self.control.start(GPU0)
        return caught.value

    async def becomes(self, active: ActiveState, instance: InstanceName = GPU0) -> UnitStatus:
        def reached() -> bool:
            status = self.control.statuses().get(instance)
            return status is not None and status.active is active

        await eventually(reached, what=f"{instance} is {active}")
        return self.status(instance)


@contextlib.asynccontextmanager
async def staged(folder: Path, **limits: Any) -> AsyncIterator[Stage]:
    stage = Stage(folder, **limits)
    async with stage.control:
        yield stage


@pytest.fixture
async def stage(short_path: Path) -> AsyncIterator[Stage]:
    async with staged(short_path) as opened:
        yield opened


async def test_a_start_returns_once_the_unit_is_ready(stage: Stage, short_path: Path) -> None:
    go = short_path / "go"
    stage.does[GPU0] = ("status:loading", f"wait:{go}", "status:serving", "ready", "sleep")
    start = asyncio.gather(stage.control.start(GPU0))
    await eventually(lambda: stage.seen and stage.status().status_text == "loading", what="loading")
    assert stage.status().active is ActiveState.ACTIVATING
    assert not start.done()
    go.touch()
    await start
    status = stage.status()
    assert (status.active, status.result, status.restarts) == (ActiveState.ACTIVE, "success", 0)
    await eventually(lambda: stage.status().status_text == "serving", what="serving")
    assert status.main_pid is not None
    assert is_running(status.main_pid)
    await stage.control.start(GPU0)
    assert stage.status().main_pid == status.main_pid


async def test_a_second_start_joins_the_first(stage: Stage, short_path: Path) -> None:
    stage.does[GPU0] = (f"wait:{short_path / 'go'}", "ready", "sleep")
    starts = asyncio.gather(stage.control.start(GPU0), stage.control.start(GPU0))
    await stage.becomes(ActiveState.ACTIVATING)
    (short_path / "go").touch()
    await starts
    assert len({status.main_pid for status in stage.seen if status.main_pid}) == 1


async def test_a_cancelled_start_goes_on(stage: Stage, short_path: Path) -> None:
    stage.does[GPU0] = (f"wait:{short_path / 'go'}", "ready", "sleep")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stage.control.start(GPU0), 0.05)
    (short_path / "go").touch()
    await stage.becomes(ActiveState.ACTIVE)


@pytest.mark.parametrize(
    ("does", "result", "text"),
    [
        (("status:no such model", "exit:78"), "exit-code", "no such model"),
        (("status:bad luck", "exit:3"), "exit-code", "bad luck"),
        (("die:9",), "signal", ""),
        (("exit:0",), "protocol", ""),
        (("status:wedged", "trigger", "sleep"), "watchdog", "wedged"),
    ],
)
async def test_a_start_that_fails_says_how(
    stage: Stage, does: tuple[str, ...], result: str, text: str
) -> None:
    error = await stage.failure(*does)
    assert (error.instance, error.result, error.status_text) == (GPU0, result, text)


async def test_a_start_that_is_never_ready_times_out(short_path: Path) -> None:
    async with staged(short_path, start_timeout_s=0.3) as stage:
        error = await stage.failure("status:dreaming", "sleep")
        assert (error.result, error.status_text) == ("timeout", "dreaming")


async def test_a_slow_start_may_ask_for_more_time(short_path: Path) -> None:
    async with staged(short_path, start_timeout_s=0.6) as stage:
        stage.does[GPU0] = ("extend:30", f"wait:{short_path / 'go'}", "ready", "sleep")
        begun = time.monotonic()
        start = asyncio.gather(stage.control.start(GPU0))
        await eventually(lambda: time.monotonic() - begun > 0.8, what="the first timeout passed")
        (short_path / "go").touch()
        await start


async def test_what_a_child_of_the_main_process_says_does_not_count(short_path: Path) -> None:
    async with staged(short_path, start_timeout_s=1) as stage:
        error = await stage.failure("status:forging", "forged", "status:forged", "sleep")
        assert (error.result, error.status_text) == ("timeout", "forged")


async def test_status_78_is_final(stage: Stage) -> None:
    await stage.failure("status:no such model", "exit:78")
    status = stage.status()
    assert (status.active, status.result) == (ActiveState.FAILED, "exit-code")
    assert (status.main_pid, status.status_text) == (None, "no such model")
    await stage.control.stop(GPU0)
    assert stage.status().active is ActiveState.FAILED
    await stage.control.reset_failed(GPU0)
    assert stage.status().active is ActiveState.INACTIVE


async def test_a_failed_start_is_tried_again_in_the_background(stage: Stage) -> None:
    await stage.failure("exit:1")
    assert stage.status().active is ActiveState.ACTIVATING
    stage.does[GPU0] = ("ready", "sleep")
    status = await stage.becomes(ActiveState.ACTIVE)
    assert status.restarts >= 1


async def test_a_start_does_not_wait_for_a_backoff(short_path: Path) -> None:
    async with staged(short_path, first_backoff_s=60) as stage:
        await stage.failure("exit:1")
        stage.does[GPU0] = ("ready", "sleep")
        await stage.control.start(GPU0)
        assert stage.status().restarts == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_crash_restarts_the_unit(stage: Stage, number: signal.Signals) -> None:
    stage.does[GPU0] = ("ready", "sleep")
    await stage.control.start(GPU0)
    pid = stage.status().main_pid
    assert pid is not None
    os.kill(pid, number)
    await eventually(lambda: stage.status().restarts == 1, what="restarted")
    status = await stage.becomes(ActiveState.ACTIVE)
    assert status.main_pid != pid
    assert (ActiveState.ACTIVATING, "signal") in {(each.active, each.result) for each in stage.seen}


async def test_a_silent_unit_is_killed_by_its_watchdog_and_restarted(short_path: Path) -> None:
    async with staged(short_path, watchdog_s=0.5) as stage:
        stage.does[GPU0] = ("ready", "watchdog", "sleep")
        await stage.control.start(GPU0)
        await eventually(lambda: stage.status().restarts >= 1, what="restarted")
        assert "watchdog" in {status.result for status in stage.seen}


@contextlib.contextmanager
def standstill(*, after_s: float, length_s: float) -> Iterator[asyncio.Event]:
    """Let this process stand still once, in the midst of its wait for events; the event tells."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def stand_still(*_: object) -> None:
        time.sleep(length_s)
        loop.call_later(0, over.set)  # behind the timers that are due by now

    # A signal reaches the loop where SIGSTOP would: it learns of its timers before its sockets.
    before = signal.signal(signal.SIGUSR1, stand_still)
    thread = threading.main_thread().ident
    assert thread is not None
    timer = threading.Timer(after_s, signal.pthread_kill, (thread, signal.SIGUSR1))
    timer.start()
    try:
        yield over
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


async def test_a_standstill_of_our_own_is_not_taken_for_silence(short_path: Path) -> None:
    async with staged(short_path, watchdog_s=1.0) as stage:
        stage.does[GPU0] = ("ready", "ping:0.1")
        await stage.control.start(GPU0)
        with standstill(after_s=0.2, length_s=1.5) as over:
            await over.wait()
        assert "watchdog" not in {status.result for status in stage.seen}
        assert stage.status().active is ActiveState.ACTIVE


async def test_a_stop_ends_the_process_and_is_no_failure(stage: Stage) -> None:
    stage.does[GPU0] = ("ready", "sleep")
    await stage.control.start(GPU0)
    pid = stage.status().main_pid
    await stage.control.stop(GPU0)
    status = stage.status()
    assert (status.active, status.result, status.main_pid) == (
        *(ActiveState.INACTIVE, "success"),
        None,
    )
    assert pid is not None
    assert not is_running(pid)


async def test_stopping_what_never_ran_is_nothing(stage: Stage) -> None:
    await stage.control.stop(GPU0)
    await stage.control.reset_failed(GPU0)
    assert stage.control.statuses() == {}


async def test_a_unit_that_will_not_stop_is_killed(short_path: Path) -> None:
    async with staged(short_path, stop_timeout_s=0.3) as stage:
        stage.does[GPU0] = ("ignore-term", "ready", "sleep")
        await stage.control.start(GPU0)
        await stage.control.stop(GPU0)
        assert (stage.status().active, stage.status().result) == (ActiveState.FAILED, "timeout")


async def test_a_stop_during_a_start_cancels_it(stage: Stage, short_path: Path) -> None:
    stage.does[GPU0] = ("status:loading", f"wait:{short_path / 'never'}", "ready")
    start = asyncio.gather(stage.control.start(GPU0), return_exceptions=True)
    await eventually(lambda: stage.seen and stage.status().status_text == "loading", what="loading")
    await stage.control.stop(GPU0)
    (error,) = await start
    assert isinstance(error, UnitFailed)
    assert (error.result, error.status_text) == ("canceled", "stopped before it was ready")
    assert stage.status().active is ActiveState.INACTIVE


async def test_a_start_during_a_stop_follows_it(stage: Stage) -> None:
    stage.does[GPU0] = ("ready", "sleep")
    await stage.control.start(GPU0)
    pid = stage.status().main_pid
    await asyncio.gather(stage.control.stop(GPU0), stage.control.start(GPU0))
    assert stage.status().active is ActiveState.ACTIVE
    assert stage.status().main_pid != pid


async def test_a_restart_is_another_process(stage: Stage) -> None:
    stage.does[GPU0] = ("ready", "sleep")
    await stage.control.start(GPU0)
    pid = stage.status().main_pid
    await stage.control.restart(GPU0)
    assert stage.status().main_pid != pid
    assert stage.status().restarts == 0


async def test_what_a_main_process_leaves_behind_is_killed(stage: Stage, short_path: Path) -> None:
    stage.does[GPU0] = ("linger", "ready", "sleep")
    await stage.control.start(GPU0)
    pid = stage.status().main_pid
    assert pid is not None
    children = children_of(pid)
    assert len(children) == 1
    await stage.control.stop(GPU0)
    await eventually(lambda: not is_running(children[0]), what="the lingerer is gone")


async def test_what_cannot_be_killed_is_named_until_it_is_gone(short_path: Path) -> None:
    if reason := freezer.why_not():
        pytest.skip(reason)
    async with staged(short_path, stop_timeout_s=0.4) as stage:
        stage.does[GPU0] = ("linger", "ready", "sleep")
        await stage.control.start(GPU0)
        pid = stage.status().main_pid
        assert pid is not None
        children = tuple(children_of(pid))
        with freezer.frozen(*children):
            with pytest.raises(UnitStuck) as caught:
                await stage.control.stop(GPU0)
            assert (caught.value.instance, caught.value.pids) == (GPU0, children)
            status = stage.status()
            assert (status.active, status.result) == (ActiveState.FAILED, "timeout")
            assert status.stuck_pids == children
            error = await stage.failure("ready", "sleep")
            assert error.status_text == f"processes cannot be killed: {children[0]}"
            with pytest.raises(UnitStuck):
                await stage.control.stop(GPU0)
        await eventually(lambda: stage.status().stuck_pids == (), what="free again")
        assert stage.seen[-1] == stage.status()
        await stage.control.start(GPU0)
        assert stage.status().active is ActiveState.ACTIVE


async def test_leaving_does_not_wait_for_what_cannot_be_killed(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if reason := freezer.why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as frozen:
        async with staged(short_path, stop_timeout_s=0.3) as stage:
            stage.does[GPU0] = ("linger", "ready", "sleep")
            await stage.control.start(GPU0)
            pid = stage.status().main_pid
            assert pid is not None
            children = children_of(pid)
            frozen.enter_context(freezer.frozen(*children))
        assert f"gpu0: left behind: processes cannot be killed: {children[0]}" in caplog.text


async def test_a_unit_that_was_stopped_by_a_signal_hears_its_watchdog(short_path: Path) -> None:
    async with staged(short_path, watchdog_s=0.5, stop_timeout_s=60) as stage:
        stage.does[GPU0] = ("ready", "watchdog", "sleep")
        await stage.control.start(GPU0)
        pid = stage.status().main_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: stage.status().restarts >= 1, what="restarted")


async def test_leaving_stops_all_units_at_once(short_path: Path) -> None:
    async with staged(short_path, stop_timeout_s=0.5) as stage:
        for instance in (GPU0, GPU1):
            stage.does[instance] = ("ignore-term", "ready", "sleep")
            await stage.control.start(instance)
        pids = [stage.status(instance).main_pid for instance in (GPU0, GPU1)]
        begun = time.monotonic()
    assert time.monotonic() - begun < 0.95
    assert [pid for pid in pids if pid and is_running(pid)] == []


async def test_a_program_that_cannot_be_started_is_a_failure(short_path: Path) -> None:
    (short_path / "gpu0").touch()  # where its directory has to be
    async with staged(short_path) as stage:
        error = await stage.failure("ready")
        assert error.result == "resources"
        assert "File exists" in error.status_text
        await stage.control.stop(GPU0)


async def test_children_do_not_hear_of_our_own_service_manager(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/absent")
    monkeypatch.setenv("LISTEN_FDS", "3")
    stage.does[GPU0] = ("ready", "sleep")
    await stage.control.start(GPU0)
    main_pid = stage.status().main_pid
    assert main_pid is not None
    lines = (line.decode() for line in environment_of(main_pid))
    environment = dict(line.partition("=")[::2] for line in lines)
    assert environment["NOTIFY_SOCKET"] == str(stage.folder / "notify")
    assert environment["RUNTIME_DIRECTORY"] == str(stage.folder / "gpu0")
    assert environment["WATCHDOG_USEC"] == "10000000"
    assert "LISTEN_FDS" not in environment


async def test_a_supervisor_without_room_for_its_socket_says_so(short_path: Path) -> None:
    with pytest.raises(StartError, match="too long for a UNIX socket"):
        await ChildSupervisor(directory=short_path / ("x" * 110), argv_of=lambda _: ()).__aenter__()


SUPERVISOR = """
import asyncio, os, signal, sys
from pathlib import Path
from rolemesh.agent.child_supervisor import ChildSupervisor
async def main():
    argv = (sys.executable, *sys.argv[2:])
    async with ChildSupervisor(directory=Path(sys.argv[1]), argv_of=lambda _: argv) as control:
        await control.start("gpu0")
        print(control.statuses()["gpu0"].main_pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_nothing_outlives_a_killed_supervisor(short_path: Path) -> None:
    code, words = ("-c", SUPERVISOR), ("ready", "sleep")
    command = [sys.executable, *code, str(short_path), str(PROGRAM), *words]
    finished = await run_to_end(command)
    assert finished.status == -9, finished.stderr
    pid = int(finished.stdout)
    await eventually(lambda: not is_running(pid), what="the unit is gone")


@pytest.mark.parametrize(
    ("assignments", "notified"),
    [
        ({}, Notified()),
        ({"READY": "1", "STATUS": "x"}, Notified(ready=True, status_text="x")),
        ({"READY": "0", "STOPPING": "1"}, Notified(stopping=True)),
        ({"WATCHDOG": "1"}, Notified(alive=True)),
        ({"WATCHDOG": "trigger"}, Notified(trigger=True)),
        ({"EXTEND_TIMEOUT_USEC": "1500000"}, Notified(extend_s=1.5)),
        ({"EXTEND_TIMEOUT_USEC": "soon", "MAINPID": "1"}, Notified()),
    ],
)
def test_notifications_are_read(assignments: dict[str, str], notified: Notified) -> None:
    assert read_notification(assignments) == notified


def test_an_instance_is_started_with_this_python_and_configuration() -> None:
    argv = rolemesh_llama_argv(GPU0, parameters=Path("/r/gpu0.json"), config_args=("--config=/c",))
    assert argv[1:] == (
        "-m",
        "rolemesh.llama",
        "gpu0",
        "--parameters",
        "/r/gpu0.json",
        "--config=/c",
    )
