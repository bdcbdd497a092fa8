"""Who holds the beginning of a conversation, as far as it can be known from requests."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rolemesh.gateway.affinity import (
    ACTIVE_S,
    BLOCK_BYTES,
    LONGEST_WAIT_S,
    MAX_TURNS,
    USUAL_PACE_S,
    AffinityIndex,
    Chain,
    Preference,
    prefix_chain,
)
from rolemesh.gateway.routing_table import CandidateKey
from rolemesh.relay.members import Members, split_members

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
RESPONSES, COMPLETIONS = "/v1/responses", "/v1/completions"
A: CandidateKey = ("box", "m", "gpu0")
B: CandidateKey = ("box", "m", "gpu1")
MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


TALK = [says("system", "Be brief."), says("user", "Hi"), says("assistant", "Hello"),
        says("user", "More"), says("assistant", "Well"), says("user", "Why?")]  # fmt: skip


def chain_of(path: str, *, salt: object = ("me", "coder"), **body: Any) -> Chain | None:
    return prefix_chain(path, split_members(json.dumps(body).encode()), salt)


def chat(messages: Sequence[Any], **others: Any) -> Chain:
    chain = chain_of(CHAT, messages=messages, **others)
    assert chain is not None
    return chain


class World:
    """An index and its clock."""

    def __init__(self, limit: int = 100) -> None:
        self.now = 50.0
        self.index = AffinityIndex(clock=lambda: self.now, limit=limit)

    def holder(self, messages: Sequence[Any]) -> tuple[CandidateKey, int] | None:
        found = self.index.preference(chat(messages))
        return None if found is None else (found.key, found.depth)

    def preference(self, messages: Sequence[Any]) -> Preference:
        preference = self.index.preference(chat(messages))
        assert preference is not None
        return preference


@pytest.fixture
def world() -> World:
    return World()


# --- the chain ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_follow_up_begins_with_all_that_was_asked_before(path: str) -> None:
    turns = "input" if path == RESPONSES else "messages"
    whole = chain_of(path, **{turns: TALK}, model="x", stream=True)
    assert whole is not None
    assert len(whole.links) == len(whole.sizes) == len(TALK)
    for length in range(1, len(TALK)):
        part = chain_of(path, **{turns: TALK[:length]}, temperature=length)
        assert part is not None
        assert part.links == whole.links[:length]
        assert part.sizes == whole.sizes[:length]


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        (CHAT, {"tools": [{"type": "function"}]}),
        (CHAT, {"messages": [says("user", "Be brief."), *TALK[1:]]}),
        (MESSAGES, {"system": "Be long."}),
        (MESSAGES, {"tools": []}),
        (RESPONSES, {"instructions": "Be long."}),
    ],
)
def test_another_beginning_has_no_link_in_common(path: str, changed: Mapping[str, Any]) -> None:
    body = {"input" if path == RESPONSES else "messages": TALK}
    before, after = chain_of(path, **body), chain_of(path, **{**body, **changed})
    assert before is not None
    assert after is not None
    assert not set(before.links) & set(after.links)


def test_what_comes_first_is_told_apart_by_its_name() -> None:
    tools = chain_of(MESSAGES, messages=TALK, tools="x")
    system = chain_of(MESSAGES, messages=TALK, system="x")
    assert tools != system


def test_the_chains_of_two_salts_have_nothing_in_common() -> None:
    salts = [("me", "coder"), ("you", "coder"), ("me", "writer")]
    chains = [chain_of(CHAT, messages=TALK, salt=salt) for salt in salts]
    assert len({link for chain in chains if chain for link in chain.links}) == 3 * len(TALK)


def test_a_prompt_has_a_link_for_each_whole_block_of_it() -> None:
    words = " ".join(random.Random(1).choices("abcdefgh", k=3 * BLOCK_BYTES))
    long = chain_of(COMPLETIONS, prompt=words)
    shorter = chain_of(COMPLETIONS, prompt=words[: 2 * BLOCK_BYTES + 100])
    assert long is not None
    assert shorter is not None
    assert len(long.links) == len(json.dumps(words)) // BLOCK_BYTES
    assert shorter.links == long.links[:2]
    assert shorter.sizes == [BLOCK_BYTES, 2 * BLOCK_BYTES]


def test_an_input_that_is_one_text_is_one_link() -> None:
    chain = chain_of(RESPONSES, input="Hi")
    assert chain is not None
    assert chain.sizes == [len('"Hi"')]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "x" * 5000}),
        ("/tokenize", {"content": "x" * 5000}),
        (CHAT, {}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": [0] * (MAX_TURNS + 1)}),
        (COMPLETIONS, {"prompt": "short"}),
    ],
)
def test_there_may_be_nothing_to_follow_up(path: str, body: Mapping[str, Any]) -> None:
    assert chain_of(path, **body) is None


@pytest.mark.parametrize("messages", [7, "Hi", {"a": 1}, None, [None, 7, "x"]])
def test_what_is_no_conversation_does_no_harm(messages: Any) -> None:
    assert chain_of(CHAT, messages=messages) is not None


def test_messages_nested_as_deeply_as_can_just_be_read_do_no_harm() -> None:
    def from_deep_down(frames: int, body: Members) -> Chain | None:
        return from_deep_down(frames - 1, body) if frames else prefix_chain(CHAT, body, 0)

    found = set()
    for depth in range(100, 1100, 5):
        text = b'{"messages": [' + b"[" * depth + b"]" * depth + b"]}"
        try:
            body = split_members(text)
        except RecursionError:
            break
        found.add(from_deep_down(20, body) is None)
    assert found == {True, False}


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ({"role": "user", "content": "Hi", **MARK}, {"role": "user", "content": "Hi"}),
        ({**MARK, "role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}),
        (says("user", [{"type": "text", "text": 'a "b" \\', **MARK}]), says("user", 'a "b" \\')),
        (
            says("user", [{"type": "text", "text": "Hi", "cache_control": None}]),
            says("user", [{"type": "text", "text": "Hi"}]),
        ),
        (
            says("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b", **MARK}]),
            says("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ),
        (
            says("user", [{"type": "tool_result", **MARK, "content": [1, {"x": ', "y"'}]}, MARK]),
            says("user", [{"type": "tool_result", "content": [1, {"x": ', "y"'}]}, {}]),
        ),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_marks_for_caching_move_on_with_each_request_and_do_not_count(
    separators: tuple[str, str], marked: Any, plain: Any
) -> None:
    def chain(*messages: Any) -> Chain:
        text = json.dumps({"messages": messages}, separators=separators).encode()
        found = prefix_chain(MESSAGES, split_members(text), 0)
        assert found is not None
        return found

    asked = chain(marked)
    follow_up = chain(plain, says("assistant", "x"), {"role": "user", **MARK})
    assert follow_up.links[0] == asked.links[0]


def test_only_marks_are_left_out() -> None:
    quoted = 'say "cache_control": {"x": 1}, please'
    chains = [
        chain_of(MESSAGES, messages=[says("user", text), {"role": "user", **MARK}])
        for text in (quoted, quoted.replace("1", "2"))
    ]
    assert chains[0] != chains[1]


def test_many_marks_take_no_longer_than_as_much_text() -> None:
    marks = [says("user", [MARK] * 100_000)]  # would take minutes if each were looked at with all
    assert chain_of(MESSAGES, messages=marks) is not None


# --- who holds it ---------------------------------------------------------------------------


def test_nobody_holds_what_nobody_was_asked(world: World) -> None:
    assert world.holder(TALK) is None
    assert world.index.preference(chat(TALK)) is None


def test_a_follow_up_is_found_however_its_client_writes_the_answer(world: World) -> None:
    world.index.remember(chat(TALK[:2]), A)
    answer = {"content": "Hello", "refusal": None, "role": "assistant"}
    assert world.holder([*TALK[:2], answer, TALK[3]]) == (A, 2)


def test_the_longest_known_beginning_counts(world: World) -> None:
    world.index.remember(chat(TALK[:2]), A)
    world.index.remember(chat(TALK[:4]), B)
    assert world.holder(TALK) == (B, 4)
    assert world.holder(TALK[:3]) == (B, 2)  # the conversation went to B as a whole


def test_a_conversation_that_branches_off_leaves_the_other_where_it_is(world: World) -> None:
    world.index.remember(chat(TALK[:2]), A)
    world.index.remember(chat(TALK[:4]), A)
    branch = [*TALK[:2], says("assistant", "Hello"), says("user", "Something else")]
    world.index.remember(chat(branch), B)
    assert world.holder([*branch, says("assistant", "?")]) == (B, 4)
    assert world.holder(TALK) == (A, 4)
    assert (world.index.active(A), world.index.active(B)) == (1, 1)


def test_what_is_new_to_a_candidate_is_what_it_has_to_read(world: World) -> None:
    first, second = chat(TALK[:2]), chat(TALK[:4])
    assert world.index.remember(first, A) == first.sizes[-1]
    assert world.index.remember(second, A) == second.sizes[-1] - first.sizes[-1]
    assert world.index.remember(second, A) == 0
    assert world.index.remember(chat(TALK), B) == chat(TALK).sizes[-1]


def test_no_more_is_remembered_than_may_be() -> None:
    world = World(limit=10)
    for number in range(1000):
        world.index.remember(chat([says("user", f"{number}")]), A)
        world.index.remember(chat(TALK[:2]), B)  # is used all the time
    assert len(world.index) == 10
    assert world.holder(TALK) == (B, 2)
    assert world.holder([says("user", "0")]) is None
    assert world.holder([says("user", "999")]) == (A, 1)
    assert world.index.active(A) <= 10


def test_a_candidate_that_went_away_or_began_anew_holds_nothing(world: World) -> None:
    world.index.remember(chat(TALK[:2]), A)
    world.index.remember(chat([says("user", "x")]), B)
    world.index.keep({B})
    assert world.holder(TALK) is None
    assert world.holder([says("user", "x")]) == (B, 1)
    assert world.index.active(A) == 0
    world.index.remember(chat(TALK[:4]), A)
    assert world.holder(TALK) == (A, 4)
    assert world.holder(TALK[:2]) == (A, 2)
    assert world.index.active(A) == 1


def test_conversations_count_while_they_are_under_way(world: World) -> None:
    for number in range(3):
        world.index.remember(chat([says("user", f"{number}")]), A)
    world.now += ACTIVE_S / 2
    world.index.remember(chat([says("user", "0"), *TALK[2:4]]), A)
    assert world.index.active(A) == 3
    world.now += 0.6 * ACTIVE_S
    assert (world.index.active(A), world.index.active(B)) == (1, 0)
    world.index.remember(chat([says("user", "0"), *TALK[2:4], *TALK[4:6]]), B)
    assert (world.index.active(A), world.index.active(B)) == (0, 1)
    world.now += 2 * ACTIVE_S
    assert world.index.active(B) == 0


def test_an_index_agrees_with_one_that_forgets_nothing() -> None:
    rolls, world = random.Random(7), World(limit=10_000)
    told: dict[str, CandidateKey] = {}
    for _ in range(2000):
        talk = [says("user", rolls.choice("xyz")) for _ in range(rolls.randint(1, 8))]
        known = [length for length in range(1, len(talk) + 1) if json.dumps(talk[:length]) in told]
        found = world.holder(talk)
        assert (found is None) == (not known)
        assert found is None or found[1] == max(known)
        told[json.dumps(talk)] = key = rolls.choice([A, B])
        world.index.remember(chat(talk), key)
        assert world.holder(talk) == (key, len(talk))


# --- what a follow-up does for the sake of its holder ---------------------------------------


def test_waiting_is_worth_what_reading_all_anew_takes(world: World) -> None:
    long = [says("system", "word " * 2000), *TALK[1:]]
    world.index.remember(chat(long[:2]), A)
    size = chat(long[:2]).sizes[-1]
    assert world.preference(long).worth_s == pytest.approx(size * USUAL_PACE_S)
    for _ in range(50):
        world.index.read(A, 10_000, 0.5)
        world.index.read(A, 100, 60.0)  # of so little nothing can be learnt
        world.index.read(B, 10_000, 60.0)  # is not known at all
    assert world.preference(long).worth_s == pytest.approx(size * 0.5 / 10_000, rel=0.01)
    for _ in range(50):
        world.index.read(A, 10_000, 600.0)
    assert world.preference(long).worth_s == LONGEST_WAIT_S


def test_a_request_that_is_only_repeated_is_not_worth_any_waiting(world: World) -> None:
    world.index.remember(chat(TALK), A)
    preference = world.preference(TALK)
    assert (preference.key, preference.worth_s) == (A, 0.0)
    assert not preference.passes_by(0.0)


def test_a_slot_elsewhere_is_passed_by_as_long_as_the_prefix_is_worth() -> None:
    preference = Preference(key=A, worth_s=2.0)
    assert preference.passes_by(10.0)
    assert preference.passes_by(11.9)
    assert not preference.passes_by(12.0)
    preference.nothing_passed()
    assert preference.passes_by(20.0)
    assert preference.passed_since == 20.0
