"""A request for the embeddings or ranks of many texts, as several for a few each; pure.

llama-server (0.7.0) makes a task of each text and answers when all are done, also when nobody is
there any more, for as long as that takes. It is asked for a few at a time, and once more only if the
client is still there; the answers are put together to the one that it gives for all.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from rolemesh.relay.assembly import REPLY_LIMIT_BYTES
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.members import decoded

ROUNDS: Final = 4
"""How many texts for each slot are asked for at once: fewer cost time, more keep slots busy longer
after the client has left."""

# Where the texts stand in a request, by its path, and the results in the object of its answer.
_KEYS: Final = {
    "/v1/embeddings": (("input", "content"), "data"),
    "/v1/rerank": (("documents", "texts"), "results"),
}


BATCHED_PATHS: Final = frozenset(_KEYS)


class BatchError(Exception):
    """An answer is not what was asked for."""


class Batches:
    """The texts of one request, and the answers so far."""

    def __init__(self, body: RequestBody, key: str, texts: list[Any], results_key: str) -> None:
        self._body = body
        self._key = key
        self._texts = texts
        self._results_key = results_key
        self._head: dict[str, Any] | None = None
        self._results: list[tuple[float, bytes]] = []
        self._answered = 0
        self._size = 0

    def bodies(self, slots: int) -> Iterator[bytes]:
        """Yield the bodies to send one after another; `add` is to be called between."""
        size = slots * ROUNDS
        for start in range(0, len(self._texts), size):
            yield self._body.with_members({self._key: self._texts[start : start + size]})
            self._answered = min(start + size, len(self._texts))

    def is_worth_it(self, slots: int) -> bool:
        """Tell whether there are more texts than are asked for at once."""
        return len(self._texts) > slots * ROUNDS

    @property
    def is_too_large(self) -> bool:
        """Tell whether the whole answer is likely larger than what is held of one."""
        count = max(1, len(self._results))
        return self._size / count * len(self._texts) > REPLY_LIMIT_BYTES

    def add(self, answer: bytes) -> None:
        """Take the answer to the body last yielded; raises BatchError."""
        try:
            tree = decoded(answer)
            results = tree
            if isinstance(tree, dict):
                results = tree.pop(self._results_key)
                self._add_head(tree)
            for result in results:
                result["index"] += self._answered
                score = result.get("relevance_score", result.get("score", 0.0))
                self._results.append((-score, json.dumps(result, ensure_ascii=False).encode()))
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            msg = f"an answer that cannot be put together with others: {err!r}"
            raise BatchError(msg) from err
        self._size += len(answer)

    def _add_head(self, head: dict[str, Any]) -> None:
        if self._head is None:
            self._head = head
            return
        usage = self._head["usage"]
        for key, count in head["usage"].items():
            usage[key] += count

    def whole(self) -> bytes:
        """Return the answer to all."""
        if self._results_key == "results":
            self._results.sort(key=lambda result: result[0])
            limit = self._body.get("top_n")
            del self._results[limit if isinstance(limit, int) else len(self._results) :]
        listed = b"[%b]" % b",".join(result for _, result in self._results)
        if self._head is None:
            return listed
        head = json.dumps(self._head, ensure_ascii=False).encode()
        return b'%b,"%b":%b}' % (head[:-1], self._results_key.encode(), listed)


def in_batches(upstream_path: str, body: RequestBody) -> Batches | None:
    """Return the texts of a request, None if they are not several of one kind."""
    keys, results_key = _KEYS.get(upstream_path, ((), ""))
    given = [(key, body.get(key)) for key in keys]
    given = [(key, texts) for key, texts in given if texts is not None]
    if len(given) != 1:
        return None
    ((key, texts),) = given
    if not isinstance(texts, list) or len(texts) < ROUNDS:
        return None
    kinds = {type(text) for text in texts}
    if kinds not in ({str}, {list}):
        return None  # one text given as tokens, or something that llama-server refuses
    return Batches(body, key, texts, results_key)
