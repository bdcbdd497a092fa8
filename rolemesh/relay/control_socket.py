"""The UNIX socket on this machine by which operators reach a daemon without a key.

Who may open it is a matter of its file: its group is `rolemesh`, where the gateway may give it that.
It goes with the process: unlike the listeners it is not kept over a restart.
"""

import asyncio
import contextlib
import grp
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from rolemesh.config.tree import Program
from rolemesh.relay.application import open_application

logger = logging.getLogger(__name__)

GROUP: Final = "rolemesh"
NAME: Final = "control.sock"
MODE: Final = 0o660
BODY_BYTES: Final = 64 * 1024

_BACKLOG: Final = 64


def control_path(environ: Mapping[str, str], program: Program) -> Path | None:
    """Return where the socket of a program is to be, None where there is no directory for it.

    That is the unit's runtime directory, else one in the user's.
    """
    unit = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if unit:
        return Path(unit) / NAME
    user = environ.get("XDG_RUNTIME_DIR", "")
    return Path(user) / "rolemesh" / program / NAME if user else None


@asynccontextmanager
async def open_control_socket(
    path: Path | None, routes: list[web.RouteDef], *, takes_over: bool = False
) -> AsyncIterator[None]:
    """Answer operators at `path`; where that cannot be, say so and go without.

    `takes_over`: whoever answers there is replaced.
    """
    listener = None if path is None else _try_bind(path, takes_over=takes_over)
    if path is None or listener is None:
        yield
        return
    with _removing(path):
        async with open_application(
            routes, max_body_bytes=BODY_BYTES, admit=lambda *_: None, paths=dict
        ) as handed:
            loop = asyncio.get_running_loop()
            server = await loop.create_unix_server(handed, sock=listener)
            try:
                yield
            finally:
                server.close()


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    """Remove the socket at the end, unless it is another's by then."""
    own = path.stat().st_ino
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.stat().st_ino == own:
                path.unlink()


def _try_bind(path: Path, *, takes_over: bool) -> socket.socket | None:
    try:
        return _bind(path, takes_over=takes_over)
    except OSError as err:
        logger.warning("no control socket at %s: %s", path, err.strerror or err)
        return None


def _bind(path: Path, *, takes_over: bool) -> socket.socket:
    """Return a listening socket; what an earlier life left there is replaced.

    Raises OSError, also where another program answers there, unless this one takes over from that.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not takes_over and _somebody_answers(path):
        msg = "another program answers there"
        raise OSError(msg)
    aside = path.with_suffix(".new")  # nobody finds the place empty
    aside.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        umask = os.umask(0o177)
        try:
            listener.bind(os.fspath(aside))
        finally:
            os.umask(umask)
        with contextlib.suppress(KeyError, OSError):  # no such group, or not ours to give
            os.chown(aside, -1, grp.getgrnam(GROUP).gr_gid)
        aside.chmod(MODE)
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003  # its only parameter
        aside.replace(path)
    except OSError:
        listener.close()
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    return listener


def _somebody_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(os.fspath(path))
        except OSError:
            return False
        return True
