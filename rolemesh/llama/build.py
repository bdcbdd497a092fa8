"""Asks the installed llama-server what it is and which options it has; remembers the answer.

A program is asked once: as long as its file stays the same, the answer comes from memory or from
a file in the directory of caches.
"""

import contextlib
import hashlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from rolemesh import jsonread
from rolemesh.llama.command import NO_GPU, build_environment
from rolemesh.llama.file_access import open_regular
from rolemesh.llama.server_options import UNKNOWN_BUILD, ServerBuild, read_build
from rolemesh.runtime.state import replace_file

ASK_TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 1 << 20
MAX_CACHE_BYTES: Final = 4 << 20
_FORMAT: Final = 1

Signature = tuple[int, ...]
"""Changes with a file: its device, inode, size and time of change."""


class Builds:
    """What programs said of themselves; with `cache` also what they said to earlier processes."""

    def __init__(self, cache: Path | None = None, *, timeout_s: float = ASK_TIMEOUT_S) -> None:
        self._cache = cache
        self._timeout_s = timeout_s
        self._known: dict[Path, tuple[Signature, ServerBuild]] = {}

    def of(self, program: Path, environment: Mapping[str, str]) -> ServerBuild:
        """Return what the program says, UNKNOWN_BUILD when it says nothing usable.

        `environment` is this process's own. Never raises; a program that hangs is given up after
        `timeout_s`.
        """
        signature = file_signature(program)
        if signature is None:
            return UNKNOWN_BUILD
        known = self._known.get(program)
        if known is None or known[0] != signature:
            answers = self._read_cache(program, signature)
            if answers is None:
                return self._ask(program, signature, environment)
            known = self._known[program] = (signature, read_build(*answers))
        return known[1]

    def remembered(self, program: Path) -> str:
        """Return what a program that was asked is called, "" where its file is another one since."""
        known = self._known.get(program)
        return known[1].version if known and known[0] == file_signature(program) else ""

    def ask_again(self, program: Path, environment: Mapping[str, str]) -> ServerBuild:
        """Ask whatever is remembered: a library of the program may have changed without it."""
        signature = file_signature(program)
        return UNKNOWN_BUILD if signature is None else self._ask(program, signature, environment)

    def _ask(
        self, program: Path, signature: Signature, environment: Mapping[str, str]
    ) -> ServerBuild:
        answers = _ask(program, environment, self._timeout_s)
        build = UNKNOWN_BUILD if answers is None else read_build(*answers)
        self._known[program] = (signature, build)
        if answers is not None:
            self._write_cache(program, signature, answers)
        return build

    def _read_cache(self, program: Path, signature: Signature) -> tuple[str, str] | None:
        if self._cache is None:
            return None
        try:
            with open_regular(_cache_file(self._cache, program)) as file:
                fields = jsonread.as_object(json.loads(file.read(MAX_CACHE_BYTES)))
            if fields.get("format") != _FORMAT or fields.get("signature") != list(signature):
                return None
            return jsonread.get_str(fields, "help"), jsonread.get_str(fields, "version")
        except (OSError, ValueError, RecursionError):
            return None

    def _write_cache(self, program: Path, signature: Signature, answers: tuple[str, str]) -> None:
        if self._cache is None:
            return
        help_text, version = answers
        fields = {
            "format": _FORMAT,
            "program": str(program),
            "signature": list(signature),
            "version": version,
            "help": help_text,
        }
        # Without it the next start asks again: nothing to trouble anybody with.
        with contextlib.suppress(OSError):
            self._cache.mkdir(parents=True, exist_ok=True)
            content = json.dumps(fields).encode()
            replace_file(_cache_file(self._cache, program), content, durable=False)


def cache_directory(environment: Mapping[str, str]) -> Path | None:
    """Return where rolemesh-llama keeps what it can find out again; None where nobody said.

    $CACHE_DIRECTORY as systemd sets it, else a directory in $XDG_CACHE_HOME or in ~/.cache.
    """
    given = environment.get("CACHE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    caches, home = environment.get("XDG_CACHE_HOME", ""), environment.get("HOME", "")
    if caches:
        return Path(caches) / "rolemesh"
    return Path(home) / ".cache" / "rolemesh" if home else None


def file_signature(path: Path) -> Signature | None:
    """Return what changes with a file, None when it cannot be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _cache_file(cache: Path, program: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(program)).hexdigest()[:12]
    return cache / f"llama-server-{digest}.json"


def _ask(program: Path, environment: Mapping[str, str], timeout_s: float) -> tuple[str, str] | None:
    """Return what the program says to --help and --version, None when it did not say it all."""
    # As for a CPU instance: no GPU has to wake up for this.
    environment = build_environment(environment, NO_GPU)
    with contextlib.ExitStack() as stack:
        try:
            asked = [
                stack.enter_context(_Question(program, option, environment))
                for option in ("--help", "--version")
            ]
            deadline = time.monotonic() + timeout_s
            help_text, version = (each.answer(deadline) for each in asked)
        except OSError:
            return None
    return (help_text, version) if help_text and version else None


class _Question:
    """The program at work on one question, in a process group that ends with it."""

    def __init__(self, program: Path, option: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the program that is to be run
            [program, option],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._output.close()

    def answer(self, deadline: float) -> str:
        """Return all it says; "" when it fails, says too much or takes too long."""
        content = bytearray()
        os.set_blocking(self._output.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while len(content) <= MAX_ANSWER_BYTES:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return ""
                chunk = os.read(self._output.fileno(), 65536)
                if not chunk:
                    return content.decode("utf-8", "replace") if self._ended_well(deadline) else ""
                content += chunk
        return ""

    def _ended_well(self, deadline: float) -> bool:
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            return False
