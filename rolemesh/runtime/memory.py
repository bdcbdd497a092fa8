"""How a daemon's process keeps memory: what many requests take and give back stays with it.

The C library gives the end of the heap back to the system whenever a larger block there is freed,
and takes it again for the next request's body, page by page, which costs more than all else that is
done with that body. The garbage collector looks at everything there is, again and again, of which
next to nothing is garbage: requests leave no cycles.
"""

import ctypes
import gc
from typing import Final

# mallopt(3); the numbers are those of glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3

KEPT_BYTES: Final = 16 * 1024 * 1024
"""How much of what was freed may stay with the process."""

LARGE_BYTES: Final = 4 * 1024 * 1024
"""Blocks from this size on go back to the system at once."""

_STEP_BYTES: Final = 1024 * 1024
_COLLECT_AFTER: Final = 50_000


def keep_freed_memory() -> None:
    """Keep memory for the next request; without effect where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(_M_TOP_PAD, _STEP_BYTES)
    mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def set_aside_what_is_there() -> None:
    """Have the collector leave alone what a daemon has at its start, and look rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
