"""Who waits for which model, and the bell that wakes them."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rolemesh.names import ModelId


class Waiting:
    """Requests that wait until a model is ready; models in the order they were first wanted."""

    def __init__(self) -> None:
        self._counts: Counter[ModelId] = Counter()
        self._since: dict[ModelId, float] = {}
        self._clock = asyncio.get_running_loop().time
        self._changed: asyncio.Event | None = None

    @property
    def counts(self) -> Mapping[ModelId, int]:
        """How many requests wait, by model."""
        return self._counts

    def models(self) -> tuple[ModelId, ...]:
        """Return the models that are waited for, the longest first."""
        return tuple(self._counts)

    def waited_s(self, model_id: ModelId) -> float:
        """Return for how long somebody has waited for the model without a break."""
        since = self._since.get(model_id)
        return 0.0 if since is None else self._clock() - since

    @contextmanager
    def join(self, model_id: ModelId) -> Iterator[None]:
        """Count as waiting for the model inside the context."""
        self._counts[model_id] += 1
        self._since.setdefault(model_id, self._clock())
        try:
            yield
        finally:
            self._counts[model_id] -= 1
            if not self._counts[model_id]:
                del self._counts[model_id], self._since[model_id]

    async def until_change(self, deadline: float) -> None:
        """Return at the next `wake`; raises TimeoutError at `deadline`, the loop's time."""
        if self._changed is None:
            self._changed = asyncio.Event()
        async with asyncio.timeout_at(deadline):
            await self._changed.wait()

    def wake(self) -> None:
        """Wake all who wait now."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()
