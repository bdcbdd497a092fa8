"""Where an upstream listens: a TCP port or a UNIX socket, with the path prefix to keep."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamAddress:
    """One place to connect to; `authority` is what the Host header says, `name` what people read.

    Exactly one of `socket_path` and (`host`, `port`) is used: `socket_path` when it is not empty.
    """

    host: str = ""
    port: int = 0
    socket_path: str = ""
    prefix: str = ""
    authority: str
    name: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tcp = f"http://{self.authority}{self.prefix}"
        name = f"unix:{self.socket_path}" if self.socket_path else tcp
        object.__setattr__(self, "name", name)

    @classmethod
    def unix(cls, socket_path: str) -> "UpstreamAddress":
        """Return the address of a UNIX stream socket."""
        return cls(socket_path=socket_path, authority="localhost")

    @classmethod
    def parse_url(cls, url: str) -> "UpstreamAddress":
        """Read `http://host[:port][/prefix]`; raises ValueError naming what is wrong."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            msg = f"expected http://HOST[:PORT][/PREFIX], found {url!r}"
            raise ValueError(msg)
        if parts.query or parts.fragment or parts.username is not None:
            msg = f"a base URL has no query, fragment or user part: {url!r}"
            raise ValueError(msg)
        return cls(
            host=parts.hostname,
            port=parts.port or 80,
            prefix=parts.path.rstrip("/"),
            authority=parts.netloc,
        )

    def __str__(self) -> str:
        return self.name
