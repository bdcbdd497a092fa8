"""The request body: the few fields routing reads, and the edit that rewrites them.

Every value that is not rewritten reaches the upstream byte for byte (see members).
"""

from collections.abc import Mapping
from typing import Any, Final

from rolemesh.errors import BadRequest
from rolemesh.relay.members import (
    Buffer,
    Members,
    decoded,
    decoded_word,
    encoded,
    encoded_name,
    is_list,
    join_members,
    split_members,
)

MAX_PROMPTS: Final = 4096


class RequestBody:
    """A parsed request body; `model` is None when the client named none."""

    __slots__ = ("_members", "model", "stream")

    def __init__(self, members: Members) -> None:
        self._members = members
        model = decoded_word(members["model"]) if "model" in members else None
        if model is not None and not isinstance(model, str):
            msg = "model must be a string"
            raise BadRequest(msg, param="model")
        self.model: str | None = model
        self.stream = "stream" in members and decoded_word(members["stream"]) is True

    @classmethod
    def parse(cls, body: Buffer) -> "RequestBody":
        """Parse a body; raises BadRequest when it is not one JSON object in UTF-8."""
        try:
            return cls(split_members(body))
        except UnicodeDecodeError as err:
            msg = f"the request body is not UTF-8 (byte {err.start})"
            raise BadRequest(msg) from err
        except RecursionError as err:
            msg = "the request body is nested too deeply"
            raise BadRequest(msg) from err
        except ValueError as err:
            msg = f"the request body is not valid JSON: {err}"
            raise BadRequest(msg) from err

    def get(self, key: str) -> Any:
        """Return a top-level value; of several with one key the last counts, as in json."""
        member = self._members.get(key)
        return None if member is None else decoded(member)

    def get_word(self, key: str) -> Any:
        """Return a short top-level value, of which there are few."""
        member = self._members.get(key)
        return None if member is None else decoded_word(member)

    def forget(self) -> None:
        """Let go of everything but `model` and `stream`."""
        self._members = {}

    def slots(self, prompts_key: str | None) -> int:
        """Return how many slots the request takes: n x prompts, each at least 1.

        Raises BadRequest when it asks for more than MAX_PROMPTS at once.
        """
        count = 1
        if "n" in self._members:
            choices = self.get("n")
            count = choices if isinstance(choices, int) and choices > 0 else 1
        if prompts_key in self._members and is_list(self._members[prompts_key]):
            prompts = self.get(prompts_key)
            if prompts and not isinstance(prompts[0], int):
                count *= len(prompts)  # a list of ints is one prompt, given as tokens
        if count > MAX_PROMPTS:
            msg = (
                f"the request asks for {count} completions at once, at most {MAX_PROMPTS} are taken"
            )
            raise BadRequest(msg, param="n")
        return count

    def rewritten(self, model: str | None, defaults: Members) -> bytes:
        """Return the body to send upstream.

        `model` replaces the client's (None leaves it); `defaults` (see as_members) are added
        where the client said nothing. Even one that needs no edit is written anew: its upstream
        must not read another one of two members with one name than we did.
        """
        members = {**defaults, **self._members}
        if model is not None and model != self.model:
            members["model"] = encoded_name(model)
        return join_members(members)

    def with_members(self, changes: Mapping[str, Any]) -> bytes:
        """Return the body with these top-level members, replaced or added."""
        return join_members({**self._members, **as_members(changes)})


def as_members(tree: Mapping[str, Any]) -> Members:
    """Return a JSON object's members, as `RequestBody.rewritten` takes an alias's defaults."""
    return {key: encoded(value) for key, value in tree.items()}
