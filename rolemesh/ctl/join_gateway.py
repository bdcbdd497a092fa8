"""The gateway that a node shall join, asked with the node's key: is it one, does it take the key.

Every call may raise a CtlError whose text says which of these it is, and what helps.
"""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from rolemesh import __version__
from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import GatewayLink
from rolemesh.ctl.outcomes import Failed, NotReachable

TIMEOUT_S: Final = 10.0
MAX_REPLY_BYTES: Final = 4 << 20

_TITLE: Final = "RoleMesh gateway"
"""What a gateway's /openapi.json is called."""


class JoinGateway:
    """A gateway by its URL; `ca_file`: who signed its certificate, None: the system knows."""

    def __init__(
        self, url: str, key: str | None, ca_file: Path | None, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Raise Failed for a `ca_file` that cannot be used."""
        self.url = url
        self.address = UpstreamAddress.parse_url(url)
        self._key = key
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._tls = self._context() if self.address.server_name else None

    @classmethod
    def of(cls, link: GatewayLink) -> Self:
        """Return the gateway of a node's settings."""
        return cls(link.url, link.api_key, None if link.tls is None else link.tls.ca_file)

    def require_gateway(self) -> None:
        """Raise unless a RoleMesh gateway answers."""
        status, tree = self._ask("/openapi.json")
        info = tree.get("info")
        if status == HTTPStatus.OK and isinstance(info, Mapping) and info.get("title") == _TITLE:
            return
        _, health = self._ask("/health")
        if "version" in health and health.get("status") == "ok":
            msg = (
                f"{self.url} is a node's agent, or a gateway of another version: name the gateway, "
                "whose port is 8000 unless somebody changed it"
            )
            raise Failed(msg)
        msg = f"{self.url} answers, but is no RoleMesh gateway: is that its address and port?"
        raise Failed(msg)

    def node(self, node_id: str) -> Mapping[str, Any] | None:
        """Return what the gateway knows of a node, None when nothing."""
        status, tree = self._ask(f"/v1/nodes/{quote(node_id, safe='')}")
        if status == HTTPStatus.OK:
            return tree
        error = tree.get("error")
        said = str(error.get("message", "")) if isinstance(error, Mapping) else ""
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status == HTTPStatus.UNAUTHORIZED and not self._key:
            msg = (
                f"{self.url} wants a key ({said}), and this node has no key there: `sudo rolemeshctl "
                f"node join {self.url}`, with the token that `gateway invite` there prints"
            )
            raise Failed(msg)
        if status == HTTPStatus.UNAUTHORIZED:
            msg = (
                f"{self.url} does not take this token ({said}): it may have been revoked, or be "
                "another gateway's; `sudo rolemeshctl gateway invite` there makes a new one"
            )
            raise Failed(msg)
        msg = f"{self.url} refuses this host: {said or f'status {status}'}"
        raise Failed(msg)

    def _ask(self, path: str) -> tuple[int, Mapping[str, Any]]:
        """Return status and object of the answer, an empty one for anything else."""
        fields = {
            "Accept": "application/json",
            "User-Agent": f"rolemeshctl/{__version__}",
        }
        if self._key:
            fields["Authorization"] = f"Bearer {self._key}"
        host, port = self.address.host, self.address.port
        connection = (
            http.client.HTTPConnection(host, port, timeout=self._timeout_s)
            if self._tls is None
            else http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls)
        )
        try:
            with closing(connection):
                connection.request("GET", self.address.prefix + path, headers=fields)
                reply = connection.getresponse()
                return reply.status, _object(reply.read(MAX_REPLY_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise NotReachable(self._explained(error)) from error

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as error:
            msg = f"{self._ca_file} holds no certificates that can be used: {error}"
            raise Failed(msg) from error
        if self._ca_file is not None:
            # As the agent does: the file may hold the gateway's own certificate.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def _explained(self, error: Exception) -> str:
        """Say why the gateway was not reached, and what helps."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {self.url} is not accepted: {error.verify_message}; name the "
                "authority that signed it with --ca-file, and the gateway as its certificate does"
            )
        if isinstance(error, ssl.SSLError):
            plain = self.url.replace("https://", "http://", 1)
            return f"{self.url} does not speak TLS ({error.reason}): try {plain}"
        if isinstance(error, socket.gaierror):
            return f"the name {self.address.host} is not known here: {error.strerror}"
        if isinstance(error, ConnectionRefusedError):
            return (
                f"nobody listens at {self.url}. A gateway listens on its own host only until it is "
                "opened: there, `systemctl status rolemesh-gateway` says where it listens, and "
                "`sudo rolemeshctl gateway invite` how to open it"
            )
        if isinstance(error, TimeoutError):
            return (
                f"{self.url} did not answer within {self._timeout_s:g} s: is a firewall in between?"
            )
        if isinstance(error, http.client.HTTPException | ConnectionResetError):
            tls = self.url.replace("http://", "https://", 1)
            remedy = f"if it speaks TLS: {tls}" if self._tls is None else "is it a gateway?"
            return f"{self.url} does not answer in HTTP; {remedy}"
        return f"{self.url} cannot be reached: {getattr(error, 'strerror', None) or error}"


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
