import asyncio

import pytest

from rolemesh.runtime.tasks import TaskScope


async def forever(log: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        log.append("ended")


async def test_leaving_a_scope_cancels_its_tasks_and_waits_for_their_end() -> None:
    log: list[str] = []
    async with TaskScope() as scope:
        task = scope.start(forever(log), name="background")
        assert task.get_name() == "background"
        await asyncio.sleep(0)
    assert log == ["ended"]
    assert task.cancelled()


async def test_a_task_that_never_began_is_cancelled_too() -> None:
    async with TaskScope() as scope:
        task = scope.start(forever([]), name="background")
    assert task.cancelled()


async def test_a_task_gives_its_result() -> None:
    async with TaskScope() as scope:
        assert await scope.start(asyncio.sleep(0, "done"), name="x") == "done"


async def test_an_error_in_the_background_ends_the_whole_scope() -> None:
    log: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def run() -> None:
        async with TaskScope() as scope:
            _ = scope.start(forever(log), name="other")
            _ = scope.start(fail(), name="failing")
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as failed:
        await run()
    assert failed.group_contains(ZeroDivisionError)
    assert log == ["ended"]


async def test_an_error_in_the_body_ends_the_tasks_too() -> None:
    log: list[str] = []

    async def run() -> None:
        async with TaskScope() as scope:
            _ = scope.start(forever(log), name="other")
            await asyncio.sleep(0)
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as failed:
        await run()
    assert failed.group_contains(ZeroDivisionError)
    assert log == ["ended"]
