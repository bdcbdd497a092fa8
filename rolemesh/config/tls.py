"""TLS settings -> ssl.SSLContext, and what is wrong with the files they name.

At least TLS 1.2, and HTTP/1.1 within it. A certificate that has expired is worth a warning only:
those who do not check it go on being served.
"""

import os
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from rolemesh.config.keys import is_exposed
from rolemesh.config.settings import ClientTls, ServerTls
from rolemesh.config.x509 import read_validity

_CERTIFICATE: Final = re.compile(
    "-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL
)
_MAX_BYTES: Final = 4 << 20
_DER_SEQUENCE: Final = "0"


class TlsFileError(Exception):
    """A file cannot be used; `key` is the setting that names it, the text says why and what helps."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFault:
    """Something wrong, or merely doubtful, with the file that the setting `key` names."""

    key: str
    message: str
    is_warning: bool = False


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """Return what a daemon accepts with; raises TlsFileError."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_chain(context, tls.cert_file, tls.key_file)
    if tls.client_ca_file is not None:
        _load_authorities(context, "client_ca_file", tls.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """Return what a server is called with; raises TlsFileError."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, "ca_file", tls.ca_file)
        # A file may also hold the server's own certificate, or one between it and the root.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if tls.cert_file is not None and tls.key_file is not None:
        _load_chain(context, tls.cert_file, tls.key_file)
    return context


def build_context(tls: ServerTls | ClientTls) -> ssl.SSLContext:
    """Return what settings ask for; raises TlsFileError."""
    return server_context(tls) if isinstance(tls, ServerTls) else client_context(tls)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load_chain(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    _read_certificates("cert_file", cert_file)
    _require_key(key_file)
    try:
        # Without a password OpenSSL would ask for it on the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as err:
        if err.reason == "KEY_VALUES_MISMATCH":
            msg = f"{key_file} is not the key of the certificate in {cert_file}"
            raise TlsFileError("key_file", msg) from err
        msg = f"{cert_file} with {key_file} cannot be used: {_reason(err)}"
        raise TlsFileError("cert_file", msg) from err
    except OSError as err:
        msg = f"{cert_file} with {key_file} cannot be read: {err.strerror}"
        raise TlsFileError("cert_file", msg) from err


def _load_authorities(context: ssl.SSLContext, key: str, file: Path) -> None:
    try:
        context.load_verify_locations(cadata="\n".join(_read_certificates(key, file)))
    except ssl.SSLError as err:
        msg = f"{file} holds a certificate that cannot be used: {_reason(err)}"
        raise TlsFileError(key, msg) from err


def _read_certificates(key: str, file: Path) -> list[str]:
    """Return the certificates in a file, at least one."""
    text = _read(key, file)
    found = _CERTIFICATE.findall(text)
    if not found:
        remedy = ""
        if text.startswith(_DER_SEQUENCE):
            remedy = f"; convert it: openssl x509 -inform der -in {file} -out {file}.pem"
        msg = f"{file} holds no certificate in PEM form (BEGIN CERTIFICATE){remedy}"
        raise TlsFileError(key, msg)
    return found


def _require_key(file: Path) -> None:
    text = _read("key_file", file)
    if "PRIVATE KEY-----" not in text:
        msg = f"{file} holds no private key in PEM form (BEGIN PRIVATE KEY)"
        raise TlsFileError("key_file", msg)
    if "ENCRYPTED" in text:
        msg = (
            f"{file} is encrypted, and nobody is there to type its passphrase; "
            f"write it without one: openssl pkey -in {file} -out {file}.plain"
        )
        raise TlsFileError("key_file", msg)


def _read(key: str, file: Path) -> str:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            return (opened.read(_MAX_BYTES) or b"").decode("latin-1")
    except PermissionError as err:
        msg = (
            f"{file} may not be read by this program (user id {os.geteuid()}); let its group read "
            f"the file, and pass the directories above it: chgrp GROUP {file}; chmod g+r {file}"
        )
        raise TlsFileError(key, msg) from err
    except OSError as err:
        msg = f"{file} cannot be read: {err.strerror}"
        raise TlsFileError(key, msg) from err


def _reason(err: ssl.SSLError) -> str:
    """Return OpenSSL's EE_KEY_TOO_SMALL as words."""
    return (err.reason or str(err)).replace("_", " ").lower()


def find_faults(tls: ServerTls | ClientTls) -> Iterator[TlsFault]:
    """Yield everything wrong with the files that settings name, and what is doubtful about them."""
    errors = list(_errors(tls))
    yield from (TlsFault(key=error.key, message=str(error)) for error in errors)
    if errors or tls.cert_file is None or tls.key_file is None:
        return
    message = _out_of_date(tls.cert_file)
    if message:
        yield TlsFault(key="cert_file", message=message, is_warning=True)
    if is_exposed(tls.key_file):
        message = f"every user of this machine can read this key; run: chmod o-r {tls.key_file}"
        yield TlsFault(key="key_file", message=message, is_warning=True)


def _errors(tls: ServerTls | ClientTls) -> Iterator[TlsFileError]:
    """Yield what is wrong with each file, or else with all of them together."""
    certificates = [
        (key, file)
        for key in ("client_ca_file", "ca_file", "cert_file")
        if (file := getattr(tls, key, None)) is not None
    ]
    checks: list[Callable[[], object]] = [
        partial(_read_certificates, *each) for each in certificates
    ]
    if tls.key_file is not None:
        checks.append(partial(_require_key, tls.key_file))
    alone = [error for check in checks if (error := _caught(check))]
    error = None if alone else _caught(partial(build_context, tls))
    yield from alone or ((error,) if error else ())


def _caught(check: Callable[[], object]) -> TlsFileError | None:
    try:
        check()
    except TlsFileError as err:
        return err
    return None


def _out_of_date(cert_file: Path) -> str:
    """Return in which way the certificate is not valid now; "" when it is."""
    try:
        validity = read_validity(ssl.PEM_cert_to_DER_cert(_read_certificates("", cert_file)[0]))
    except ValueError:
        return ""  # OpenSSL has read it: not for us to judge
    now = datetime.now(UTC)
    if validity.end < now:
        return f"{cert_file} expired on {validity.end:%Y-%m-%d}: callers that check it will refuse"
    if validity.begin > now:
        return f"{cert_file} is valid from {validity.begin:%Y-%m-%d} only (is the clock right?)"
    return ""
