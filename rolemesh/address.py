"""Where an upstream listens: a TCP port or a UNIX socket, with the path prefix to keep."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamAddress:
    """One place to connect to; `authority` is what the Host header says, `name` what people read.

    Exactly one of `socket_path` and (`host`, `port`) is used: `socket_path` when it is not empty.
    With `server_name` it is spoken to in TLS, and shows a certificate of that name, whatever address
    `host` was resolved to; `tls` verifies it. `key` tells apart whose connections may be shared.
    """

    host: str = ""
    port: int = 0
    socket_path: str = ""
    prefix: str = ""
    authority: str
    server_name: str = ""
    called: str = ""
    tls: "ssl.SSLContext | None" = field(default=None, repr=False)
    name: str = field(init=False, repr=False, compare=False)
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scheme = "https" if self.server_name else "http"
        tcp = f"{scheme}://{self.authority}{self.prefix}"
        own = f"unix:{self.socket_path}" if self.socket_path else tcp
        object.__setattr__(self, "name", self.called or own)
        # A context lives as long as the addresses, and with them the connections, that have it.
        object.__setattr__(self, "key", f"{own} {self.host} {id(self.tls) if self.tls else ''}")

    @classmethod
    def unix(cls, socket_path: str, *, called: str = "") -> "UpstreamAddress":
        """Return the address of a UNIX stream socket; `called` is what people know it by."""
        return cls(socket_path=socket_path, authority="localhost", called=called)

    @classmethod
    def parse_url(cls, url: str) -> "UpstreamAddress":
        """Read `http[s]://host[:port][/prefix]`; raises ValueError naming what is wrong."""
        parts = urlsplit(url)
        default_port = _DEFAULT_PORTS.get(parts.scheme)
        if default_port is None or not parts.hostname:
            msg = f"expected http[s]://HOST[:PORT][/PREFIX], found {url!r}"
            raise ValueError(msg)
        if parts.query or parts.fragment or parts.username is not None:
            msg = f"a base URL has no query, fragment or user part: {url!r}"
            raise ValueError(msg)
        return cls(
            host=parts.hostname,
            port=parts.port or default_port,
            prefix=parts.path.rstrip("/"),
            authority=parts.netloc,
            server_name=parts.hostname if parts.scheme == "https" else "",
        )

    def verified_by(self, tls: "ssl.SSLContext") -> "UpstreamAddress":
        """Return this address with what verifies it; `server_name` must be set."""
        return self if self.tls is tls else replace(self, tls=tls)

    def __str__(self) -> str:
        return self.name
