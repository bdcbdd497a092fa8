"""One call of an operator API: JSON over HTTP, by TCP, TLS or a control socket."""

import errno
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from rolemesh import __version__
from rolemesh.ctl.gateway_address import GatewayAddress
from rolemesh.ctl.outcomes import BadUsage, Failed, NotReachable, NotThere

PREFIX: Final = "/v1/rolemesh/"
TIMEOUT_S: Final = 30.0
LINES_TYPE: Final = "application/x-ndjson"
MAX_REPLY_BYTES: Final = 64 * 1024 * 1024

_OF_GATEWAYS: Final = ("status",)
"""A path that every gateway has."""


class ApiError(Failed):
    """The gateway refused; `error` is its error object."""

    def __init__(self, message: str, error: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.error = error


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


class GatewayApi:
    """The operator API of the gateway at `address`; every call may raise a CtlError.

    The parts of a path need no quoting. `prefix` is what all paths begin with.
    """

    def __init__(
        self, address: GatewayAddress, *, timeout_s: float = TIMEOUT_S, prefix: str = PREFIX
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._prefix = prefix

    def get(self, *path: str, has: str, **query: str | None) -> dict[str, Any]:
        """Return what stands at `path`: an object with a list `has`."""
        try:
            reply = self._call("GET", path, query)
        except NotThere as error:
            if path != _OF_GATEWAYS:
                raise
            msg = (
                f"{self._address} is a node's agent, or a gateway of another version: name the "
                "gateway, whose port is 8000 unless somebody changed it"
            )
            raise Failed(msg) from error
        if not isinstance(reply.get(has), list):
            msg = (
                f"{self._address} answers without {has}: is it a RoleMesh gateway of this version?"
            )
            raise Failed(msg)
        return reply

    def post(self, *path: str, body: Any = None, **query: str | None) -> dict[str, Any]:
        """Have something done."""
        return self._call("POST", path, query, body)

    def delete(self, *path: str) -> dict[str, Any]:
        """End or remove something."""
        return self._call("DELETE", path, {})

    def lines(self, *path: str, body: Any, **query: str | None) -> Iterator[dict[str, Any]]:
        """Have something done that takes a while; yields what is said on the way.

        An answer that is no stream is the one thing said.
        """
        connection, target = self._found(self._target(path, query))
        with self._asking(connection, "POST", target, body, accept=LINES_TYPE) as reply:
            if reply.headers.get_content_type() != LINES_TYPE:
                yield self._result(reply.status, reply.read(MAX_REPLY_BYTES))
                return
            for line in reply:
                tree = self._result(reply.status, line)
                if isinstance(error := tree.get("error"), dict):
                    raise _refusal(error.get("status", 0), error, self._address)
                yield tree

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        query: Mapping[str, str | None],
        body: Any = None,
    ) -> dict[str, Any]:
        connection, target = self._found(self._target(path, query))
        with self._asking(connection, method, target, body, accept="application/json") as reply:
            status, said = reply.status, reply.read(MAX_REPLY_BYTES)
        return self._result(status, said)

    def _target(self, path: tuple[str, ...], query: Mapping[str, str | None]) -> str:
        if not all(path):
            msg = "a name may not be empty"
            raise BadUsage(msg)
        target = self._prefix + "/".join(quote(part, safe="") for part in path)
        given = {name: value for name, value in query.items() if value is not None}
        return f"{target}?{urlencode(given)}" if given else target

    def _found(self, target: str) -> tuple[http.client.HTTPConnection, str]:
        """Return the connection to ask by, and the target as it is asked for there."""
        if self._address.url:
            return self._by_url(), urlsplit(self._address.url).path + target
        refusals: list[OSError] = []
        for path in self._address.sockets:
            connection = _SocketConnection(path, self._timeout_s)
            try:
                connection.connect()
            except OSError as error:
                refusals.append(error)
                continue
            return connection, target
        raise _no_socket(self._address.sockets, refusals)

    def _by_url(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._address.url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        try:
            context = ssl.create_default_context(cafile=self._address.ca_file)
        except (OSError, ssl.SSLError) as error:
            msg = f"{self._address.ca_file} holds no certificates that can be used: {error}"
            raise NotReachable(msg) from error
        return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)

    @contextmanager
    def _asking(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        body: Any,
        *,
        accept: str,
    ) -> Iterator[http.client.HTTPResponse]:
        fields = {"Accept": accept, "User-Agent": f"rolemeshctl/{__version__}"}
        if self._address.key is not None:
            fields["Authorization"] = f"Bearer {self._address.key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with closing(connection):
                connection.request(method, target, body=data, headers=fields)
                yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self._address, error) from error

    def _result(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            tree = json.loads(body)
        except ValueError:
            tree = None
        if isinstance(tree, dict) and status < http.HTTPStatus.BAD_REQUEST:
            return tree
        error = tree.get("error") if isinstance(tree, dict) else None
        if not isinstance(error, dict):
            msg = f"{self._address} answered with status {status} and no JSON: is it a RoleMesh gateway?"
            raise Failed(msg)
        raise _refusal(status, error, self._address)


def _refusal(status: int, error: Mapping[str, Any], address: GatewayAddress) -> Failed | NotThere:
    said = str(error.get("message", "no reason given"))
    if status == http.HTTPStatus.NOT_FOUND:
        return NotThere(said)
    if status == http.HTTPStatus.UNAUTHORIZED:
        remedy = "give an admin key with --key-file or ROLEMESH_KEY"
        return ApiError(f"{address} wants a key ({said}); {remedy}", error)
    if status == http.HTTPStatus.FORBIDDEN:
        remedy = "use a key with admin: true, or the control socket of the gateway's own host"
        return ApiError(f"{address} refuses ({said}); {remedy}", error)
    return ApiError(f"refused: {said}", error)


def _no_socket(paths: tuple[Path, ...], refusals: list[OSError]) -> NotReachable:
    for path, refusal in zip(paths, refusals, strict=True):
        if isinstance(refusal, PermissionError):
            return NotReachable(
                f"you may not use {path}: join the group rolemesh (sudo usermod -aG rolemesh "
                "$USER, then log in again), or use sudo"
            )
    where = " and ".join(map(str, paths))
    if any(refusal.errno == errno.ECONNREFUSED for refusal in refusals):
        return NotReachable(
            f"no gateway answers at {where}; `systemctl status rolemesh-gateway` says why"
        )
    return NotReachable(
        f"no gateway runs on this host (there is no {where}): start it with `systemctl start "
        "rolemesh-gateway`, or name another host's with --url or ROLEMESH_URL"
    )


def _unreachable(address: GatewayAddress, error: Exception) -> NotReachable:
    why = str(getattr(error, "strerror", None) or error) or type(error).__name__
    if isinstance(error, TimeoutError):
        why = "it did not answer in time"
    remedy = "is it running, and is that its address?"
    if "certificate" in why.lower():
        remedy = "name the authority that signed its certificate with --ca-file"
    return NotReachable(f"{address} cannot be reached: {why}; {remedy}")
