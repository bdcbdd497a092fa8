"""Requests that break whatever they are sent to are not sent on and on; pure.

A body after which two llama-servers (or the same one twice) were gone is refused for a while. Of
like requests that were under way together, which one crash ends together, one counts. What is kept
of a body is a digest.
"""

import hashlib
from collections import OrderedDict
from typing import Final

from rolemesh.relay.members import Buffer

BREAKS: Final = 2
"""So many broken upstreams are no accident any more."""

REFUSED_FOR_S: Final = 600.0
MAX_BODIES: Final = 1024


class CrashGuard:
    """Bodies that upstreams broke on lately; the longest known is forgotten first."""

    def __init__(self) -> None:
        self.known: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """How often each one, by its digest, broke something, and when last; only to look at."""

    def broke(self, body: Buffer, sent_at: float, now: float) -> bool:
        """Note that an upstream broke on a body sent to it at that time.

        Tells whether that body is to be refused from now on.
        """
        digest = _digest(body)
        breaks, broke_at = self.known.pop(digest, (0, -REFUSED_FOR_S))
        if now >= broke_at + REFUSED_FOR_S:
            breaks = 0
        if not breaks or sent_at > broke_at:
            breaks, broke_at = breaks + 1, now
        self.known[digest] = (breaks, broke_at)
        if len(self.known) > MAX_BODIES:
            self.known.popitem(last=False)
        return breaks >= BREAKS

    def refuses(self, body: Buffer, now: float) -> bool:
        """Tell whether a body is not to be sent anywhere."""
        known = self.known.get(_digest(body))
        if known is None:
            return False
        breaks, broke_at = known
        return breaks >= BREAKS and now < broke_at + REFUSED_FOR_S


def _digest(body: Buffer) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
