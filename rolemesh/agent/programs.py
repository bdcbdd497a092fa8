"""Which programs a start would run on this host, and whether an instance still runs another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rolemesh.llama.build import Builds, Signature, file_signature
from rolemesh.llama.server_facts import ServerFacts
from rolemesh.runtime.installed import installed_version, is_program_replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What is installed now.

    `rolemesh` is its version, None where its files are gone; `is_replaced`: it is another program
    than this one. `llama_server` is the program that would be executed, with what changes with its
    file and its build ("": it has not been asked, or does not say).
    """

    rolemesh: str | None = None
    is_replaced: bool = False
    llama_server: Path | None = None
    signature: Signature | None = None
    build: str = ""

    @classmethod
    def now(cls, llama_server: Path | None, builds: Builds) -> Self:
        """Look at the disk; `builds` is what llama-servers said of themselves, none is asked."""
        signature = None if llama_server is None else file_signature(llama_server)
        return cls(
            rolemesh=installed_version(),
            is_replaced=is_program_replaced(),
            llama_server=llama_server,
            signature=signature,
            build=builds.remembered(llama_server) if llama_server and signature else "",
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `host` of reports says of it."""
        path = self.llama_server
        return {
            "installed_version": self.rolemesh,
            "program_replaced": self.is_replaced,
            "llama_server": str(path) if path else None,
            "installed_build": self.build or None,
        }

    def differ_from(self, facts: ServerFacts) -> bool | None:
        """Tell whether a start would run another llama-server than this one; None: not known."""
        if self.signature is None:
            return None
        if facts.signature:
            return (facts.program, facts.signature) != (str(self.llama_server), self.signature)
        return facts.build != self.build if facts.build and self.build else None
