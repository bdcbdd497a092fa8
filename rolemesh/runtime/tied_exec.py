"""Becomes another program, which then gets a signal when its parent dies. Run as a script.

    python -I -S tied_exec.py SIGNAL PARENT_PID PROGRAM [ARGUMENT...]

PR_SET_PDEATHSIG has to be set between fork and exec. A preexec_fn would run Python code in a
forked copy of an interpreter that may have threads; this program is a fresh interpreter instead,
and the pid stays the same through exec. Exit status 126: PROGRAM cannot be executed; 127: it is
not there (as a shell has it); the reason goes to stderr.

A request for a cold model waits for it: the module `signal` would take a third of its time.
"""

import _signal as signal  # type: ignore[import-not-found]
import os
import sys

PR_SET_PDEATHSIG = 1
CANNOT_EXECUTE = 126
NOT_FOUND = 127


def tie_to_parent(death_signal: int, parent_pid: int) -> None:
    """Have the kernel send `death_signal` to this process when its parent dies."""
    import ctypes  # noqa: PLC0415 - whoever asks for the constants above has no use for it

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died before the call above: then nobody would ever send the signal.
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def become(argv: list[str]) -> int:
    """Execute `argv`; returns an exit status only if that is impossible."""
    # Python ignores these two, and what is ignored stays so over an exec.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execv(argv[0], argv)  # noqa: S606 - that is what it is for
    except OSError as err:
        sys.stderr.write(f"cannot execute {argv[0]}: {err.strerror}\n")
        return NOT_FOUND if isinstance(err, FileNotFoundError) else CANNOT_EXECUTE


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]), int(sys.argv[2]))
    sys.exit(become(sys.argv[3:]))
