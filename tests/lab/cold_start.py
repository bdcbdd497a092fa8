"""From nothing to the first token, by others' means: what a cold start of RoleMesh stands beside.

Runs by itself, with nothing but Python, on a host of the lab too; prints seconds as a JSON list:

    cold_start.py plain PROGRAM MODEL ROUNDS            llama-server: its start to the first token
    cold_start.py router PROGRAM MODEL MODEL ROUNDS     its router mode: switches between two models
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

CONTEXT = 1024
OPTIONS = {"ctx-size": str(CONTEXT), "parallel": "1", "device": "none"}
START_DEADLINE_S = 60
POLL_S = 0.002
Address = str | tuple[str, int]


def seconds_to_first_token(connection: socket.socket, model: str, *, key: str = "") -> float:
    """Ask for a chat as a stream; return how long its first word took."""
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "go"}], "stream": True}
    ).encode()
    fields = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **({"Authorization": f"Bearer {key}"} if key else {}),
    }
    began = time.monotonic()
    connection.sendall(_head("POST", "/v1/chat/completions", fields) + body)
    received = b""
    for line in connection.makefile("rb"):
        received += line
        if line.startswith(b"data: {") and _has_word(json.loads(line.removeprefix(b"data: "))):
            return time.monotonic() - began
    raise AssertionError(received.decode())


def overhead_s(cold: list[float], plain: list[float]) -> float:
    """Return how much longer cold requests take than starts: the median difference of pairs."""
    return median(one - other for one, other in zip(cold, plain, strict=True))


def show(measured: Mapping[str, list[float]]) -> None:
    """Print what was measured."""
    print("request, or start, to first token: median ms (from .. to)")
    for what, seconds in measured.items():
        taken = [1000 * each for each in seconds]
        print(f"{what:<44}{median(taken):7.0f} ({min(taken):.0f} .. {max(taken):.0f})")


def _has_word(event: Mapping[str, object]) -> bool:
    match event:
        case {"choices": [{"delta": {"content": str(word)}}, *_]}:
            return bool(word)
        case _:
            return False


def start_to_first_token(program: str, model: Path) -> float:
    """Start a llama-server with a model; return how long its first word took from there."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/llama.sock"
        options = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
        began = time.monotonic()
        with _running([program, "-m", str(model), "--host", place, *options], place):
            with _connected(place) as connection:
                seconds_to_first_token(connection, model.stem)
            return time.monotonic() - began


@contextlib.contextmanager
def router(program: str, models: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """Run a llama-server in router mode, one model at a time; yields where."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as taken:
        presets = Path(folder, "presets.ini")
        with presets.open("w") as file:
            for name, path in models.items():
                options = {"model": str(path), **OPTIONS}
                lines = [f"{key} = {value}" for key, value in options.items()]
                file.write("\n".join((f"[{name}]", *lines, "", "")))
        place: tuple[str, int] = taken.getsockname()
        taken.close()
        command = [program, "--models-preset", str(presets), "--models-max", "1"]
        with _running([*command, "--host", place[0], "--port", str(place[1])], place):
            yield place


def switches(program: str, models: Mapping[str, Path], rounds: int) -> list[float]:
    """Return how long the first word takes of a model that takes another's place, by the router."""
    with router(program, models) as place:
        taken = []
        for turn in range(rounds + 1):
            with _connected(place) as connection:
                name = list(models)[turn % len(models)]
                taken.append(seconds_to_first_token(connection, name))
    return taken[1:]


@contextlib.contextmanager
def _running(command: list[str], place: Address) -> Iterator[None]:
    """Run a llama-server; yields as soon as it is healthy."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while not _is_healthy(place):
                assert process.poll() is None, f"{command} ended"
                assert time.monotonic() < deadline, f"{command} is not healthy"
                time.sleep(POLL_S)
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()


def _is_healthy(place: Address) -> bool:
    with contextlib.suppress(OSError), _connected(place) as connection:
        connection.sendall(_head("GET", "/health", {"Host": "localhost", "Connection": "close"}))
        return b" 200 " in connection.recv(4096)
    return False


def _connected(place: Address) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
    try:
        connection.connect(place)
    except OSError:
        connection.close()
        raise
    return connection


def _head(method: str, path: str, fields: Mapping[str, str]) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in fields.items()))
    return ("\r\n".join((*lines, "", ""))).encode()


def main() -> None:
    """Do what the command line says."""
    what, program, *models, rounds = sys.argv[1:]
    paths = [Path(model) for model in models]
    if what == "plain":
        taken = [start_to_first_token(program, paths[0]) for _ in range(int(rounds))]
    else:
        taken = switches(program, {path.stem: path for path in paths}, int(rounds))
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
