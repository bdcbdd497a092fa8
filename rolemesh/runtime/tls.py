"""The TLS contexts of the settings in force: replaced by a reload, and only where a file changed."""

import hashlib
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import ClientTls, ServerTls
from rolemesh.config.tls import TlsFileError, build_context
from rolemesh.errors import ConfigError, Problem

_SYSTEM: Final = ClientTls()


class TlsContexts:
    """What daemons accept and connect with. Connections keep the context they began with."""

    def __init__(self) -> None:
        self._contexts: dict[ServerTls | ClientTls, tuple[bytes, ssl.SSLContext]] = {}

    def renewed(self, wanted: Iterable[ServerTls | ClientTls | None]) -> "TlsContexts":
        """Return the contexts for these settings, those as they are whose files are unchanged.

        Raises ConfigError with everything that is wrong with the files.
        """
        new = TlsContexts()
        problems: list[Problem] = []
        for tls in wanted:
            if tls is None:
                continue
            state = _state_of_files(tls)
            known = self._contexts.get(tls)
            if known is not None and known[0] == state:
                new._contexts[tls] = known
                continue
            try:
                new._contexts[tls] = (state, build_context(tls))
            except TlsFileError as err:
                problems.append(Problem(where="", key=f"tls.{err.key}", message=str(err)))
        if problems:
            raise ConfigError(tuple(dict.fromkeys(problems)))
        return new

    def server(self, tls: ServerTls | None) -> ssl.SSLContext | None:
        """Return what to accept with; None: plain HTTP."""
        return None if tls is None else self._contexts[tls][1]

    def secured(self, address: UpstreamAddress, tls: ClientTls | None) -> UpstreamAddress:
        """Return an address with what verifies it, where it is spoken to in TLS.

        Without settings of its own that is the system's authorities, and with settings that are in
        force no more, too: whoever still asks is about to end.
        """
        if not address.server_name:
            return address
        found = self._contexts.get(tls or _SYSTEM) or self._contexts.get(_SYSTEM)
        if found is None:
            found = self._contexts[_SYSTEM] = (_state_of_files(_SYSTEM), build_context(_SYSTEM))
        return address.verified_by(found[1])


def _state_of_files(tls: ServerTls | ClientTls) -> bytes:
    """Return what is another one after any of the files has changed."""
    digest = hashlib.sha256()
    for key in tls.__dataclass_fields__:
        file: Path | None = getattr(tls, key)
        digest.update(_content(file) if file is not None else b"-")
    if isinstance(tls, ClientTls) and tls.ca_file is None:
        for name in ssl.get_default_verify_paths()[:2]:
            digest.update(_changed_at(name))
    return digest.digest()


def _changed_at(name: str | None) -> bytes:
    try:
        return str(Path(name).stat().st_mtime_ns if name else "").encode()
    except OSError as err:
        return str(err).encode()


def _content(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as err:
        return str(err).encode()
