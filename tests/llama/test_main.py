"""rolemesh-llama as a whole: a real process, a real service manager's socket, a real llama-server."""

import asyncio
import json
import os
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rolemesh import __version__
from rolemesh.address import UpstreamAddress
from rolemesh.errors import UpstreamError
from rolemesh.llama.build import Builds, file_signature
from rolemesh.llama.server_facts import ServerFacts, read_facts
from rolemesh.relay.fetch import fetch
from tests.fakes.node_config import write_node_config
from tests.lab.notify import NotifySocket
from tests.lab.poll import eventually
from tests.lab.processes import Program, is_running

FAKE = Path(__file__).parents[1] / "fakes" / "llama_program.py"
Start = Callable[..., Program]


class Bench:
    """Starts rolemesh-llama for cpu0 in a runtime directory of its own."""

    def __init__(self, folder: Path, start: Start, notified: NotifySocket) -> None:
        self.folder = folder
        self.notified = notified
        self._start = start
        self.socket = folder / "run" / "http.sock"
        self.parameters = folder / "cpu0.json"

    def configure(
        self, program: Path | str | None, model: Path, *, args: tuple[str, ...] = (), **fields: Any
    ) -> Path:
        policy = {"load_timeout_s": fields.pop("load_timeout_s", 60)}
        models = {"coder": {"path": model, **fields}}
        runs = {"cpu0": "coder"}
        return write_node_config(
            self.folder, program=program, models=models, args=args, runs=runs, policy=policy
        )

    def run(self, *args: str, environment: dict[str, str] | None = None) -> Program:
        command = [sys.executable, "-m", "rolemesh.llama", *(args or ("cpu0",))]
        command += ["--parameters", str(self.parameters)]
        command += ["--config", str(self.folder / "node.yaml")]
        own = {
            "RUNTIME_DIRECTORY": str(self.folder / "run"),
            "CACHE_DIRECTORY": str(self.folder / "cache"),
            **self.notified.environment,
        }
        return self._start(command, {**own, **(environment or {})})

    async def loading_for(self, seconds: int) -> None:
        """Wait until STATUS says that the load has taken so long."""

        def said() -> bool:
            return any(each.endswith(f"% ({seconds} s)") for each in self.notified.values("STATUS"))

        await eventually(said, what=f"{seconds} s of loading")

    async def answer(self) -> str:
        """Return what the model says, "" while it cannot."""
        body = json.dumps({"prompt": "a", "max_tokens": 40}).encode()
        address = UpstreamAddress.unix(str(self.socket))
        try:
            reply = await fetch(address, "POST", "/v1/completions", body=body, timeout_s=20)
        except UpstreamError:
            return ""
        return (
            str(json.loads(reply.body)["choices"][0]["text"]).strip() if reply.status == 200 else ""
        )

    def server_pid(self, program: Program) -> int:
        (pid,) = (pid for pid in program.processes() if pid != program.pid)
        return pid


@pytest.fixture
async def bench(short_path: Path, start_program: Start, notify_socket: NotifySocket) -> Bench:
    return Bench(short_path, start_program, notify_socket)


# --- readiness ------------------------------------------------------------------------------


async def test_a_real_model_is_served(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    bench.configure(llama_server, make_model("tiny-a"), context_size=512, parallel=2)
    program = bench.run()
    ready = await bench.notified.ready()
    assert await bench.answer() == "Hello from tiny-a . one two three four five six seven eight ."
    assert ready.pid == program.pid
    source = "instances.cpu0.model of the node's configuration"
    assert ready.fields["STATUS"] == f"serving coder (from {source})"
    loading, waiting = (
        r"loading coder: \d+% \(0 s\)",
        "coder is loaded; waiting for its first token",
    )
    assert re.fullmatch(f"{loading}|{waiting}", bench.notified.values("STATUS")[0])
    assert int(bench.notified.values("EXTEND_TIMEOUT_USEC")[0]) >= 30_000_000
    mode = bench.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o770
    await program.line(r"n_slots = 2, n_ctx_slot = 512")
    await program.line(r"listening on unix:///")
    program.send(signal.SIGTERM)
    assert await program.end() == 0
    assert bench.notified.values("STOPPING") == ["1"]
    assert not bench.socket.exists()


async def test_ready_comes_after_an_answer_was_possible_and_not_before(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    """The llama-server stops itself before it begins: nothing can be answered until it goes on."""
    wrapper = bench.folder / "slow"
    wrapper.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\n"
        "if '-m' in sys.argv: os.kill(os.getpid(), signal.SIGSTOP)\n"
        f"os.execv({str(llama_server)!r}, [{str(llama_server)!r}, *sys.argv[1:]])\n"
    )
    wrapper.chmod(0o755)
    bench.configure(wrapper, make_model("tiny-a"))
    program = bench.run()
    await bench.loading_for(2)
    assert bench.notified.values("READY") == []
    assert await bench.answer() == ""
    begun = time.monotonic()
    os.kill(bench.server_pid(program), signal.SIGCONT)
    possible = asyncio.gather(eventually(bench.answer, what="an answer", deadline_s=20))
    ready = await bench.notified.ready()
    assert ready.at > begun
    assert await bench.answer() != ""  # at once, whatever the poller has seen
    await possible


async def test_a_real_embedding_model_is_served(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    bench.configure(llama_server, make_model("tiny-a"), args=("--embeddings", "--pooling", "mean"))
    bench.run()
    await bench.notified.ready()


async def test_what_the_agent_wrote_is_what_runs(bench: Bench, tmp_path: Path) -> None:
    dump = tmp_path / "dump.json"
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    write_node_config(
        bench.folder,
        program=FAKE,
        models={"a": {"path": model}, "b": {"path": model, "args": ["--fake-dump", str(dump)]}},
        runs={"gpu0": "a"},
    )
    bench.parameters.write_text('{"model_id": "b", "devices": ["GPU-1", "GPU-2"], "generation": 1}')
    bench.run("gpu0", environment={"LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_API_KEY": "secret"})
    ready = await bench.notified.ready()
    assert ready.fields["STATUS"] == f"serving b (from {bench.parameters})"
    seen = json.loads(dump.read_text())
    assert seen["argv"][:4] == ["-m", str(model), "--alias", "b"]
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    forbidden = ("LLAMA_", "NOTIFY_SOCKET", "WATCHDOG", "RUNTIME_DIRECTORY")
    assert [name for name in seen["environment"] if name.startswith(forbidden)] == []


async def test_what_runs_is_told_while_it_runs(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    bench.configure(llama_server, make_model("tiny-a"))
    bench.parameters.write_text('{"model_id": "coder", "devices": [], "generation": 7}')
    program = bench.run()
    await bench.notified.ready()
    path = bench.socket.with_name("server.json")
    facts = read_facts(path)
    assert isinstance(facts, ServerFacts)
    assert (facts.model_id, facts.generation, facts.version) == ("coder", 7, __version__)
    assert facts.server_pid == bench.server_pid(program)
    assert facts.build == Builds().of(llama_server, os.environ).version
    assert len(facts.args_hash) == 16
    assert (facts.program, facts.signature) == (str(llama_server), file_signature(llama_server))
    assert path.stat().st_mode & 0o777 == 0o640
    program.send(signal.SIGTERM)
    assert await program.end() == 0
    assert not path.exists()


async def test_what_a_program_said_is_remembered_by_the_next_start(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    bench.configure(llama_server, make_model("tiny-a"), args=("--no-such-option",))
    await refused(bench)
    (file,) = (bench.folder / "cache").glob("*.json")
    assert json.loads(file.read_text())["program"] == str(llama_server)


async def test_a_stale_socket_does_not_block_a_start(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    bench.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(bench.socket))
    bench.configure(llama_server, make_model("tiny-a"))
    bench.run()
    await bench.notified.ready()
    assert await bench.answer() != ""


# --- the end --------------------------------------------------------------------------------


async def test_a_stop_with_an_attached_stream_takes_less_than_six_seconds(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    bench.configure(llama_server, make_model("endless", loop=True, context=1 << 17))
    program = bench.run()
    await bench.notified.ready()
    body = json.dumps({"prompt": "a", "max_tokens": 120_000, "stream": True}).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(bench.socket))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await asyncio.to_thread(client.recv, 1000)
        begun = time.monotonic()
        program.send(signal.SIGTERM)
        assert await program.end() == 0
        assert time.monotonic() - begun < 6


async def test_the_death_of_llama_server_is_ours(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    bench.configure(llama_server, make_model("tiny-a"))
    program = bench.run()
    await bench.notified.ready()
    os.kill(bench.server_pid(program), signal.SIGKILL)
    assert await program.end() == 137
    await bench.notified.field("STATUS", bench.notified.values("STATUS")[-1])
    assert bench.notified.values("STATUS")[-1].startswith("llama-server was killed by SIGKILL: ")


async def test_our_own_death_is_llama_servers(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    bench.configure(llama_server, make_model("tiny-a"))
    program = bench.run()
    await bench.notified.ready()
    pid = bench.server_pid(program)
    program.send(signal.SIGKILL)
    await eventually(lambda: not is_running(pid), what="llama-server is gone")


async def test_a_stop_while_loading_is_a_stop(
    bench: Bench, make_model: Callable[..., Path]
) -> None:
    bench.configure(FAKE, make_model("tiny-a"), args=("--fake", "silent"))
    program = bench.run()
    await bench.loading_for(0)
    program.send(signal.SIGTERM)
    assert await program.end(deadline_s=5) == 0
    assert bench.notified.values("READY") == []


async def test_an_instance_never_runs_twice(bench: Bench, make_model: Callable[..., Path]) -> None:
    bench.configure(FAKE, make_model("tiny-a"))
    first = bench.run()
    await bench.notified.ready()
    first_server = bench.server_pid(first)
    second = bench.run()
    holder = f"rolemesh-llama with pid {first.pid}, or its llama-server"
    await bench.notified.field("STATUS", f"waiting for {holder}, to end")
    assert second.processes() == [second.pid]
    # Even when only the llama-server is left: it inherited the lock.
    os.kill(first_server, signal.SIGSTOP)
    first.send(signal.SIGTERM)
    await eventually(lambda: len(bench.notified.values("READY")) == 2, what="the second is ready")
    assert not is_running(first_server)


async def test_a_watched_server_that_is_silent_gets_no_more_watchdog_pings(
    bench: Bench, make_model: Callable[..., Path]
) -> None:
    bench.configure(FAKE, make_model("tiny-a"))
    program = bench.run(environment={"WATCHDOG_USEC": "400000"})
    await bench.notified.ready()
    await eventually(lambda: len(bench.notified.values("WATCHDOG")) > 2, what="pings")
    pid = bench.server_pid(program)
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    status = f"llama-server (pid {pid}) does not answer /health since 1 s"
    await bench.notified.field("STATUS", status)
    late = [
        each
        for each in bench.notified.received
        if "WATCHDOG" in each.fields and each.at > begun + 0.3
    ]
    assert late == []


# --- what cannot run ------------------------------------------------------------------------


async def refused(bench: Bench, status: int = 78) -> str:
    """Return the message of a start that is refused; log and STATUS have the same."""
    program = bench.run()
    assert await program.end() == status
    assert bench.notified.values("READY") == []
    (line,) = (line for line in program.lines() if " CRITICAL " in line)
    message = line.partition(" CRITICAL cpu0: ")[2]
    assert bench.notified.values("STATUS")[-1] == message
    return message


async def test_a_missing_model_is_refused(bench: Bench) -> None:
    config = bench.configure(FAKE, bench.folder / "absent.gguf")
    assert await refused(bench) == (
        f"{config}:8: models.coder.path: {bench.folder}/absent.gguf does not exist"
    )


async def test_a_model_that_is_none_is_refused(bench: Bench) -> None:
    page = bench.folder / "page.gguf"
    page.write_text("<html>Sign in</html>")
    config = bench.configure(FAKE, page)
    assert await refused(bench) == (
        f"{config}:8: models.coder.path: {page}: is not a GGUF model: it is an HTML page: a failed "
        "download"
    )


async def test_a_missing_program_is_refused(bench: Bench, make_model: Callable[..., Path]) -> None:
    config = bench.configure(bench.folder / "llama-server", make_model("tiny-a"))
    assert await refused(bench) == (
        f"{config}:4: llama_server.path: {bench.folder}/llama-server does not exist; install "
        "llama.cpp's server (Debian: apt install llama.cpp-tools), or set llama_server.path"
    )


async def test_a_program_of_another_machine_is_refused(
    bench: Bench, make_model: Callable[..., Path]
) -> None:
    program = bench.folder / "llama-server"
    program.write_bytes(b"\x7fELF\0\0\0\0")
    program.chmod(0o755)
    bench.configure(program, make_model("tiny-a"))
    assert await refused(bench) == (
        f"llama-server exited with status 126: cannot execute {program}: Exec format error"
    )


async def test_a_program_that_misses_a_library_is_refused(
    bench: Bench, make_model: Callable[..., Path]
) -> None:
    program = bench.folder / "llama-server"
    missing = "error while loading shared libraries: libggml.so.0: cannot open shared object file"
    program.write_text(f"#!/bin/sh\necho 'llama-server: {missing}' >&2\nexit 127\n")
    program.chmod(0o755)
    bench.configure(program, make_model("tiny-a"))
    assert await refused(bench) == f"llama-server exited with status 127: llama-server: {missing}"


async def test_wrong_parameters_are_refused(bench: Bench, make_model: Callable[..., Path]) -> None:
    bench.configure(FAKE, make_model("tiny-a"))
    bench.parameters.write_text('{"model_id": 3}')
    assert await refused(bench) == (
        f"{bench.parameters}: model_id: expected a string, found int; remove the file, or have the "
        "agent write it anew"
    )


async def test_an_unknown_model_is_refused(bench: Bench, make_model: Callable[..., Path]) -> None:
    bench.configure(FAKE, make_model("tiny-a"))
    bench.parameters.write_text('{"model_id": "planner", "devices": []}')
    assert await refused(bench) == (
        "models.planner: no such model in the node's configuration; known: coder "
        f"(wanted by {bench.parameters})"
    )


async def test_a_reserved_option_is_refused(bench: Bench, make_model: Callable[..., Path]) -> None:
    bench.configure(FAKE, make_model("tiny-a"), args=("--port", "80"))
    message = await refused(bench)
    assert message.endswith(
        "llama_server.args: --port cannot be given: llama-server listens on a private socket; "
        "remove it"
    )


async def test_a_broken_configuration_is_refused_with_all_its_problems(bench: Bench) -> None:
    (bench.folder / "node.yaml").write_text("node_id: 7x/\nlisten: {port: many}\n")
    program = bench.run()
    assert await program.end() == 78
    assert bench.notified.values("STATUS")[-1].endswith("more problems)")


async def test_a_runtime_directory_that_is_too_long_is_refused(
    bench: Bench, make_model: Callable[..., Path]
) -> None:
    bench.configure(FAKE, make_model("tiny-a"))
    directory = bench.folder / ("x" * 100)
    program = bench.run(environment={"RUNTIME_DIRECTORY": str(directory)})
    assert await program.end() == 78
    length = len(os.fsencode(directory / "http.sock"))
    assert bench.notified.values("STATUS")[-1] == (
        f"{directory}/http.sock: is too long for a UNIX socket ({length} bytes, at most 107); set "
        "RUNTIME_DIRECTORY to a shorter path"
    )


async def test_what_llama_server_refuses_is_told_in_its_words(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    content = make_model("tiny-a").read_bytes()
    model = bench.folder / "m.gguf"
    length = b"\5\0\0\0\0\0\0\0"
    model.write_bytes(content.replace(length + b"llama", length + b"lamma"))
    bench.configure(llama_server, model)
    message = await refused(bench, status=1)
    assert message.startswith("llama-server exited with status 1: ")
    assert message.endswith("error loading model: unknown model architecture: 'lamma'")


async def test_an_option_that_the_installed_build_lacks_is_refused(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    config = bench.configure(llama_server, make_model("tiny-a"), args=("--flsh-attn", "on"))
    line = re.escape(f"{config}:5: llama_server.args: llama-server ")
    words = r' does not know --flsh-attn; did you mean "--flash-attn"\?'
    assert re.fullmatch(rf"{line}\S+ \(\S+ \S+\){words}", await refused(bench))


async def test_a_model_that_was_cut_off_is_refused(
    bench: Bench, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    content = make_model("tiny-a").read_bytes()
    model = bench.folder / "m.gguf"
    model.write_bytes(content[: len(content) // 2])
    bench.configure(llama_server, model)
    message = await refused(bench)
    assert f"models.coder.path: {model}: is incomplete: " in message


async def test_a_server_without_results_is_never_ready(
    bench: Bench, make_model: Callable[..., Path]
) -> None:
    bench.configure(FAKE, make_model("tiny-a"), args=("--fake", "mute"))
    message = await refused(bench, status=1)
    assert message.startswith("llama-server is up, but POST /v1/completions gave status 500: ")


async def test_what_is_no_instance_is_a_usage_error(bench: Bench) -> None:
    (bench.folder / "node.yaml").touch()
    program = bench.run("gpu-zero")
    assert await program.end() == 2
    await program.line(r"'gpu-zero' is not an instance name \(expected gpuN, gpuN-NAME or cpuN\)")
