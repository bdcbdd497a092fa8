"""What placement sees and what it answers; values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rolemesh.agent.instance import InstanceState
from rolemesh.llama.memory import MemoryNeed
from rolemesh.names import InstanceName, ModelId

_EMPTY: Final = frozenset({InstanceState.STOPPED, InstanceState.FAILED})
_TO_READY: Final = frozenset({InstanceState.STARTING, InstanceState.LOADING, InstanceState.READY})
_LEAVING: Final = frozenset({InstanceState.DRAINING, InstanceState.STOPPING})
_GIB: Final = 1024**3

GRACE_SHARE: Final = 0.1
SHORTEST_GRACE_S: Final = 0.1
LONGEST_GRACE_S: Final = 2.0
"""How long an idle model that has not been there for long is left to its user: this part of the time
that its load took, at most so many seconds, and not at all where that is next to nothing."""

RAM: Final = ""
"""In place of a GPU's UUID: the memory of the machine, for instances without a GPU."""


def is_gpu(name: InstanceName) -> bool:
    """Tell whether an instance runs on a GPU."""
    return name.startswith("gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementView:
    """What placement must know of one instance.

    `assigned` is the model its settings name, `missing` why it cannot run at all. `devices` are
    what it runs over, or would: UUIDs, its own first; empty without a GPU. `is_fixed`: the settings
    say which, so that a model is never spread over others. `need` is the memory of what it runs or
    is about to run, None where that cannot be told; `held` is what it was seen to hold of each
    GPU, by its name, in bytes. `leases` are requests it answers now, `waiting`
    requests that wait for the model it runs; `last_used` and `ready_since` are monotonic, `load_s` is how long
    its model took to load.
    """

    name: InstanceName
    state: InstanceState
    model_id: ModelId | None = None
    next_model_id: ModelId | None = None
    assigned: ModelId | None = None
    pinned: bool = False
    missing: str = ""
    devices: tuple[str, ...] = ()
    is_fixed: bool = False
    need: MemoryNeed | None = None
    held: Mapping[str, int] = field(default_factory=dict)
    leases: int = 0
    waiting: int = 0
    last_used: float = 0.0
    ready_since: float = 0.0
    load_s: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Nothing runs there and nothing is about to."""
        return self.state in _EMPTY

    @property
    def is_leaving(self) -> bool:
        """What runs there is on its way out."""
        return self.state in _LEAVING

    @property
    def is_idle(self) -> bool:
        """Something is loaded there that nobody uses."""
        return self.state is InstanceState.READY and not self.leases and not self.waiting

    @property
    def grace_s(self) -> float:
        """How long who was just answered may think before the next request.

        The dearer the load, the more a second one of the same model right after would cost.
        """
        grace_s = min(self.load_s * GRACE_SHARE, LONGEST_GRACE_S)
        return grace_s if grace_s >= SHORTEST_GRACE_S else 0.0

    @property
    def places(self) -> tuple[str, ...]:
        """Where its memory is: its GPUs, or RAM."""
        return self.devices or (() if is_gpu(self.name) else (RAM,))

    def is_bound_for(self, model_id: ModelId) -> bool:
        """Tell whether it runs the model or will without being asked again."""
        bound_for = self.next_model_id if self.is_leaving else self.model_id
        return bound_for == model_id and (self.state in _TO_READY or self.is_leaving)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory of one GPU (or RAM) in bytes. `total` None: it cannot be told.

    `foreign` is what others than the instances of this node take of it. `is_slice`: it is a slice
    of a GPU, which one process uses alone, and no other beside it.
    """

    name: str
    total: int | None = None
    foreign: int = 0
    is_slice: bool = False

    def takers(self, lasting: Sequence[PlacementView]) -> str:
        """Say how large it is, and who has what is not free: others, and those who stay there."""
        takers = [f"{view.model_id} on {view.name}" for view in lasting]
        takers += [f"others {gib(self.foreign)}"] if self.foreign else []
        of = f" of {gib(self.total)}" if self.total is not None else ""
        return of + (f" (taken: {', '.join(takers)})" if takers else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What surrounds the instances.

    `rooms` by UUID, `margin` bytes of each are left free. `switch_after_s` and `min_resident_s` are
    the policy's; `may_share`: further instances may be made beside those there are.
    """

    rooms: Mapping[str, Room] = field(default_factory=dict)
    margin: int = 0
    switch_after_s: float = 30.0
    min_resident_s: float = 60.0
    may_share: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A model to place: its memory (None: unknown), over how many GPUs (None: as it takes).

    `waited_s` is how long requests have waited for it.
    """

    model_id: ModelId
    need: MemoryNeed | None = None
    gpus: int | None = None
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place where the model could run, and what that takes.

    `evicts` are other instances that have to go for it. `busy` are those, and maybe the instance
    itself, that must finish requests first. `reason` says why not, "" where it can; `may_pass`: it
    could as soon as others have done their work. `free` is the memory it would find on each of its
    devices, in bytes; None where memory does not count.
    """

    instance: InstanceName
    devices: tuple[str, ...] = ()
    is_new: bool = False
    evicts: tuple[InstanceName, ...] = ()
    busy: tuple[InstanceName, ...] = ()
    displaces: int = 0
    last_used: float = 0.0
    reason: str = ""
    may_pass: bool = False
    free: Mapping[str, int] | None = None
    lacks_room: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        """Where the model's memory would be: its GPUs, or RAM."""
        return self.devices or (() if is_gpu(self.instance) else (RAM,))

    def to_json(self) -> dict[str, Any]:
        """Return the element of `sites` in a plan."""
        return {
            "instance": self.instance,
            "devices": list(self.devices),
            "new": self.is_new,
            "evicts": list(self.evicts),
            "busy": list(self.busy),
            "possible": not self.reason,
            "reason": self.reason,
            "may_pass": self.may_pass,
            "free_mib": None if self.free is None else {k: v >> 20 for k, v in self.free.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The instance for the model; `joins`: it is on its way there already.

    `devices` are what it is to run over, `evicts` the instances that have to go for it.
    """

    instance: InstanceName
    joins: bool = False
    devices: tuple[str, ...] = ()
    is_new: bool = False
    evicts: tuple[InstanceName, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No instance can take the model. `may_pass`: one could as soon as its work is done.

    `need_text` says what it needs, where it is memory that lacks.
    """

    reasons: Mapping[InstanceName, str]
    may_pass: bool
    need_text: str = ""

    def __str__(self) -> str:
        if not self.reasons:
            return "this node has no instance"
        text = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        return f"{self.need_text}; {text}" if self.need_text else text


def refuse(wanted: Wanted, sites: tuple[Site, ...]) -> Refused:
    """Say why none of the sites can take the model."""
    # Of several reasons the first counts: a spread is only looked at where one GPU is too small.
    reasons: Mapping[InstanceName, str] = {
        **{site.instance: "" for site in sites},
        **{site.instance: site.reason for site in reversed(sites)},
    }
    need_text = ""
    if wanted.need is not None and any(site.lacks_room for site in sites):
        need_text = f"it needs {gib(wanted.need.on_each(1))}"
    return Refused(
        reasons=reasons,
        may_pass=any(site.may_pass for site in sites),
        need_text=need_text,
    )


def gib(count: int) -> str:
    """Return bytes as people read memory: "9.1 GiB", "640 MiB"."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.0f} MiB"


def share(need: MemoryNeed | None, places: Sequence[str]) -> int:
    """Return the bytes that a model takes on each of the places it runs over; 0 if unknown."""
    if need is None:
        return 0
    return need.total if tuple(places) == (RAM,) else need.on_each(max(len(places), 1))
