import os
import sys
from collections.abc import Callable

import pytest

from tests.lab.notify import NotifySocket
from tests.lab.poll import StillNot
from tests.lab.processes import Program

DAEMON = """
import sdnotify, time
notifier = sdnotify.SystemdNotifier()
notifier.notify("STATUS=loading 40%")
notifier.notify("READY=1\\nSTATUS=serving a=b")
time.sleep(60)
"""


async def test_what_a_daemon_notifies_is_recorded_in_order_with_its_pid(
    notify_socket: NotifySocket, start_program: Callable[..., Program]
) -> None:
    daemon = start_program([sys.executable, "-c", DAEMON], notify_socket.environment)
    ready = await notify_socket.ready()
    assert ready.pid == daemon.pid
    assert ready.fields == {"READY": "1", "STATUS": "serving a=b"}
    assert notify_socket.values("STATUS") == ["loading 40%", "serving a=b"]
    assert notify_socket.received[0].at <= ready.at


async def test_what_is_not_notified_is_waited_for_and_named(notify_socket: NotifySocket) -> None:
    with pytest.raises(StillNot, match="STOPPING=1 was notified"):
        await notify_socket.field("STOPPING", "1", deadline_s=0.02)


async def test_the_path_fits_into_a_unix_socket_address(notify_socket: NotifySocket) -> None:
    assert len(os.fsencode(notify_socket.path)) < 107
