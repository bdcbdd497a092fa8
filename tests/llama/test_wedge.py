"""When a busy llama-server counts as wedged, and that sound ones never do."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from rolemesh.llama.wedge import (
    DEFAULT_BATCH_TOKENS,
    Slot,
    WedgeDetector,
    batch_tokens,
    read_slots,
)

IDLE = Slot(number=0, busy=False, task=7, prompt=12, processed=12, decoded=3)
BUSY = Slot(number=0, busy=True, task=8, prompt=0, processed=0, decoded=0)
QUICK_S = 0.01
"""A first token that leaves the limit at what is configured."""


def detector(*, first_token_s: float = QUICK_S, batch: int = 512) -> WedgeDetector:
    return WedgeDetector(wedge_after_s=60, batch_tokens=batch, first_token_s=first_token_s)


def verdict_at(
    watched: WedgeDetector,
    seen: Iterable[tuple[float, tuple[Slot, ...] | None]],
    *,
    cpu_share: float = 0.0,
    gpu_in_use: bool | None = False,
) -> tuple[float, str] | None:
    """Return when and why it is wedged, None if it never is; `seen`: at which time which slots."""
    for now, slots in seen:
        cpu_s = now * cpu_share
        if slots is None:
            watched.saw_nothing(asked_at=now, cpu_s=cpu_s)
        else:
            watched.saw(slots, now=now, cpu_s=cpu_s)
        gpu = gpu_in_use if watched.suspects(now) else None
        reason = watched.judge(now=now, cpu_s=cpu_s, gpu_in_use=gpu)
        if reason is not None:
            return now, reason
    return None


def every(
    step_s: float, until_s: float, slots: tuple[Slot, ...] | None
) -> Iterator[tuple[float, tuple[Slot, ...] | None]]:
    return ((number * step_s, slots) for number in range(int(until_s / step_s) + 1))


def prefill(
    *, tokens: int, batch: int, speed: float, start: float = 0.0, task: int = 8
) -> Iterator[tuple[float, tuple[Slot, ...]]]:
    """Show what a sound prompt shows each 5 s: its tokens are counted once for each batch."""
    seconds = tokens / speed
    for number in range(int(seconds / 5) + 1):
        at = 5.0 * number
        batches = int(at * speed / batch)
        processed = min(batches * batch, tokens)
        in_batch = min(processed + batch, tokens)
        yield start + at, (replace(BUSY, task=task, prompt=in_batch, processed=processed),)


def test_what_does_not_move_is_wedged_after_the_limit() -> None:
    assert verdict_at(detector(), every(5, 300, (BUSY,))) == (
        60,
        "busy for 60 s without a token (slot 0 (task 8), 0 prompt tokens done, 0 tokens generated; "
        "CPU 0%; 60 s are allowed)",
    )


@pytest.mark.parametrize(
    ("cpu_share", "gpu_in_use"), [(1.0, False), (0.06, False), (0.0, True), (0.0, None)]
)
def test_what_is_at_work_gets_the_time_once_more(cpu_share: float, gpu_in_use: bool | None) -> None:
    found = verdict_at(
        detector(), every(5, 300, (BUSY,)), cpu_share=cpu_share, gpu_in_use=gpu_in_use
    )
    assert found is not None
    assert found[0] == 120
    assert found[1].endswith("; 120 s are allowed)")


def test_our_own_questions_are_no_work() -> None:
    found = verdict_at(detector(), every(5, 300, (BUSY,)), cpu_share=0.001)
    assert found is not None
    assert found[0] == 60


def test_the_extension_is_for_each_standstill() -> None:
    moved = replace(BUSY, processed=512)
    seen = [
        *every(5, 100, (BUSY,)),
        *((105.0 + at, slots) for at, slots in every(5, 300, (moved,))),
    ]
    found = verdict_at(detector(), seen, cpu_share=1.0)
    assert found is not None
    assert found[0] == 105 + 120


def test_an_idle_one_is_never_wedged() -> None:
    watched = detector()
    assert verdict_at(watched, every(5, 3600, (IDLE,))) is None
    assert not watched.busy


def test_what_finished_begins_anew() -> None:
    seen = [*every(5, 55, (BUSY,)), (60.0, (IDLE,)), (65.0, (BUSY,)), (120.0, (BUSY,))]
    assert verdict_at(detector(), seen) is None


def test_another_task_is_a_movement() -> None:
    tasks = ((5.0 * number, (replace(BUSY, task=number // 10),)) for number in range(500))
    assert verdict_at(detector(), tasks) is None


@pytest.mark.parametrize(
    "moved",
    [
        lambda count: replace(BUSY, prompt=count),
        lambda count: replace(BUSY, processed=count),
        lambda count: replace(BUSY, decoded=count),
    ],
)
def test_any_count_is_a_movement(moved: Callable[[int], Slot]) -> None:
    steps = [(50.0 * number, (moved(number),)) for number in range(20)]
    assert verdict_at(detector(), steps) is None


def test_the_movement_of_one_slot_is_life_of_all() -> None:
    """A prompt behind the prompts of others waits; so does one whose LoRA adapter is not loaded."""
    waiting = replace(BUSY, number=1, task=9)
    seen = ((at, (*slots, waiting)) for at, slots in prefill(tokens=60_000, batch=512, speed=100))
    assert verdict_at(detector(), seen) is None


def test_slots_that_all_stand_still_are_all_told() -> None:
    found = verdict_at(detector(), every(5, 100, (BUSY, replace(BUSY, number=3, task=9), IDLE)))
    assert found is not None
    assert "slot 0 (task 8)" in found[1]
    assert "slot 3 (task 9)" in found[1]


def test_no_answer_is_no_movement() -> None:
    """In builds where only the evaluating loop answers /slots, a stuck loop answers nothing."""
    assert verdict_at(detector(), every(5, 100, None)) == (
        60,
        "busy for 60 s without a token (GET /slots is not answered; CPU 0%; 60 s are allowed)",
    )


@pytest.mark.parametrize("tokens_per_s", [8, 46, 200, 5000])
def test_a_sound_prefill_of_minutes_is_never_wedged(tokens_per_s: float) -> None:
    """The very first prompt too, when all that is known is how long the first token took."""
    watched = detector(first_token_s=1 / min(tokens_per_s, 30), batch=2048)
    prompts = prefill(tokens=20 * 2048, batch=2048, speed=tokens_per_s)
    assert verdict_at(watched, prompts, cpu_share=1.0) is None


def test_far_into_a_long_prompt_all_may_be_slower() -> None:
    watched, begun = detector(first_token_s=0.1, batch=2048), 0.0
    seen: list[tuple[float, tuple[Slot, ...]]] = []
    for number in range(60):  # each batch takes 4 s more than the one before: 10 s ... 4 minutes
        duration_s = 10.0 + 4 * number
        slots = (replace(BUSY, processed=2048 * number),)
        seen += [(begun + at, slots) for at in range(0, int(duration_s), 5)]
        begun += duration_s
    assert verdict_at(watched, seen, cpu_share=1.0) is None


def test_the_limit_follows_the_speed_that_was_measured() -> None:
    watched = detector(first_token_s=0.5, batch=2048)
    assert watched.limit_s == 2048 * 0.5
    assert verdict_at(watched, prefill(tokens=8 * 2048, batch=2048, speed=64)) is None
    # Each batch took 32 s, and looked at every 5 s, that is 30 or 35.
    assert watched.limit_s == 4 * 30
    quick = prefill(tokens=64 * 2048, batch=2048, speed=2048, start=1000, task=9)
    assert verdict_at(watched, quick) is None
    assert watched.limit_s == 60


def test_a_few_tokens_between_two_looks_are_no_measure() -> None:
    watched = detector(first_token_s=0.1, batch=2048)
    before = watched.limit_s
    follow_ups = ((5.0 * task, (replace(BUSY, task=task, processed=20),)) for task in range(50))
    assert verdict_at(watched, follow_ups) is None
    assert watched.limit_s == before


def test_an_answer_is_waited_for_until_it_is_time_to_judge() -> None:
    watched = detector()
    assert watched.patience_s(0) == 60
    watched.saw((BUSY,), now=0, cpu_s=0)
    assert watched.patience_s(20) == 40
    assert watched.patience_s(59) == 5


def test_it_is_looked_at_often_enough_for_its_limit() -> None:
    assert detector().look_interval_s == 5
    short = WedgeDetector(wedge_after_s=2, batch_tokens=8, first_token_s=0.001)
    assert short.look_interval_s == 0.5


# --- what /slots says -----------------------------------------------------------------------


def slots_of(*rows: dict[str, Any]) -> tuple[Slot, ...] | None:
    return read_slots(json.dumps(rows).encode())


def test_slots_are_read_as_current_builds_write_them() -> None:
    """As llama-server 0.7.0 does."""
    fresh = {"id": 1, "n_ctx": 4096, "speculative": False, "is_processing": False}
    row = {
        "id": 0,
        "n_ctx": 4096,
        "speculative": False,
        "is_processing": True,
        "id_task": 201,
        "n_prompt_tokens": 2048,
        "n_prompt_tokens_processed": 1024,
        "n_prompt_tokens_cache": 0,
        "params": {"seed": 4294967295},
        "next_token": [{"has_next_token": True, "n_remain": -1, "n_decoded": 5}],
    }
    assert slots_of(row, fresh) == (
        Slot(number=0, busy=True, task=201, prompt=2048, processed=1024, decoded=5),
        Slot(number=1, busy=False),
    )


@pytest.mark.parametrize(
    ("row", "slot"),
    [
        (
            {"id": 2, "task_id": 5, "state": 1, "next_token": {"n_decoded": 9}},
            Slot(number=2, busy=True, task=5, decoded=9),
        ),
        ({"id": 0, "state": 0, "n_decoded": 4}, Slot(number=0, busy=False, decoded=4)),
        ({"is_processing": True, "n_past": 3}, Slot(number=0, busy=True, prompt=3)),
        ({"id": "x", "is_processing": False}, Slot(number=0, busy=False)),
    ],
)
def test_slots_of_other_builds_are_read_as_far_as_they_go(row: dict[str, Any], slot: Slot) -> None:
    assert slots_of(row) == (slot,)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'["a"]',
        b"[" * 100_000,
        b'[{"id": 0, "is_processing": true}]',
        b'[{"id": 0, "is_processing": true, "next_token": [], "n_prompt_tokens": "many"}]',
    ],
)
def test_what_tells_no_movement_is_nothing_to_judge_by(body: bytes) -> None:
    assert read_slots(body) is None


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        ((), DEFAULT_BATCH_TOKENS),
        (("-b", "512"), 512),
        (("-b", "512", "-c", "9", "--batch-size", "64"), 64),
        (("--batch_size", "16384"), 16384),
        (("-ub", "512"), DEFAULT_BATCH_TOKENS),
        (("-b",), DEFAULT_BATCH_TOKENS),
    ],
)
def test_the_batch_is_what_llama_server_is_told(args: tuple[str, ...], tokens: int) -> None:
    assert batch_tokens(args) == tokens
