"""A main process that does what its arguments say, one after the other; for the child supervisor.

status:TEXT ready watchdog trigger stopping extend:SECONDS    notify the supervisor
forged                            a child of this process notifies READY=1
ignore-term                       SIGTERM has no effect from now on
wait:PATH                         go on once PATH exists
ping:SECONDS                      notify WATCHDOG=1 every so often, for ever
linger                            leave a child of the same process group behind
exit:STATUS die:SIGNAL sleep      end, or live on; `sleep` ends with status 0 on SIGTERM
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def notify(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


def forge() -> None:
    subprocess.run([sys.executable, __file__, "ready"], check=True)


def linger() -> None:
    subprocess.Popen([sys.executable, __file__, "ignore-term", "sleep"])


def wait(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


def ping(seconds: str) -> None:
    while True:
        notify("WATCHDOG=1")
        time.sleep(float(seconds))


def sleep() -> None:
    while True:
        signal.pause()


PLAIN: dict[str, Callable[[], object]] = {
    "ready": lambda: notify("READY=1"),
    "watchdog": lambda: notify("WATCHDOG=1"),
    "trigger": lambda: notify("WATCHDOG=trigger"),
    "stopping": lambda: notify("STOPPING=1"),
    "ignore-term": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "forged": forge,
    "linger": linger,
    "sleep": sleep,
}
WITH_VALUE: dict[str, Callable[[str], object]] = {
    "status": lambda text: notify(f"STATUS={text}"),
    "extend": lambda seconds: notify(f"EXTEND_TIMEOUT_USEC={int(float(seconds) * 1e6)}"),
    "wait": wait,
    "ping": ping,
    "exit": lambda status: os._exit(int(status)),
    "die": lambda number: os.kill(os.getpid(), int(number)),
}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for argument in sys.argv[1:]:
        word, has_value, value = argument.partition(":")
        if has_value:
            WITH_VALUE[word](value)
        else:
            PLAIN[word]()
