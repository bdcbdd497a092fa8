"""Which instance shall run a model now, or why none can; pure.

An instance that has the model, or is on its way to it, is joined. Else every site is looked at:
each instance, and a new one beside those of a GPU that has room. A site is possible when the model
fits into the memory that is free there once idle instances have left; of the possible ones the
first in this order is taken:

1. nobody has to finish requests first
2. the settings name the model for the instance
3. fewer models are displaced
4. GPU before CPU, fewer GPUs before more, an instance before a further one on its GPU
5. one that no settings claim before one that some do; one that did not fail
6. what it displaces was used least recently; more memory stays free

Where a memory or a need cannot be told, memory does not count. Nobody is displaced who is pinned
or busy, except: once requests have waited `switch_after_s`, a busy instance that has had its model
for `min_resident_s` finishes what it does and takes no more.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Final

from rolemesh.agent.instance import InstanceState
from rolemesh.agent.placement_view import (
    RAM,
    Placed,
    PlacementView,
    Refused,
    Room,
    Site,
    Surroundings,
    Wanted,
    gib,
    is_gpu,
    refuse,
    share,
)
from rolemesh.names import InstanceName, ModelId

MOST_PER_GPU: Final = 8
"""How many instances share a GPU at most where the agent makes them."""


def place_model(
    wanted: Wanted, instances: Iterable[PlacementView], around: Surroundings, *, now: float
) -> Placed | Refused:
    """Return where the model shall run; `instances` in order of preference."""
    views = tuple(instances)
    joined = next((view for view in views if view.is_bound_for(wanted.model_id)), None)
    if joined is not None:
        return Placed(instance=joined.name, joins=True)
    sites = find_sites(wanted, views, around, now=now)
    possible = best_first(sites, wanted.model_id, views)
    if possible:
        site = possible[0]
        return Placed(
            instance=site.instance,
            devices=site.devices,
            is_new=site.is_new,
            evicts=site.evicts,
        )
    return refuse(wanted, sites)


def find_sites(
    wanted: Wanted, views: Sequence[PlacementView], around: Surroundings, *, now: float
) -> tuple[Site, ...]:
    """Return every place where the model could run or why it cannot, in order of `views`."""
    node = _Node(wanted, views, around, now)
    sites = [node.site(view, devices) for view in views for devices in node.device_sets(view)]
    if not any(not site.reason or site.may_pass for site in sites):
        sites += [node.site(view, devices) for view in views for devices in node.splits(view)]
    sites += [node.new_site(*each) for each in node.further_instances()]
    return tuple(site for site in sites if not (site.is_new and site.reason))


def best_first(
    sites: Iterable[Site], model_id: ModelId, views: Iterable[PlacementView]
) -> tuple[Site, ...]:
    """Return the possible ones in the order of this module's description."""
    by_name = {view.name: view for view in views}

    def rank(site: Site) -> tuple[object, ...]:
        view = by_name.get(site.instance)
        assigned = view.assigned if view else None
        return (
            len(site.busy),
            assigned != model_id,
            site.displaces,
            not is_gpu(site.instance),
            len(site.devices),
            site.is_new,
            assigned is not None,
            view is not None and view.state is InstanceState.FAILED,
            site.last_used,
            -min(site.free.values()) if site.free else 0,
        )

    return tuple(sorted((site for site in sites if not site.reason), key=rank))


class _Node:
    """The instances and memories of a node, as one model sees them that wants in."""

    def __init__(
        self, wanted: Wanted, views: Sequence[PlacementView], around: Surroundings, now: float
    ) -> None:
        self._wanted = wanted
        self._views = views
        self._around = around
        self._now = now
        self._may_drain = wanted.waited_s >= around.switch_after_s
        rooms = around.rooms
        self._cards = [uuid for uuid in rooms if uuid != RAM and not rooms[uuid].is_slice]

    # -- which devices ---------------------------------------------------------------------

    def device_sets(self, view: PlacementView) -> Iterator[tuple[str, ...]]:
        """Yield what the model would run over there, unless it has to be spread."""
        if view.is_fixed:
            yield view.devices
        else:
            yield self._spread(view, self._wanted.gpus or 1)

    def splits(self, view: PlacementView) -> Iterator[tuple[str, ...]]:
        """Yield spreads over ever more GPUs, for a model that is too large for each single one."""
        if view.is_fixed or self._wanted.gpus is not None or not self._may_spread(view):
            return
        for number in range(2, len(self._cards) + 1):
            yield self._spread(view, number)

    def _spread(self, view: PlacementView, number: int) -> tuple[str, ...]:
        """Return `number` GPUs, the instance's own first; fewer where there are no more."""
        own = view.devices[:1]
        if number == 1 or not self._may_spread(view):
            return own
        others = [uuid for uuid in self._cards if uuid not in own]
        spread = Site(instance=view.name, devices=(*own, *others[: number - 1]))
        reason, may_pass, _ = self._taking(view)
        # Who leaves the instance's own GPU leaves others too, if it is spread.
        begun = self._make_room_on(spread, own[0], view.name)
        if (reason and not may_pass) or (begun.reason and not begun.may_pass):
            return spread.devices  # in vain with any others
        begun = replace(begun, reason="", may_pass=False)

        def cost(uuid: str) -> tuple[object, ...]:
            site = self._make_room_on(begun, uuid, view.name)
            never = bool(site.reason) and not site.may_pass
            free = self._free(self._around.rooms.get(uuid), ()) or 0
            busy = len(site.busy)
            return never, bool(site.reason), busy, site.displaces, site.last_used, -free

        return (*own, *sorted(others, key=cost)[: number - 1])

    def _may_spread(self, view: PlacementView) -> bool:
        return bool(view.devices) and view.devices[0] in self._cards

    def _wrong_number(self, view: PlacementView, devices: tuple[str, ...]) -> str:
        """Say that these are not as many GPUs as the model wants, "" if they are."""
        number, found = self._wanted.gpus, len(devices)
        if number is None or found in {0, number}:
            return ""
        if view.is_fixed:
            return f"runs over {found} GPU{'s' if found > 1 else ''}"
        room, there = self._around.rooms.get(devices[0]), max(len(self._cards), 1)
        if room is not None and room.is_slice:
            return f"it wants {number} GPUs, this is a slice of one"
        return f"it wants {number} GPUs, there {f'are {there}' if there > 1 else 'is 1'}"

    def further_instances(self) -> Iterator[tuple[InstanceName, str]]:
        """Yield names for further instances, and their GPUs; only where memory can be told."""
        if not self._around.may_share or self._wanted.need is None or (self._wanted.gpus or 1) > 1:
            return
        taken = {view.name for view in self._views}
        for view in self._views:
            room = self._around.rooms.get(view.devices[0]) if view.devices else None
            first, _, suffix = view.name.partition("-")
            if room is None or room.total is None or room.is_slice or suffix.isdigit():
                continue
            if view.missing or view.is_empty or len(self._at(view.devices[0])) >= MOST_PER_GPU:
                continue
            stem = view.name if suffix else first
            name = next(f"{stem}-{n}" for n in count(2) if f"{stem}-{n}" not in taken)
            yield InstanceName(name), view.devices[0]

    # -- one site --------------------------------------------------------------------------

    def site(self, view: PlacementView, devices: tuple[str, ...]) -> Site:
        """Say what it takes to run the model on an instance that exists."""
        site = Site(instance=view.name, devices=devices)
        wrong = "" if view.missing else self._wrong_number(view, devices)
        if wrong:
            return replace(site, reason=wrong)
        reason, may_pass, is_busy = self._taking(view)
        if reason:
            # Worth waiting for only if the model fits once its turn comes.
            never = self._make_room(site, view.name) if may_pass else site
            if never.reason and not never.may_pass:
                return never
            return replace(site, reason=reason, may_pass=may_pass)
        if not view.is_empty:
            site = replace(
                site,
                displaces=1,
                last_used=view.last_used,
                busy=(view.name,) if is_busy else (),
            )
        return self._make_room(site, apart_from=view.name)

    def new_site(self, name: InstanceName, device: str) -> Site:
        """Say whether a further instance fits beside those that are there; it displaces nobody."""
        site = self._make_room(Site(instance=name, devices=(device,), is_new=True), name)
        return replace(site, reason="would displace others") if site.evicts else site

    def _taking(self, view: PlacementView) -> tuple[str, bool, bool]:
        """Return why an instance cannot take the model, whether that passes; and if it is busy."""
        if view.missing:
            return view.missing, False, False
        mine = view.assigned == self._wanted.model_id
        if view.is_empty:
            kept = view.pinned and view.assigned is not None and not mine
            return (f"pinned to {view.assigned}" if kept else ""), False, False
        return self._leaving(view, pinned=view.pinned and not mine)

    def _leaving(self, view: PlacementView, *, pinned: bool) -> tuple[str, bool, bool]:
        """Return why what runs there cannot leave, whether that passes; and if it is busy."""
        why_not = _why_it_stays(view, pinned=pinned)
        if why_not[0]:
            return *why_not, False
        resident_s = self._now - view.ready_since
        has_stayed = resident_s >= self._around.min_resident_s
        if view.is_idle:
            just_used = self._now - view.last_used < view.grace_s
            if just_used and not has_stayed:
                return f"used its {view.model_id} a moment ago", True, False
            return "", False, False
        if self._may_drain and has_stayed:
            return "", False, True
        if view.leases:
            return f"busy with {view.model_id} (requests: {view.leases})", True, False
        return f"requests wait for its {view.model_id}", True, False

    def _make_room(self, site: Site, apart_from: InstanceName) -> Site:
        """Have others leave until the model fits; says so where it never does."""
        for device in site.places:
            site = self._make_room_on(site, device, apart_from)
            if site.reason:
                return site
        return site

    def _make_room_on(self, site: Site, device: str, apart_from: InstanceName) -> Site:
        gone = {apart_from, *site.evicts}
        staying = [view for view in self._at(device) if view.name not in gone]
        # Whoever runs over several GPUs has them for itself.
        alone = [view for view in staying if len(site.devices) > 1 or len(view.devices) > 1]
        room, required = self._around.rooms.get(device), self._required(site)

        def fits(beside: list[PlacementView]) -> bool:
            free = self._free(room, beside)
            return free is None or required is None or free >= required

        leaving: list[PlacementView] = []
        kept: list[tuple[PlacementView, str, bool]] = []
        for view in sorted(staying, key=lambda view: (not view.is_idle, view.last_used)):
            if view not in alone and fits([each for each in staying if each not in leaving]):
                continue
            reason, may_pass, _ = self._leaving(view, pinned=view.pinned)
            if reason:
                kept.append((view, reason, may_pass))
            else:
                leaving.append(view)
        # Of those the latest used stay that are not needed once larger ones have left.
        for view in reversed(leaving):
            others = [each for each in leaving if each is not view]
            if view not in alone and fits([each for each in staying if each not in others]):
                leaving = others
        site = replace(
            site,
            evicts=(*site.evicts, *(view.name for view in leaving)),
            busy=(*site.busy, *(view.name for view in leaving if not view.is_idle)),
            displaces=site.displaces + len(leaving),
            last_used=max([site.last_used, *(view.last_used for view in leaving)]),
        )
        left = [view for view in staying if view not in leaving]
        return self._judged(site, device, kept, left)

    def _judged(
        self,
        site: Site,
        device: str,
        kept: list[tuple[PlacementView, str, bool]],
        left: list[PlacementView],
    ) -> Site:
        """Say why the model does not fit beside `left`, or what then is free."""
        room, required = self._around.rooms.get(device), self._required(site)
        in_the_way = [each for each in kept if len(site.devices) > 1 or len(each[0].devices) > 1]
        if in_the_way:
            view, reason, _ = in_the_way[0]
            may_pass = all(each[2] for each in in_the_way)
            return replace(site, reason=f"{view.name} is there: {reason}", may_pass=may_pass)
        free = self._free(room, left)
        if room is None or free is None or required is None:
            return site
        if free >= required:
            return replace(site, free={**(site.free or {}), device: free})
        lasting = [view for view, _, may_pass in kept if not may_pass]
        best = self._free(room, lasting) or 0
        own = site.instance.partition("-")[0] == room.name.partition("-")[0]
        text = ("" if own else f"{room.name}: ") + f"{gib(max(free, 0))} free"
        if best >= required:
            words = "; ".join(f"{view.name} {reason}" for view, reason, passes in kept if passes)
            return replace(site, reason=f"{text} ({words})", may_pass=True, lacks_room=True)
        return replace(site, reason=f"{text}{room.takers(lasting)}", lacks_room=True)

    # -- memory ----------------------------------------------------------------------------

    def _at(self, device: str) -> list[PlacementView]:
        return [view for view in self._views if not view.is_empty and device in view.places]

    def _free(self, room: Room | None, staying: Iterable[PlacementView]) -> int | None:
        """Return the bytes that are free beside `staying`, None where that cannot be told."""
        if room is None or room.total is None:
            return None
        taken = sum(
            max(share(view.need, view.places), view.held.get(room.name, 0)) for view in staying
        )
        return room.total - room.foreign - self._around.margin - taken

    def _required(self, site: Site) -> int | None:
        need = self._wanted.need
        return None if need is None else share(need, site.places)


def _why_it_stays(view: PlacementView, *, pinned: bool) -> tuple[str, bool]:
    """Return why nothing can be unloaded there, and whether that passes."""
    if view.state is InstanceState.STUCK:
        return f"stuck with {view.model_id}", False
    if pinned:
        return f"pinned, runs {view.model_id}", False
    if view.is_leaving:
        return f"is {view.state.value} {view.model_id}", True
    if view.state is not InstanceState.READY:
        return f"is loading {view.model_id}", True
    return "", False
