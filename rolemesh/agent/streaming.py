"""Which plain requests llama-server is asked for as streams, and in which words; pure.

llama-server (0.7.0) notices that the client of a plain request has left only in a second in which
none of its slots produced anything, beside busy streams not before the end; that of a stream at its
next token. So an answer that may be long is asked for as a stream, and assembled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from rolemesh.relay.assembly import Assembly
from rolemesh.relay.choices import ChoicesAssembly
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.messages import MessagesAssembly
from rolemesh.relay.responses import ResponsesAssembly

SHORT_ANSWER_TOKENS: Final = 16
"""An answer of at most so many tokens is over soon: it is asked for, and passes, as it is."""

# The names of one and the same limit. Which of them wins is llama-server's business: an answer
# counts as short only if each that is given says so.
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "n_predict")

# What a plain completion has and a stream has not, or not in the same way. `logprobs` (`n_probs` is
# llama-server's own name for it): a stream also has those of tokens that a stop sequence takes back,
# and lacks those of tokens it does not show by themselves. `verbose`: `__verbose` repeats the whole
# answer and the settings, in a stream those of the stream.
_PLAIN_ONLY: Final = ("logprobs", "n_probs", "verbose")


@dataclass(frozen=True, slots=True)
class Streamed:
    """The body that asks for an answer as a stream, and what makes the plain answer of it."""

    body: bytes
    assembly: Callable[[], Assembly]


def streamed(upstream_path: str, body: RequestBody) -> Streamed | None:
    """Return how to ask for the answer as a stream; None: it is to be asked for as it is."""
    limits, ask = _WAYS.get(upstream_path, ((), None))
    if ask is None or not _is_off(body, "stream") or _is_short(body, limits):
        return None
    return ask(body)


def _completion(body: RequestBody) -> Streamed | None:
    """Ask for a chat or text completion.

    Reports of progress are asked for because llama-server notices a client that leaves only when
    it writes: without them, beside busy slots, not while it works on the prompt.
    """
    if not _is_off(body, *_PLAIN_ONLY) or not _are_switches(body, "return_progress", "echo"):
        return None
    options = body.get("stream_options")
    members: dict[str, Any] = {
        "stream": True,
        "stream_options": {
            **(options if isinstance(options, dict) else {}),
            "include_usage": True,
        },
        "return_progress": True,
    }
    if _begun(body.get("messages")) is not None:
        members["echo"] = True  # a plain reply repeats what was begun, a stream if it is asked to
    return Streamed(body.with_members(members), ChoicesAssembly)


def _response(body: RequestBody) -> Streamed | None:
    """Ask for a response. A stream of several mixes them up, and its `n` is not OpenAI's anyway."""
    if not _are_switches(body, "return_progress"):
        return None
    if not all(body.get(key) in (None, 1) for key in ("n", "n_cmpl")):
        return None
    return Streamed(body.with_members({"stream": True, "return_progress": True}), ResponsesAssembly)


def _message(body: RequestBody) -> Streamed | None:
    """Ask for a message. Of those there are no reports of progress."""
    begun = _begun(body.get("messages"))
    if begun is None:
        begun = ""
    elif isinstance(begun, list) and len(begun) == 1 and isinstance(begun[0], dict):
        begun = begun[0].get("text") if begun[0].get("type") == "text" else None
    if not isinstance(begun, str):
        return None  # what of it is repeated, and how it is joined, is llama-server's business
    return Streamed(body.with_members({"stream": True}), partial(MessagesAssembly, begun))


_WAYS: Final[dict[str, tuple[tuple[str, ...], Callable[[RequestBody], Streamed | None]]]] = {
    "/v1/chat/completions": (_LIMITS, _completion),
    "/v1/completions": (_LIMITS, _completion),
    "/v1/responses": ((*_LIMITS, "max_output_tokens"), _response),
    "/v1/messages": (("max_tokens",), _message),
}


def _begun(messages: Any) -> Any:
    """Return what the client began of the answer itself, () if that is nothing; None: it did not."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, dict) and last.get("role") == "assistant":
        return last.get("content") or ()
    return None


def _is_off(body: RequestBody, *keys: str) -> bool:
    """Tell whether these are false or absent."""
    values = map(body.get_word, keys)
    return all(value is None or value is False for value in values)


def _are_switches(body: RequestBody, *keys: str) -> bool:
    """Tell whether these are booleans or absent; llama-server refuses anything else."""
    return all(isinstance(body.get(key), bool | None) for key in keys)


def _is_short(body: RequestBody, limits: tuple[str, ...]) -> bool:
    """Tell whether the answer has at most SHORT_ANSWER_TOKENS."""
    is_short = False
    for key in limits:
        limit = body.get_word(key)
        if limit is not None:
            if not isinstance(limit, int) or not 0 <= limit <= SHORT_ANSWER_TOKENS:
                return False
            is_short = True
    return is_short
