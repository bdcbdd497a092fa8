"""Looks at the slots of a llama-server while it is busy, and finds out when it is wedged.

An idle one is left alone: that something has begun shows in its log, and in the CPU time of one
whose log does not say so.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from rolemesh.llama.activity import NotTelling, ServerActivity
from rolemesh.llama.wedge import WedgeDetector

logger = logging.getLogger(__name__)


class WedgeWatch:
    """Watches one llama-server; `lines_logged` counts what its log said, its answers to us left out."""

    def __init__(
        self, *, detector: WedgeDetector, activity: ServerActivity, lines_logged: Callable[[], int]
    ) -> None:
        self._detector = detector
        self._activity = activity
        self._lines_logged = lines_logged
        # It has just finished its trial: asking whether it is idle would wake one that sleeps.
        self._seen = self._work_done()

    async def wedged(self) -> str:
        """Return, once it is wedged, why it is taken to be."""
        try:
            while True:
                await asyncio.sleep(self._detector.look_interval_s)
                reason = await self._look() if self._detector.busy or self._stirs() else None
                if reason is not None:
                    return reason
        except NotTelling as err:
            logger.warning("a wedged llama-server cannot be told from a busy one: %s", err)
        nobody_can_tell: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await nobody_can_tell

    def _stirs(self) -> bool:
        """Tell whether anything has begun since this was asked last."""
        before, self._seen = self._seen, self._work_done()
        return self._seen != before

    def _work_done(self) -> float:
        """Return what grows with all that it does: lines of its log, or CPU seconds if it has none."""
        return self._lines_logged() or self._activity.cpu_s()

    async def _look(self) -> str | None:
        asked_at = time.monotonic()
        slots = await self._activity.slots(self._detector.patience_s(asked_at))
        now, cpu_s = time.monotonic(), self._activity.cpu_s()
        if slots is None:
            self._detector.saw_nothing(asked_at=asked_at, cpu_s=cpu_s)
        else:
            self._detector.saw(slots, now=now, cpu_s=cpu_s)
        gpu_in_use = await self._activity.gpu_in_use() if self._detector.suspects(now) else None
        return self._detector.judge(now=now, cpu_s=cpu_s, gpu_in_use=gpu_in_use)
