"""Slot leases of one instance: llama-server never gets more than its slots."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rolemesh.names import InstanceName, ModelId


class Lease:
    """Held slots of one loaded instance; given back once, on leaving the context or earlier."""

    def __init__(
        self,
        instance: InstanceName,
        model_id: ModelId,
        slots: int,
        on_release: Callable[["Lease"], None],
    ) -> None:
        self.instance = instance
        self.model_id = model_id
        self.slots = slots
        self._on_release: Callable[[Lease], None] | None = on_release

    def release(self) -> None:
        """Give the slots back; without effect when that was done before."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class Use:
    """How much of an instance is in use; `requests` also counts those of cost 0."""

    held: int = 0
    requests: int = 0


class Slots:
    """The slots of one instance and the leases on them.

    `others` is what another process of this agent uses, which ends its requests there.
    """

    def __init__(self) -> None:
        self.total = 1
        self.others = Use()
        self._held = 0
        self._requests = 0

    @property
    def held(self) -> int:
        """The slots in use."""
        return self._held + self.others.held

    @property
    def requests(self) -> int:
        """The requests that use them, those of cost 0 included."""
        return self._requests + self.others.requests

    def fits(self, cost: int) -> bool:
        """Tell whether a request of this cost can start now; one dearer than all takes all."""
        return min(cost, self.total) <= self.total - self.held

    def lease(
        self,
        instance: InstanceName,
        model_id: ModelId,
        cost: int,
        on_idle_change: Callable[[], None],
    ) -> Lease:
        """Hold slots for a request; `on_idle_change` is called after their release.

        Only to be called when `fits(cost)`.
        """
        slots = min(cost, self.total)

        def release(lease: Lease) -> None:
            self._held -= lease.slots
            self._requests -= 1
            on_idle_change()

        self._held += slots
        self._requests += 1
        return Lease(instance, model_id, slots, release)
