"""Whether a busy llama-server still moves, judged by what its slots show; pure.

    idle --a slot is busy--> moving --nothing moves for `limit_s`--> suspect
    suspect --CPU or GPU were in use--> once more `limit_s` --> wedged
    suspect --neither was--> wedged        any movement --> moving (or idle)

Sound prefill looks like a hang: llama-server counts a prompt's tokens once for each batch, and a
batch may take minutes. So the limit grows with what a batch takes on this instance. And movement of
one slot counts for all of them: they share one loop, in which a slot may wait long for its turn (a
prompt behind others' prompts, or behind answers with another LoRA adapter).
"""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, starmap
from typing import Any, Final

from rolemesh.llama.server_options import plain_name

LONGEST_LOOK_INTERVAL_S: Final = 5.0

DEFAULT_BATCH_TOKENS: Final = 2048
"""What llama-server takes without `--batch-size`."""

_BATCHES: Final = 4
"""A batch may take this many times as long as it should."""

_SPEEDS_KEPT: Final = 4
_BATCH_GAIN: Final = 4
"""How much faster tokens of a batch are than one by itself, at least where memory is what limits."""

_CPU_IN_USE: Final = 0.05
"""Share of one CPU; answering /health and /slots takes a thousandth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One slot at one moment; a count that this build of llama-server does not tell is None.

    `prompt` is how much of its KV cache is in use, `processed` how many prompt tokens of the task
    were evaluated, `decoded` how many tokens were generated.
    """

    number: int
    busy: bool
    task: int | None = None
    prompt: int | None = None
    processed: int | None = None
    decoded: int | None = None

    @property
    def counts(self) -> bool:
        """Whether anything in it tells movement."""
        return (self.prompt, self.processed, self.decoded) != (None, None, None)

    def __str__(self) -> str:
        task = "" if self.task is None else f" (task {self.task})"
        processed = "" if self.processed is None else f", {self.processed} prompt tokens done"
        decoded = "" if self.decoded is None else f", {self.decoded} tokens generated"
        return f"slot {self.number}{task}{processed}{decoded}"


def read_slots(body: bytes) -> tuple[Slot, ...] | None:
    """Return what GET /slots says, None when it is nothing that can be judged by.

    llama-server's own form (tools/server, README.md: "GET /slots"): `is_processing`, or a `state`
    that is not 0 in builds before 2024-10; `next_token` is an object, or a list with one.
    """
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    slots = tuple(starmap(_slot, enumerate(rows)))
    return None if any(slot.busy and not slot.counts for slot in slots) else slots


def _slot(index: int, row: Mapping[str, Any]) -> Slot:
    token = row.get("next_token")
    if isinstance(token, list):
        token = token[0] if token else None
    token = token if isinstance(token, dict) else row
    number = _count(row, "id")
    return Slot(
        number=index if number is None else number,
        busy=row.get("is_processing", bool(_count(row, "state"))) is True,
        task=_count(row, "id_task", "task_id"),
        prompt=_count(row, "n_prompt_tokens", "n_past"),
        processed=_count(row, "n_prompt_tokens_processed"),
        decoded=_count(token, "n_decoded"),
    )


def _count(row: Mapping[str, Any], *names: str) -> int | None:
    values = (row.get(name) for name in names)
    return next((each for each in values if type(each) is int), None)


class WedgeDetector:
    """Judges one llama-server over its life; times are monotonic seconds, `cpu_s` CPU seconds used.

    `first_token_s` is how long its very first token took: the first measure of its speed. It is to
    be looked at every `look_interval_s` while anything is going on.
    """

    def __init__(self, *, wedge_after_s: float, batch_tokens: int, first_token_s: float) -> None:
        self._wedge_after_s = wedge_after_s
        self.look_interval_s = min(LONGEST_LOOK_INTERVAL_S, wedge_after_s / 4)
        self._batch_tokens = batch_tokens
        # Tokens a second. Each is what it can do at least, so the best of the last ones counts;
        # only of the last ones: far into a long prompt all is slower.
        self._speeds = deque([_BATCH_GAIN / max(first_token_s, 1e-3)], maxlen=_SPEEDS_KEPT)
        self._slots: tuple[Slot, ...] = ()
        self._moved_at: float | None = None
        self._cpu_s = 0.0
        self._extended = False

    @property
    def busy(self) -> bool:
        """Whether anything was going on when last looked."""
        return self._moved_at is not None

    @property
    def limit_s(self) -> float:
        """How long nothing may move before it is looked at more closely."""
        batch_s = self._batch_tokens / max(self._speeds)
        return max(self._wedge_after_s, _BATCHES * batch_s)

    def patience_s(self, now: float) -> float:
        """Return how long an answer may be waited for before it is time to judge."""
        quiet_s = 0.0 if self._moved_at is None else now - self._moved_at
        return max(self._allowed_s - quiet_s, self.look_interval_s)

    def saw(self, slots: tuple[Slot, ...], *, now: float, cpu_s: float) -> None:
        """Take what the slots show."""
        before, self._slots = self._slots, slots
        if not any(slot.busy for slot in slots):
            self._moved_at = None
        elif self._moved_at is None:
            self._move(now, cpu_s)
        elif slots != before:
            self._learn(before, slots, now - self._moved_at)
            self._move(now, cpu_s)

    def saw_nothing(self, *, asked_at: float, cpu_s: float) -> None:
        """Take that /slots was asked for and not answered.

        In some builds only the loop that evaluates answers it, between two batches.
        """
        if self._moved_at is None:
            self._move(asked_at, cpu_s)

    def suspects(self, now: float) -> bool:
        """Tell whether it matters now if a GPU is in use."""
        return self._is_overdue(now) and not self._extended

    def judge(self, *, now: float, cpu_s: float, gpu_in_use: bool | None) -> str | None:
        """Return why it is wedged, None while it is not; `gpu_in_use` None: that cannot be told."""
        if self._moved_at is None or not self._is_overdue(now):
            return None
        quiet_s = now - self._moved_at
        cpu_share = (cpu_s - self._cpu_s) / quiet_s
        if not self._extended and (cpu_share >= _CPU_IN_USE or gpu_in_use is not False):
            self._extended = True
            return None
        busy = "; ".join(str(slot) for slot in self._slots if slot.busy)
        return (
            f"busy for {quiet_s:.0f} s without a token ({busy or 'GET /slots is not answered'}; "
            f"CPU {cpu_share:.0%}; {self._allowed_s:.0f} s are allowed)"
        )

    @property
    def _allowed_s(self) -> float:
        return self.limit_s * (2 if self._extended else 1)

    def _is_overdue(self, now: float) -> bool:
        return self._moved_at is not None and now - self._moved_at >= self._allowed_s

    def _move(self, now: float, cpu_s: float) -> None:
        self._moved_at = now
        self._cpu_s = cpu_s
        self._extended = False

    def _learn(self, before: tuple[Slot, ...], after: tuple[Slot, ...], gap_s: float) -> None:
        """Measure the speed by prompt tokens that were evaluated within `gap_s`.

        A few tokens in the time between two looks say nothing: they took a part of it.
        """
        known = {slot.number: slot for slot in before}
        tokens = sum(_evaluated(known.get(slot.number), slot) for slot in after)
        if tokens > 0 and (4 * tokens >= self._batch_tokens or gap_s >= 2 * self.look_interval_s):
            self._speeds.append(tokens / gap_s)


def _evaluated(before: Slot | None, after: Slot) -> int:
    """Return how many prompt tokens a slot evaluated between two looks."""
    if after.processed is None:
        return 0
    same_task = before is not None and before.busy and before.task == after.task
    start = before.processed if same_task and before is not None else 0
    return max(after.processed - (start or 0), 0)


def batch_tokens(args: tuple[str, ...]) -> int:
    """Return how many prompt tokens a llama-server with these arguments evaluates at once."""
    names = {"-b", "--batch-size"}
    values = [value for name, value in pairwise(args) if plain_name(name) in names]
    return int(values[-1]) if values and values[-1].isdecimal() else DEFAULT_BATCH_TOKENS
