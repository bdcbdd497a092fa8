#!/usr/bin/env python3
"""Executes a program as systemd does, with descriptors that it passes: from 3 on, by name.

with_fds.py NAME=FD ... -- PROGRAM ARGUMENT ...
"""

import fcntl
import os
import sys

FIRST_FD = 3
OUT_OF_THE_WAY = 100


def main() -> None:
    end = sys.argv.index("--")
    named = [each.rpartition("=") for each in sys.argv[1:end]]
    given = [int(fd) for _, _, fd in named]
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, OUT_OF_THE_WAY) for fd in given]
    for fd in given:
        os.close(fd)
    for place, fd in enumerate(moved, FIRST_FD):
        os.dup2(fd, place)
        os.close(fd)
    os.environ["LISTEN_PID"] = os.environ["SYSTEMD_EXEC_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(named))
    os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _, _ in named)
    os.execv(sys.argv[end + 1], sys.argv[end + 1 :])


if __name__ == "__main__":
    main()
