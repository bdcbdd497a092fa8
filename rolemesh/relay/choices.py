"""The plain reply of a chat or text completion out of its stream; pure.

The events are those of `/v1/chat/completions` and `/v1/completions` (OpenAI's streaming API; the
plain form and what differs were read off llama-server 0.7.0). They are merged by shape, not by a
list of fields, so that what newer builds add passes too: text grows, lists with an `index` merge
by it, other lists grow, of anything else the last value counts.
"""

import json
from typing import Any, Final

from rolemesh.relay.assembly import REPLY_LIMIT_BYTES, Assembly, AssemblyError, Tree, expect

# Strings that are said once: should they come again, they do not grow.
_SAID_ONCE: Final = frozenset({"role", "id", "type"})


class _Text(list[str]):
    """A string that grows, as its pieces."""


class _Indexed(dict[int, Tree]):
    """A list whose items are known by their `index`."""


class ChoicesAssembly(Assembly):
    """Puts choices together.

    A choice's own last event is followed by those with the numbers of its generation (`usage`,
    `timings`), which name no choice. A plain reply has the numbers of the first choice alone.
    """

    def __init__(self, limit_bytes: int = REPLY_LIMIT_BYTES) -> None:
        super().__init__(limit_bytes)
        self._choices: dict[int, Tree] = {}
        self._heads: dict[int, Tree] = {}
        self._speaking = 0

    def _take_event(self, event: Tree) -> bool:
        # A report of progress is no sign of an answer, but may come with the beginning of it that
        # is part of the prompt.
        is_report = event.pop("prompt_progress", None) is not None
        for choice in expect(list, event.pop("choices", []), "choices"):
            self._add_choice(expect(dict, choice, "choice"))
        _update(self._heads.setdefault(self._speaking, {}), event)
        return not is_report

    def _plain_reply(self) -> Tree:
        if not self._choices:
            msg = "the stream ended before the answer was whole"
            raise AssemblyError(msg)
        head = self._heads[min(self._choices)]
        if isinstance(head.get("object"), str):
            head["object"] = head["object"].removesuffix(".chunk")
        choices = [_plain_choice(self._choices[index]) for index in sorted(self._choices)]
        return {"choices": choices, **head}

    # -- merging -----------------------------------------------------------------------------

    def _add_choice(self, part: Tree) -> None:
        self._speaking = index = expect(int, part.get("index"), "index")
        choice = self._choices.setdefault(index, {})
        delta, text = part.pop("delta", None), part.pop("text", None)
        _update(choice, part)
        if delta is not None:
            self._merge(choice.setdefault("message", {}), expect(dict, delta, "delta"))
        if text is not None:
            self._merge(choice, {"text": expect(str, text, "text")})

    def _merge(self, whole: Tree, part: Tree) -> None:
        for key, value in part.items():
            old = whole.get(key)
            if isinstance(value, str) and key not in _SAID_ONCE:
                if not isinstance(old, _Text):
                    whole[key] = old = _Text()
                old.append(value)
                self._grow(len(value))
            elif isinstance(value, dict):
                if not isinstance(old, dict):
                    whole[key] = old = {}
                self._merge(old, value)
            elif isinstance(value, list):
                whole[key] = self._merged_list(old, value)
            elif old is None or (value is not None and key not in _SAID_ONCE):
                whole[key] = value

    def _merged_list(self, old: Any, value: list[Any]) -> Any:
        if not all(isinstance(item, dict) and isinstance(item.get("index"), int) for item in value):
            self._grow(len(json.dumps(value)))
            return [*(old if isinstance(old, list) else ()), *value]
        whole = old if isinstance(old, _Indexed) else _Indexed()
        for item in value:
            self._merge(whole.setdefault(item.pop("index"), {}), item)
        return whole


def _update(whole: Tree, part: Tree) -> None:
    """Let the last value count that is not null."""
    whole.update(
        (key, value) for key, value in part.items() if value is not None or key not in whole
    )


def _plain_choice(choice: Tree) -> Tree:
    """Return one choice in plain form."""
    plain: Tree = _plain(choice)
    if "message" in plain:
        said = {key: value for key, value in plain["message"].items() if value is not None}
        # The event that says the role is left out when the first token is no whole character; and
        # content is null only in a stream, whose first event says so.
        plain["message"] = {"role": "assistant", "content": "", **said}
    return plain


def _plain(node: Any) -> Any:
    """Return what was gathered as JSON types."""
    if isinstance(node, _Text):
        return "".join(node)
    if isinstance(node, _Indexed):
        return [_plain(node[index]) for index in sorted(node)]
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return node
