"""Rare events that an operator wants to find, or to be woken by: each has a fixed MESSAGE_ID.

The ids are random and never change; docs/journal.md lists them.
"""

from enum import Enum


class OperatorEvent(Enum):
    """An event with the MESSAGE_ID that its records have in the journal."""

    NODE_REGISTERED = "95a58da88f9f4208997728a40f3467d0"
    NODE_LOST = "337c268046b64d68be4b0f94fd77aaa9"
    NODE_BACK = "2619b2a1ef1649a28f41178825fb9944"
    RELOAD_REFUSED = "8644b624e31c4df79c972b0f2f2030c0"
    MODEL_FAILED = "7c2a15b104fe4249b9bd8c41c3aa691c"
    INSTANCE_CRASHED = "ddcc98b81247464c93c65c8febbf064f"
    INSTANCE_STUCK = "f5b75caa3ba247f5a80c98e7db90e06b"
    GPU_LOST = "846646825a6d4019bcb989b9550772f9"
    INSTANCE_WEDGED = "7913c0f507e241f8a040a143f027d3be"

    @property
    def label(self) -> str:
        """The event's name as people read and write it."""
        return self.name.lower().replace("_", "-")
