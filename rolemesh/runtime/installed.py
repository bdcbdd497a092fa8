"""What of RoleMesh lies on this host's disk: after an upgrade another program than what runs."""

import re
from pathlib import Path
from typing import Final

import rolemesh
from rolemesh.runtime.handover import is_replaced
from rolemesh.runtime.successor import program_identity

SOURCE: Final = Path(rolemesh.__file__)
"""Where `__version__` is written: the one place that says the version."""

_VERSION: Final = re.compile(r'^__version__(?:\s*:[^=]+)?\s*=\s*"([^"]{1,64})"', re.MULTILINE)
_MAX_CHARACTERS: Final = 16 * 1024
_LOADED: Final = program_identity()


def is_program_replaced() -> bool:
    """Tell whether this process runs another program than a start would, of whatever version."""
    return is_replaced(_LOADED, program_identity())


def installed_version(source: Path = SOURCE) -> str | None:
    """Return the version of the files that a start would run, None where they are gone.

    They are gone where the package was removed, or where another minor version of Python has other
    directories.
    """
    try:
        with source.open(encoding="utf-8", errors="replace") as file:
            found = _VERSION.search(file.read(_MAX_CHARACTERS))
    except OSError:
        return None
    return found[1] if found else None
