"""Certificates for tests, made by the openssl program: an authority, and what it has signed."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_TIMEOUT_S = 20
LOCAL_NAMES = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate and its key, each in a PEM file."""

    cert_file: Path
    key_file: Path

    @property
    def settings(self) -> dict[str, str]:
        """Return it as a configuration's `tls` says it."""
        return {"cert_file": str(self.cert_file), "key_file": str(self.key_file)}


class Authority:
    """A certificate authority whose files are in `folder`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._name = name
        self._own = self._files(name)
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-days", "30", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:true"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-keyout", self._own.key_file, "-out", self._own.cert_file),
        )

    @property
    def ca_file(self) -> Path:
        """The authority's own certificate."""
        return self._own.cert_file

    def sign(
        self, name: str = "server", names: Sequence[str] = LOCAL_NAMES, *, days: int = 30
    ) -> Certificate:
        """Return a new certificate for these names; one of negative `days` has expired."""
        made, request = self._files(name), self._folder / f"{name}.csr"
        _openssl(
            *("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", made.key_file),
            *("-addext", f"subjectAltName={','.join(names)}", "-out", request),
        )
        _openssl(
            *("x509", "-req", "-in", request, "-copy_extensions", "copy", "-days", str(days)),
            *("-CA", self.ca_file, "-CAkey", self._own.key_file, "-out", made.cert_file),
        )
        return made

    def _files(self, name: str) -> Certificate:
        return Certificate(
            cert_file=self._folder / f"{self._name}-{name}.pem",
            key_file=self._folder / f"{self._name}-{name}.key",
        )


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=_TIMEOUT_S)
