"""What errors of the bus and of systemd mean to the agent."""

from typing import Final

from rolemesh.errors import NodeError

BUS: Final = "org.freedesktop.DBus"
SYSTEMD: Final = "org.freedesktop.systemd1"
POLKIT_RULE: Final = "/usr/share/polkit-1/rules.d/50-rolemesh-node-agent.rules"

_ABSENT: Final = frozenset({
    f"{SYSTEMD}.NoSuchUnit", f"{BUS}.Error.UnknownObject", f"{BUS}.Error.UnknownInterface",
})  # fmt: skip
_REFUSED: Final = frozenset({
    f"{BUS}.Error.AccessDenied", f"{BUS}.Error.InteractiveAuthorizationRequired",
    f"{BUS}.Error.AuthFailed",
})  # fmt: skip
_UNREACHABLE: Final = frozenset({
    f"{BUS}.Error.{name}"
    for name in ("Disconnected", "NameHasNoOwner", "NoReply", "ServiceUnknown", "TimedOut")
})  # fmt: skip
_CONFLICT: Final = f"{SYSTEMD}.TransactionIsDestructive"


class BusLost(NodeError):
    """systemd cannot be reached now: the bus or PID 1 went away, or does not answer."""


class NoSuchUnit(NodeError):
    """The unit is not loaded."""


def error_of(name: str, text: str, what: str) -> NodeError:
    """Return what an error of the bus or of systemd means to the agent."""
    if name in _ABSENT:
        return NoSuchUnit(text)
    if name in _UNREACHABLE:
        return BusLost(f"systemd is not on the D-Bus system bus: {text}")
    if name == _CONFLICT:
        return NodeError("somebody else is stopping it")
    if name in _REFUSED:
        return NodeError(
            f"systemd refuses {what} ({text}): {POLKIT_RULE} allows it, to _rolemesh-agent and "
            "while rolemesh-llama@.service is installed; the package rolemesh-node-agent brings both"
        )
    return NodeError(f"systemd refuses {what}: {text} ({name})")
