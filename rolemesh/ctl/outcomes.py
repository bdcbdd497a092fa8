"""How a verb can end: the exit codes, and the errors that lead to them.

CtlError
├── Failed          1   refused or failed
├── BadUsage        2   the options or arguments make no sense
├── NotReachable    3   there is no daemon where it was looked for, or it may not be spoken to
├── NotThere        4   no such alias, node, model, instance, request or key
└── BadConfig      78   the configuration is refused

An error's text is one line that ends with the remedy; `main` alone prints it.
"""

from typing import Final

from rolemesh.errors import RoleMeshError

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_REACHABLE: Final = 3
EXIT_NOT_THERE: Final = 4
EXIT_CONFIG: Final = 78
EXIT_INTERRUPTED: Final = 130


class CtlError(RoleMeshError):
    """A verb ends without having done what it was asked."""

    exit_code = EXIT_FAILED


class Failed(CtlError):
    """It was refused, or failed."""


class BadUsage(CtlError):
    """The options or arguments make no sense."""

    exit_code = EXIT_USAGE


class NotReachable(CtlError):
    """No daemon answers, or none may be spoken to."""

    exit_code = EXIT_NOT_REACHABLE


class NotThere(CtlError):
    """What was named does not exist."""

    exit_code = EXIT_NOT_THERE


class BadConfig(CtlError):
    """The configuration is refused; its problems have been printed."""

    exit_code = EXIT_CONFIG
