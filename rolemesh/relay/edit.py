"""The request body: the few fields routing reads, and the edit that rewrites them.

Every value that is not rewritten reaches the upstream byte for byte (see members).
"""

from collections.abc import Iterable, Mapping
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

MAX_COMPLETIONS: Final = 4096


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

    @property
    def members(self) -> Members:
        """The members of the body as they were written; only to look at."""
        return self._members

    def get(self, key: str) -> Any:
        """Return a top-level value; of several with one key the last counts, as in json."""
        member = self._members.get(key)
        try:
            return None if member is None else decoded(member)
        except RecursionError as err:
            msg = f"{key} is nested too deeply"
            raise BadRequest(msg, param=key) from err

    def get_word(self, key: str) -> Any:
        """Return a short top-level value, of which there are few."""
        member = self._members.get(key)
        return None if member is None else decoded_word(member)

    def forget(self) -> None:
        """Let go of everything but `model` and `stream`."""
        self._members = {}

    def completions(self, prompts_keys: Iterable[str], choices_keys: Iterable[str]) -> int:
        """Return how many completions are asked for: prompts x choices, each at least 1.

        Of several keys the largest counts. Raises BadRequest when there are more than
        MAX_COMPLETIONS.
        """
        members = self._members
        prompts = choices = 1
        for key in choices_keys:
            if key in members:
                number = self.get(key)
                if isinstance(number, int | float) and number > choices:
                    choices = int(min(number, MAX_COMPLETIONS + 1))
        for key in prompts_keys:
            if key in members and is_list(members[key]):
                listed = self.get(key)
                if listed and not isinstance(listed[0], int):
                    prompts = max(prompts, len(listed))  # numbers are one prompt, given as tokens
        count = prompts * choices
        if count > MAX_COMPLETIONS:
            msg = (
                f"the request asks for {count} completions at once, "
                f"at most {MAX_COMPLETIONS} are taken"
            )
            raise BadRequest(msg, param="n" if choices > 1 else None)
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
