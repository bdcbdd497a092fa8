"""The error tree: one family per cause, each error carrying fields rather than prose.

RoleMeshError
├── ConfigError            the configuration as a whole is refused: all problems at once (exit 78)
├── StartError             a daemon cannot start for a reason outside its configuration (exit 1)
├── RequestError           the client's fault; never retried
│   ├── BadRequest             400
│   ├── NotAuthenticated       401
│   ├── NotAllowed             403
│   ├── UnknownAlias           404 model_not_found
│   ├── UnknownPath            404
│   ├── MethodNotAllowed       405
│   ├── BodyTooLarge           413
│   ├── HeadTooLarge           431
│   └── RequestTooSlow         408
├── CapacityError          come back later
│   ├── QueueFull              429
│   ├── QueueTimeout           429
│   ├── RateLimited            429
│   ├── SlotsBusy              503 slots_busy (agent to gateway)
│   └── Unavailable            503: known, but not now, with a machine-readable reason
├── UpstreamError          the other side's fault; carries the upstream's name
│   ├── ConnectFailed          502: nothing was sent
│   │   └── NotVerified            502: its certificate is not accepted
│   ├── UpstreamBroke          502: the connection died before the first byte
│   │   └── ReplyTooLarge          502: its answer is larger than is read of it
│   ├── StreamBroken           502: the connection died after the first byte
│   ├── UpstreamTimeout        504: which timeout
│   └── RequestCrashesUpstream 502: the same body has broken two upstreams before
├── Cancelled              503: an operator ended the request, or took its key away
└── NodeError              a node cannot do what was asked
    └── UnitFailed             an instance's unit did not become ready

`relay.replies` alone maps these to HTTP; `runtime.daemon` alone maps them to exit codes.
"""

from dataclasses import dataclass


class RoleMeshError(Exception):
    """Root of everything RoleMesh raises on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with the configuration.

    `where` is `FILE:LINE`, `FILE` or the name of an option; `key` the dotted key, or "" when the
    problem concerns the file as a whole; `message` says what was expected, what was found and,
    where there is one, the remedy.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class ConfigError(RoleMeshError):
    """The configuration is refused; `problems` lists everything wrong with it.

    `warnings` are what would have been said about it had it been accepted.
    """

    def __init__(self, problems: tuple[Problem, ...], warnings: tuple[Problem, ...] = ()) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.warnings = warnings


class StartError(RoleMeshError):
    """A daemon cannot start although its configuration is valid; the text names cause and remedy."""


class RequestError(RoleMeshError):
    """The client asked for something that cannot be done as asked."""


class BadRequest(RequestError):
    """The request is malformed; `param` is the field at fault, if one is."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class NotAuthenticated(RequestError):
    """No key, or a key nobody here knows."""


class NotAllowed(RequestError):
    """The caller is known (or its address is), but may not do this."""


class UnknownAlias(RequestError):
    """No such alias (on a gateway) or model_id (on an agent)."""

    def __init__(self, alias: str, known: tuple[str, ...]) -> None:
        super().__init__(f"The model '{alias}' does not exist")
        self.alias = alias
        self.known = known


class UnknownInstance(RequestError):
    """No such instance on this agent."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(
            f"there is no instance '{name}' here; there are: {', '.join(known) or 'none'}"
        )
        self.known = known


class UnknownPath(RequestError):
    """No such path."""


class MethodNotAllowed(RequestError):
    """The path exists, but not with this method; `allowed` are those it has."""

    def __init__(self, message: str, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class BodyTooLarge(RequestError):
    """The request body is larger than `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class HeadTooLarge(RequestError):
    """The request head is larger than `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request head is larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class RequestTooSlow(RequestError):
    """The request did not arrive in time."""


class CapacityError(RoleMeshError):
    """Nothing is wrong with the request; there is no room for it now."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(CapacityError):
    """The queue for this alias is full."""


class QueueTimeout(CapacityError):
    """The request waited in the queue as long as it may."""


class RateLimited(CapacityError):
    """The caller's key has had the requests it may have in a minute."""


class SlotsBusy(CapacityError):
    """Every slot of this node's instances of the model is taken."""


class Unavailable(CapacityError):
    """The alias or model is known but cannot answer now; `reason` is machine-readable."""

    def __init__(self, message: str, *, reason: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason


class UpstreamError(RoleMeshError):
    """An upstream did not do its part; `upstream` names it."""

    def __init__(self, message: str, *, upstream: str) -> None:
        super().__init__(message)
        self.upstream = upstream


class ConnectFailed(UpstreamError):
    """No connection could be made; nothing was sent."""


class NotVerified(ConnectFailed):
    """The upstream's certificate is not accepted."""


class UpstreamBroke(UpstreamError):
    """The upstream closed or spoke nonsense before the first byte of its answer."""


class ReplyTooLarge(UpstreamBroke):
    """The upstream's answer is larger than what is read of it."""


class StreamBroken(UpstreamError):
    """The upstream broke off after the first byte of its answer was passed on."""


class UpstreamTimeout(UpstreamError):
    """The upstream was too slow; `limit` names the timeout (first_byte_s, idle_s, total_s)."""

    def __init__(self, message: str, *, upstream: str, limit: str) -> None:
        super().__init__(message, upstream=upstream)
        self.limit = limit

    @classmethod
    def by(cls, upstream: str, limit: str, allowed_s: float) -> "UpstreamTimeout":
        """Return the error for an upstream that exceeded a limit of `allowed_s` seconds."""
        said = {
            "first_byte_s": f"no first byte within {allowed_s:g} s",
            "idle_s": f"nothing for {allowed_s:g} s in the middle of the answer",
            "total_s": "the request took longer than it may",
        }[limit]
        return cls(f"{upstream}: {said} ({limit})", upstream=upstream, limit=limit)


class RequestCrashesUpstream(UpstreamError):
    """A body like this has broken several upstreams: it is not sent to another one."""


class Cancelled(RoleMeshError):
    """Somebody with the right to do so ended the request; the text says who."""


class NodeError(RoleMeshError):
    """A node cannot do what was asked of it."""


class UnitStuck(NodeError):
    """A unit is over, but processes of it are left that cannot be killed."""

    def __init__(self, instance: str, pids: tuple[int, ...]) -> None:
        super().__init__(f"processes cannot be killed: {', '.join(map(str, pids))}")
        self.instance = instance
        self.pids = pids


class UnitFailed(NodeError):
    """An instance's unit did not become ready; `result` is systemd's word for how it ended."""

    def __init__(self, instance: str, *, result: str, status_text: str) -> None:
        super().__init__(f"{instance} did not become ready ({result}): {status_text}")
        self.instance = instance
        self.result = result
        self.status_text = status_text
