"""Stops one thread of a process that runs on otherwise, as a GPU that never answers does."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000  # __WALL: whoever's child it is


@contextlib.contextmanager
def stopped(thread: int) -> Iterator[None]:
    """Keep a thread from running for the length of the block.

    When it is killed meanwhile, its parent learns of that at the end of the block only.
    """
    _ptrace(PTRACE_SEIZE, thread)
    _ptrace(PTRACE_INTERRUPT, thread)
    os.waitpid(thread, WALL)
    try:
        yield
    finally:
        try:
            _ptrace(PTRACE_DETACH, thread)
        except ProcessLookupError:  # it was killed
            os.waitpid(thread, WALL)


def _ptrace(request: int, thread: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    call.restype = ctypes.c_long
    if call(request, thread, None, None) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
