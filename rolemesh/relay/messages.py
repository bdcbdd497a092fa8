"""The plain reply of `/v1/messages` out of its stream (Anthropic's Messages API); pure.

What llama-server (0.7.0) makes of that API: blocks of thinking, text and tool calls, in a plain
reply always in this order; in a stream a block begins when it is first said, and one that begins
late may have the index of another. So blocks are told apart by their kind. A plain reply repeats
what the client began of the answer itself, a stream does not.
"""

import json
from typing import Any, Final

from rolemesh.relay.assembly import REPLY_LIMIT_BYTES, Assembly, AssemblyError, Tree, expect

_THINKING: Final = "thinking"
_TEXT: Final = "text"

# The pieces of a block, and the kind of block they belong to; of any other kind there may be many.
_SINGLE: Final = {
    "text_delta": _TEXT,
    "thinking_delta": _THINKING,
    "signature_delta": _THINKING,
}


class MessagesAssembly(Assembly):
    """Puts a message together; `begun` is what the client has said of it itself."""

    def __init__(self, begun: str = "", limit_bytes: int = REPLY_LIMIT_BYTES) -> None:
        super().__init__(limit_bytes)
        self._message: Tree | None = None
        self._texts: dict[str, list[str]] = {_TEXT: [begun]} if begun else {}
        self._thinking: Tree = {}
        self._tools: list[tuple[Tree, list[str]]] = []
        self._tool_at: dict[int, list[str]] = {}

    def _take_event(self, event: Tree) -> bool:
        match event.get("type"):
            case "message_start":
                self._message = expect(dict, event.get("message"), "message")
            case "content_block_start":
                block = expect(dict, event.get("content_block"), "content_block")
                self._begin(expect(int, event.get("index"), "index"), block)
            case "content_block_delta":
                delta = expect(dict, event.get("delta"), "delta")
                self._add(expect(int, event.get("index"), "index"), delta)
            case "message_delta":
                self._update(event)
            case "message_stop":
                self._done = True
            case "ping":
                return False
            case _:
                pass
        return True

    def _plain_reply(self) -> Tree:
        message = self._so_far()
        blocks: list[Tree] = []
        texts = {kind: "".join(pieces) for kind, pieces in self._texts.items()}
        if texts.get(_THINKING):
            blocks.append({**self._thinking, _THINKING: texts[_THINKING]})
        if texts.get(_TEXT):
            blocks.append({"type": "text", "text": texts[_TEXT]})
        blocks.extend({**tool, "input": _input("".join(pieces))} for tool, pieces in self._tools)
        return {**message, "content": blocks}

    # --------------------------------------------------------------------------------------

    def _begin(self, index: int, block: Tree) -> None:
        kind = block.get("type")
        if kind == _THINKING:
            self._thinking = block
        elif kind != _TEXT:
            pieces: list[str] = []
            self._tool_at[index] = pieces
            self._tools.append((block, pieces))

    def _add(self, index: int, delta: Tree) -> None:
        kind = delta.pop("type", None)
        if kind == "signature_delta":
            self._thinking["signature"] = delta.get("signature")
            return
        (piece,) = (expect(str, value, str(kind)) for value in delta.values())
        if kind in _SINGLE:
            pieces = self._texts.setdefault(_SINGLE[kind], [])
        elif index in self._tool_at:
            pieces = self._tool_at[index]
        else:
            msg = f"{kind} outside any block"
            raise AssemblyError(msg)
        pieces.append(piece)
        self._grow(len(piece))

    def _update(self, event: Tree) -> None:
        message = self._so_far()
        message.update(expect(dict, event.get("delta"), "delta"))
        usage = expect(dict, event.get("usage", {}), "usage")
        expect(dict, message.setdefault("usage", {}), "usage").update(usage)

    def _so_far(self) -> Tree:
        if self._message is None:
            msg = "the message did not begin"
            raise AssemblyError(msg)
        return self._message


def _input(text: str) -> Any:
    """Return what a tool is called with; llama-server gives an empty object for no proper JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return {}
