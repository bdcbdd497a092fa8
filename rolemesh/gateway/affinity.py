"""Which candidate holds the beginning of a conversation in its KV cache; pure.

A follow-up repeats its conversation from the beginning. llama-server reads only what is new, if it
is the one that answered before; any other reads all of it. What was said is known here by hashes
alone: a chain of one hash for each message, each over all before it. The chains of two client keys
have nothing in common, so that nobody learns by its own requests what others ask.

A request's last link is remembered, with who got the request. The next request of the conversation
has that link too, because a client repeats its own messages as it sent them; how it writes the
answer that came between them does not matter.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from rolemesh.gateway.routing_table import CandidateKey
from rolemesh.relay.members import Members, is_list, split_elements

BLOCK_BYTES: Final = 1024
"""A prompt that is one text has a link for each whole block of so many bytes."""

MAX_TURNS: Final = 4096
"""Of a conversation longer than this nothing is remembered: it would keep others waiting."""

SAMPLED_BYTES: Final = 4096
"""A larger message is not looked at as a whole: one mistaken for another costs a cache miss, no more."""

MAX_LINKS: Final = 16384
"""How many requests an index remembers, in about 150 bytes each."""

ACTIVE_S: Final = 300.0
"""How long after its last request a conversation counts as under way."""

USUAL_PACE_S: Final = 1 / 4000
"""Seconds that reading a byte of a request takes, of a candidate of which it is not known yet:
about 1000 tokens a second."""

PACE_SHARE: Final = 0.25
"""The share of the latest observation in a candidate's pace."""

LONGEST_WAIT_S: Final = 30.0
"""The longest a follow-up waits for the candidate that holds its beginning."""


class Chain(NamedTuple):
    """The beginning of a request, link by link; `sizes` are the bytes up to each link."""

    links: list[int]
    sizes: list[int]


@dataclass(slots=True)
class Preference:
    """The candidate that holds a request's beginning, and what the request does for its sake.

    `worth_s` is how long another one would take to read that beginning, 0 where nothing follows
    up: then the holder is only the first among equals. `passed_since` is when the request began to
    leave slots elsewhere alone that nobody else wanted; None while there are none. `depth` is how
    many links of the request's chain are known.
    """

    key: CandidateKey
    worth_s: float
    depth: int = 0
    passed_since: float | None = None

    def passes_by(self, now: float) -> bool:
        """Tell whether a slot elsewhere is left alone, to wait for the holder, which is full.

        Who waits beside a free slot for as long as its prefix is worth, and takes it then, has lost
        at most twice what was unavoidable.
        """
        if self.passed_since is None:
            self.passed_since = now
        return now < self.passed_since + self.worth_s

    def nothing_passed(self) -> None:
        """Note that there is no slot elsewhere."""
        self.passed_since = None


# --- the chain of a request -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Where a request has its conversation: what comes before it, and the member that grows."""

    head: tuple[str, ...] = ()
    turns: str
    is_text: bool = False
    has_marks: bool = False


_SHAPES: Final[Mapping[str, _Shape]] = MappingProxyType({
    "/v1/chat/completions": _Shape(head=("tools",), turns="messages"),
    "/v1/messages": _Shape(head=("tools", "system"), turns="messages", has_marks=True),
    "/v1/responses": _Shape(head=("tools", "instructions"), turns="input"),
    "/v1/completions": _Shape(turns="prompt", is_text=True),
})  # fmt: skip


def prefix_chain(upstream_path: str, members: Members, salt: Hashable) -> Chain | None:
    """Return the chain of a request's conversation; None where there is none to follow up.

    `salt` tells apart what must not be found by each other: the client key and the alias.
    """
    shape = _SHAPES.get(upstream_path)
    if shape is None or shape.turns not in members:
        return None
    turns = members[shape.turns]
    link, size = hash(salt), 0
    for name in shape.head:
        if name in members:
            head = bytes(members[name])
            link, size = hash((link, name, head)), size + len(head)
    if shape.is_text:
        return _linked(link, size, _blocks(bytes(turns)))
    return _linked(link, size, _turns(turns, has_marks=shape.has_marks))


def _turns(member: Any, *, has_marks: bool) -> Iterable[Any]:
    """Return what a conversation consists of; nothing where it is too much to look at."""
    if not is_list(member):
        return (member,)
    try:
        turns = split_elements(member)
    except RecursionError:
        return ()  # it is nested as deeply as could just be read
    if not turns or len(turns) > MAX_TURNS:
        return ()
    if has_marks and _MARK in bytes(turns[-1]):
        return map(_unmarked, map(bytes, turns))
    return turns


def _linked(link: int, size: int, parts: Iterable[Any]) -> Chain | None:
    # Python's hash of bytes is SipHash with a key of this process (PEP 456).
    links, sizes = [], []
    for part in parts:
        written = bytes(part)
        length = len(written)
        if length > SAMPLED_BYTES:  # a large one is known by its length, beginning and end
            link = hash((link, length, written[:BLOCK_BYTES], written[-BLOCK_BYTES:]))
        else:
            link = hash((link, written))
        size += length
        links.append(link)
        sizes.append(size)
    return Chain(links, sizes) if links else None


def _blocks(text: bytes) -> Iterable[bytes]:
    """Return the whole blocks of a text; its end, which grows, belongs to none."""
    whole = len(text) - len(text) % BLOCK_BYTES
    return (text[start : start + BLOCK_BYTES] for start in range(0, whole, BLOCK_BYTES))


# Anthropic's clients mark the last messages of each request for caching: the mark of a message, and
# the list of one text that a plain text becomes to bear it, are gone in the next request.
_MARK: Final = b'"cache_control"'
_after_mark = re.compile(rb"\s*:\s*(?:\{[^{}]*+\}|null)\s*").match
_one_text = re.compile(
    rb'(\{\s*"role"\s*:\s*"\w+"\s*,\s*"content"\s*:\s*)'
    rb'\[\s*\{\s*"type"\s*:\s*"text"\s*,\s*"text"\s*:\s*("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*\}\s*\]'
).match


def _unmarked(message: bytes) -> bytes:
    """Return what tells a message from others, whether or not it is marked for caching."""
    first, *rest = message.split(_MARK)
    pieces = [first]
    for part in rest:
        value = _after_mark(part)
        after = part[value.end() :] if value else part
        before = pieces[-1].rstrip()
        if before.endswith(b","):
            pieces[-1] = before[:-1]
        else:
            after = after.removeprefix(b",").lstrip()
        pieces.append(after)
    kept = b"".join(pieces)
    text = _one_text(kept)
    return text[1] + text[2] + kept[text.end() :] if text else kept


# --- who holds what -------------------------------------------------------------------------


class _Holder:
    """A candidate; one that went away has no key any more."""

    __slots__ = ("active", "key", "pace_s")

    def __init__(self, key: CandidateKey) -> None:
        self.key: CandidateKey | None = key
        self.active = 0
        self.pace_s = USUAL_PACE_S


class _Conversation:
    """Requests of which each goes on where the one before it ended; `tip` is the last one's link."""

    __slots__ = ("holder", "is_active", "tip", "used_at")

    def __init__(self, holder: _Holder) -> None:
        self.holder = holder
        self.is_active = False
        self.tip = 0
        self.used_at = 0.0


class AffinityIndex:
    """What is remembered of at most `limit` requests; those not followed up go first."""

    def __init__(self, *, clock: Callable[[], float], limit: int = MAX_LINKS) -> None:
        self._clock = clock
        self._limit = limit
        self._links: OrderedDict[int, _Conversation] = OrderedDict()
        self._active: OrderedDict[_Conversation, None] = OrderedDict()
        self._holders: dict[CandidateKey, _Holder] = {}
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._links)

    def remember(self, chain: Chain, key: CandidateKey, depth: int | None = None) -> int:
        """Note that a candidate gets a request; returns how many bytes of it are new to it.

        `depth` is what `preference` said of it, if it was asked.
        """
        links, sizes = chain
        if depth is None:
            depth = self._depth(chain)
        known = self._links.get(links[depth - 1]) if depth else None
        holder = self._holders.get(key) or self._holders.setdefault(key, _Holder(key))
        new_bytes = sizes[-1]
        if known is not None and known.holder is holder:
            new_bytes -= sizes[depth - 1]
        if known is None or known.tip != links[depth - 1]:
            known = _Conversation(holder)  # a new one, or a branch of one
        self._use(known, holder)
        known.tip = links[-1]
        if self._links.get(links[-1]) is not known:
            self._links[links[-1]] = known
        self._links.move_to_end(links[-1])
        if len(self._links) > self._limit:
            self._links.popitem(last=False)
        return new_bytes

    def active(self, key: CandidateKey) -> int:
        """Return how many conversations under way a candidate holds."""
        holder = self._holders.get(key)
        if holder is None or not holder.active:
            return 0
        self._expire(self._clock())
        return holder.active

    def read(self, key: CandidateKey, size: int, seconds: float) -> None:
        """Note that a candidate took so long to read so many new bytes, up to its first byte."""
        holder = self._holders.get(key)
        if holder is not None and size >= BLOCK_BYTES:
            holder.pace_s += (seconds / size - holder.pace_s) * PACE_SHARE

    def preference(self, chain: Chain) -> Preference | None:
        """Return who holds the longest known beginning of a request; None if nobody is known to."""
        depth = self._depth(chain)
        if not depth:
            return None
        holder = self._links[chain.links[depth - 1]].holder
        if holder.key is None:
            return None
        follows_up = depth < len(chain.links)
        worth_s = chain.sizes[depth - 1] * holder.pace_s if follows_up else 0.0
        return Preference(holder.key, min(worth_s, LONGEST_WAIT_S), depth)

    def keep(self, keys: AbstractSet[CandidateKey]) -> None:
        """Forget all other candidates: they are gone, or have begun anew and hold nothing."""
        for key in self._holders.keys() - keys:
            self._holders.pop(key).key = None

    def _depth(self, chain: Chain) -> int:
        """Return how many links of a chain lead to the last one that is known; 0 for none."""
        links, known = chain.links, self._links
        depth = len(links)
        while depth and links[depth - 1] not in known:
            depth -= 1
        return depth

    def _use(self, conversation: _Conversation, holder: _Holder) -> None:
        now = conversation.used_at = self._clock()
        if conversation.is_active:
            conversation.holder.active -= 1
            self._active.move_to_end(conversation)
        else:
            conversation.is_active = True
            self._active[conversation] = None
        conversation.holder = holder
        holder.active += 1
        self._expire(now)

    def _expire(self, now: float) -> None:
        """End what was not used lately, looked at once a second, or is more than may be remembered."""
        active = self._active
        if now < self._look_at and len(active) <= self._limit:
            return
        self._look_at = now + 1.0
        oldest = now - ACTIVE_S
        while active:
            conversation = next(iter(active))
            if conversation.used_at > oldest and len(active) <= self._limit:
                return
            del active[conversation]
            conversation.is_active = False
            conversation.holder.active -= 1
