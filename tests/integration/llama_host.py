"""One rolemesh-llama after the other, each with a real llama-server on the CPU."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rolemesh.address import UpstreamAddress
from rolemesh.llama.server_facts import ServerFacts, read_facts
from rolemesh.relay.fetch import fetch
from tests.fakes.node_config import write_node_config
from tests.lab.notify import NotifySocket
from tests.lab.poll import eventually
from tests.lab.processes import Program


class LlamaHost:
    """Runs one rolemesh-llama after the other in one set of directories."""

    def __init__(self, folder: Path, start: Callable[..., Program], notified: NotifySocket) -> None:
        self._folder = folder
        self._parameters = folder / "parameters.json"
        self._start = start
        self._notified = notified
        self._starts = 0

    def configure(self, program: Path, model: Path, **fields: Any) -> None:
        models = {"coder": {"path": model, "context_size": 1024, "parallel": 2, **fields}}
        write_node_config(self._folder, program=program, models=models, runs={"cpu0": "coder"})

    def tell(self, *devices: str) -> None:
        """Have the model run on these devices, as the agent would."""
        told = {"model_id": "coder", "devices": devices, "generation": 1}
        self._parameters.write_text(json.dumps(told))

    def run(self, instance: str = "cpu0", *, python: tuple[str, ...] = ()) -> Program:
        """Run rolemesh-llama for an instance; `python` are options of the interpreter's."""
        command = [sys.executable, *python, "-m", "rolemesh.llama", instance]
        command += ["--config", str(self._folder / "node.yaml")]
        command += ["--parameters", str(self._parameters)]
        own = {
            "RUNTIME_DIRECTORY": str(self._folder / "run"),
            "CACHE_DIRECTORY": str(self._folder / "cache"),
        }
        return self._start(command, {**own, **self._notified.environment})

    async def start(self, instance: str = "cpu0", *, python: tuple[str, ...] = ()) -> Program:
        """Run it until it is ready."""
        program = self.run(instance, python=python)
        self._starts += 1
        await eventually(
            lambda: len(self._notified.values("READY")) == self._starts, what="a ready llama-server"
        )
        return program

    @staticmethod
    async def stop(program: Program) -> None:
        program.send(signal.SIGTERM)
        assert await program.end() == 0

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the llama-server's answer, to a POST if there is a body."""
        content = None if body is None else json.dumps(body).encode()
        method = "GET" if content is None else "POST"
        address = UpstreamAddress.unix(str(self._folder / "run" / "http.sock"))
        reply = await fetch(address, method, path, body=content or b"", timeout_s=30)
        assert reply.status == 200, reply.body
        return json.loads(reply.body)

    async def read(self, prompt: str) -> tuple[int, int]:
        """Have a prompt answered; return how many tokens came from the cache, how many were read."""
        timings = (await self.ask("/completion", {"prompt": prompt, "n_predict": 4}))["timings"]
        return timings["cache_n"], timings["prompt_n"]

    @property
    def arguments(self) -> list[str]:
        """The command line of the running llama-server."""
        facts = read_facts(self._folder / "run" / "server.json")
        assert isinstance(facts, ServerFacts)
        return Path(f"/proc/{facts.server_pid}/cmdline").read_text().split("\0")[1:-1]

    @property
    def kept(self) -> list[Path]:
        return sorted((self._folder / "cache" / "slots").glob("kept-*"))
