"""Which plain requests llama-server is asked for as streams, and in which words; pure.

llama-server (0.7.0) notices that the client of a plain request has left only in a second in which
none of its slots produced anything, beside busy streams not before the end; that of a stream at its
next token. So an answer that may be long is asked for as a stream, and assembled.
"""

from typing import Any, Final

from rolemesh.relay.edit import RequestBody

SHORT_ANSWER_TOKENS: Final = 16
"""An answer of at most so many tokens is over soon: it is asked for, and passes, as it is."""

_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})

# The names of one and the same limit. Which of them wins is llama-server's business: an answer
# counts as short only if each that is given says so.
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "n_predict")

# What a plain reply has and a stream has not, or not in the same way. `logprobs` (`n_probs` is
# llama-server's own name for it): a stream also has those of tokens that a stop sequence takes back,
# and lacks those of tokens it does not show by themselves. `verbose`: `__verbose` repeats the whole
# answer and the settings, in a stream those of the stream.
_PLAIN_ONLY: Final = ("logprobs", "n_probs", "verbose")


def streamed(upstream_path: str, body: RequestBody) -> bytes | None:
    """Return the body that asks for the answer as a stream; None: it is to be asked for as it is.

    Reports of progress are asked for because llama-server notices a client that leaves only when
    it writes: without them not while it works on the prompt.
    """
    if upstream_path not in _PATHS or _is_short(body):
        return None
    asked_for = [body.get(key) for key in ("stream", *_PLAIN_ONLY)]
    if not all(value is None or value is False for value in asked_for):
        return None
    if not all(isinstance(body.get(key), bool | None) for key in ("return_progress", "echo")):
        return None  # llama-server refuses it
    options = body.get("stream_options")
    members: dict[str, Any] = {
        "stream": True,
        "stream_options": {
            **(options if isinstance(options, dict) else {}),
            "include_usage": True,
        },
        "return_progress": True,
    }
    if _is_continued(body.get("messages")):
        members["echo"] = True
    return body.with_members(members)


def _is_continued(messages: Any) -> bool:
    """Tell whether the client began the answer itself.

    A plain reply repeats that beginning; a stream only if it is asked to.
    """
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _is_short(body: RequestBody) -> bool:
    """Tell whether the answer has at most SHORT_ANSWER_TOKENS."""
    is_short = False
    for key in _LIMITS:
        limit = body.get_word(key)
        if limit is not None:
            if not isinstance(limit, int) or not 0 <= limit <= SHORT_ANSWER_TOKENS:
                return False
            is_short = True
    return is_short
