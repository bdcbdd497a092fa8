"""Gateway and node agent, installed in one of several ways: the columns of the table."""

import contextlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.bench.host import BenchError, Server, answers, free_port, get, move, process_tree, until
from tests.bench.load import KEY
from tests.bench.workshop import Target, Workshop
from tests.lab.compiled import NotCompiled, compiled_folder

ROOT: Final = Path(__file__).parents[2]
START_DEADLINE_S = 30.0
SLOTS = 256
MODEL_ID = "fake-model"
ALIAS = "bench"

# The smallest GGUF file: magic, version, no tensors, no keys. The fake llama-server reads none.
EMPTY_GGUF = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)


@dataclass(frozen=True, slots=True)
class Column:
    """One installation of RoleMesh: `programs` is the folder with its commands.

    `packages`, if it is named, is a folder whose rolemesh they run instead of their own.
    """

    name: str
    programs: Path
    packages: Path | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """What its programs need to be told."""
        return {"PYTHONPATH": str(self.packages)} if self.packages else {}

    def target(self, name: str) -> str:
        """Return the name of a target as installed here."""
        return f"{name}@{self.name}"


NEWEST: Final = Column("newest", Path(sys.executable).parent)


def compiled() -> Column:
    """Return the installation whose hot path is compiled; raises BenchError when it cannot be had."""
    try:
        packages = compiled_folder()
    except NotCompiled as err:
        raise BenchError(str(err)) from err
    return Column("compiled", NEWEST.programs, packages)


def is_debian12() -> bool:
    """Tell whether this machine is a Debian 12."""
    release = Path("/etc/os-release").read_text().splitlines()
    return {"ID=debian", 'VERSION_ID="12"'} <= set(release)


def debian12() -> Column:
    """Return the installation on Debian 12's own packages; raises BenchError without one."""
    programs = ROOT / ".venv" / "debian12" / "bin"
    if not (programs / "rolemesh-llama").exists():
        msg = f"no RoleMesh in {programs}; `make bench` installs it"
        raise BenchError(msg)
    return Column("debian12", programs)


class Daemons:
    """Starts the programs of one column in a workshop."""

    def __init__(self, workshop: Workshop, column: Column) -> None:
        self._workshop = workshop
        self.column = column

    def folder(self, name: str) -> Path:
        """Make a folder for one start of a program."""
        return Path(tempfile.mkdtemp(prefix=f"{name[:1]}-", dir=self._workshop.folder))

    def start(
        self,
        program: str,
        configuration: Mapping[str, Any],
        port: int,
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        """Start a daemon on the proxy core."""
        folder = self.folder(program.removeprefix("rolemesh-"))
        write_configuration(folder, configuration)
        return Server(
            [
                *(self.column.programs / program, f"--config-dir={folder}"),
                *(f"--state-dir={folder}/state", f"--port={port}"),
            ],
            cores=self._workshop.cores.proxy,
            log=self._workshop.log(f"{program}-{self.column.name}"),
            environment={
                "ROLEMESH_UNIT_CONTROL": "child",
                "ROLEMESH_RUNTIME_DIRECTORY": str(folder / "run"),
                **self.column.environment,
                **(environment or {}),
            },
            journal=self._workshop.journal.there,
        )

    @contextlib.contextmanager
    def gateway(self) -> Iterator[Target]:
        """Run a gateway whose alias the fake llama-server answers."""
        configuration = gateway_configuration(self._workshop.backend_port)
        with self._ready_gateway("gateway", configuration) as target:
            until_ready(target.port)
            yield target

    @contextlib.contextmanager
    def empty_gateway(self, name: str) -> Iterator[Target]:
        """Run a gateway that knows no upstream until a node registers."""
        with self._ready_gateway(name, discovering_configuration()) as target:
            yield target

    @contextlib.contextmanager
    def chain(self) -> Iterator["Chain"]:
        """Run a gateway, an agent, and the fake llama-server as the agent's only instance."""
        with self.empty_gateway("chain") as gateway:
            port = free_port()
            configuration = node_configuration(self._workshop, gateway.port)
            agent = self.start("rolemesh-node-agent", configuration, port)
            try:
                until_serving(agent, port)
                until_ready(gateway.port)
                _, llama, backend = process_tree(agent.pid)
                for pid in (llama, backend):
                    move(pid, self._workshop.cores.backend)
                yield Chain(
                    target=Target(
                        name=gateway.name,
                        port=gateway.port,
                        model=ALIAS,
                        clocks=(*gateway.clocks, agent.pid),
                        recorded_by=("gateway", "agent"),
                    ),
                    gateway=gateway.clocks[0],
                    agent=agent.pid,
                    llama=llama,
                )
            finally:
                agent.stop()

    @contextlib.contextmanager
    def chain_target(self) -> Iterator[Target]:
        """Run what `chain` does; yields the target alone."""
        with self.chain() as chain:
            yield chain.target

    @contextlib.contextmanager
    def _ready_gateway(self, name: str, configuration: Mapping[str, Any]) -> Iterator[Target]:
        port = free_port()
        server = self.start("rolemesh-gateway", configuration, port)

        def up() -> bool:
            server.check()
            return answers(port)

        try:
            until(up, what="the gateway answers", deadline_s=START_DEADLINE_S)
            yield Target(
                name=self.column.target(name),
                port=port,
                model=ALIAS,
                clocks=(server.pid,),
                recorded_by=("gateway",),
            )
        finally:
            server.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A gateway with a node: as a target, and the pids of its programs."""

    target: Target
    gateway: int
    agent: int
    llama: int


def until_ready(port: int) -> None:
    """Wait until a gateway can answer its default model."""
    until(lambda: answers(port, "/ready"), what="the gateway is ready", deadline_s=START_DEADLINE_S)


def until_serving(agent: Server, port: int) -> None:
    """Wait until the agent's instance has loaded its model."""

    def serving() -> bool:
        agent.check()
        if not answers(port):
            return False
        instances = json.loads(get(port, "/v1/node"))["instances"]
        return [each["state"] for each in instances] == ["ready"]

    until(
        serving, what=f"the agent's model is loaded; see {agent.log}", deadline_s=START_DEADLINE_S
    )


def write_configuration(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Write the one drop-in of a daemon, which holds a key."""
    path = folder / "bench.yaml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(dict(configuration)))


def gateway_configuration(backend_port: int) -> Mapping[str, Any]:
    """Return a gateway's: a key, an alias with another name upstream, a default to fill in."""
    return {
        "version": 1,
        "default_model": ALIAS,
        "auth": {"client_api_keys": [KEY]},
        "models": {
            ALIAS: {
                "type": "proxy",
                "proxy_url": f"http://127.0.0.1:{backend_port}",
                "openai_model_name": MODEL_ID,
                "defaults": {"top_p": 0.95},
            }
        },
    }


def discovering_configuration() -> Mapping[str, Any]:
    """Return a gateway's whose alias is answered by nodes."""
    return {
        "version": 1,
        "default_model": ALIAS,
        "auth": {"client_api_keys": [KEY]},
        "models": {ALIAS: {"type": "discovered", "defaults": {"top_p": 0.95}}},
    }


def node_configuration(workshop: Workshop, gateway_port: int) -> Mapping[str, Any]:
    """Return an agent's: one model on the CPU, run by the fake llama-server."""
    model = workshop.folder / "empty.gguf"
    model.write_bytes(EMPTY_GGUF)
    return {
        "version": 1,
        "node_id": "bench",
        "gateways": [{"url": f"http://127.0.0.1:{gateway_port}"}],
        "llama_server": {"path": os.fspath(workshop.backend)},
        "models": [{"model_id": MODEL_ID, "path": str(model), "roles": [ALIAS], "parallel": SLOTS}],
        "instances": {"cpu0": {"model": MODEL_ID}},
    }
