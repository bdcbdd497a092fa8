"""Node settings and parameters -> what this instance runs; every file it needs is checked here.

All that is wrong is told at once, as configuration problems: restarting would not help.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rolemesh.config.settings import LlamaServer, ModelSettings, NodeSettings
from rolemesh.errors import ConfigError, Problem
from rolemesh.llama import command, file_access, gguf
from rolemesh.llama.command import ServerCommand
from rolemesh.llama.parameters import Parameters
from rolemesh.names import InstanceName

PROGRAM_NAME: Final = "llama-server"
_PROGRAM_REMEDY: Final = (
    "install llama.cpp's server (Debian: apt install llama.cpp-tools), or set llama_server.path"
)
# A large model is cut into parts; llama-server is given the first and finds the others.
_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one instance runs.

    `source` names where the model was chosen; `model_bytes` is the size of all its files;
    `server_args` are those the operator gave.
    """

    instance: InstanceName
    model: ModelSettings
    source: str
    command: ServerCommand
    server_args: tuple[str, ...]
    model_bytes: int
    load_timeout_s: float


def prepare_job(
    *,
    settings: NodeSettings,
    instance: InstanceName,
    parameters: Parameters | None,
    parameters_path: Path,
    socket: Path,
    environment: Mapping[str, str],
) -> Job:
    """Return what to run; raises ConfigError with everything that prevents it."""
    model, source = choose_model(settings, instance, parameters, parameters_path)
    in_unit = "INVOCATION_ID" in environment
    problems = _Problems(in_unit=in_unit)
    program = problems.find_program(settings.llama_server, environment.get("PATH"))
    model_bytes = problems.check_model(model)
    problems.check_args(
        "llama_server.args", settings.llama_server.origin, settings.llama_server.args
    )
    problems.check_args(f"models.{model.model_id}.args", model.origin, model.args)
    if problems.found or program is None:
        raise ConfigError(tuple(problems.found))
    argv = command.build_argv(
        program=program,
        instance=instance,
        model=model,
        socket=socket,
        extra_args=settings.llama_server.args,
    )
    devices = parameters.devices if parameters else None
    return Job(
        instance=instance,
        model=model,
        source=source,
        command=ServerCommand(
            argv=argv,
            environment=command.build_environment(environment, instance, devices),
        ),
        server_args=(*settings.llama_server.args, *model.args),
        model_bytes=model_bytes,
        load_timeout_s=settings.policy.load_timeout_s,
    )


def choose_model(
    settings: NodeSettings,
    instance: InstanceName,
    parameters: Parameters | None,
    parameters_path: Path,
) -> tuple[ModelSettings, str]:
    """Return the model to run and where that was said; raises ConfigError when nobody said it."""
    configured = settings.instances.get(instance)
    if parameters is not None:
        model_id, source = parameters.model_id, str(parameters_path)
    elif configured is not None and configured.model is not None:
        model_id, source = (
            configured.model,
            f"instances.{instance}.model of the node's configuration",
        )
    else:
        message = (
            f"nothing says what {instance} runs: expected a model_id here, or {parameters_path} "
            "written by the agent"
        )
        raise ConfigError((Problem(where="", key=f"instances.{instance}.model", message=message),))
    model = settings.models.get(model_id)
    if model is None:
        known = ", ".join(settings.models) or "none"
        message = f"no such model in the node's configuration; known: {known} (wanted by {source})"
        raise ConfigError((Problem(where="", key=f"models.{model_id}", message=message),))
    return model, source


class _Problems:
    """Checks the parts of a job and collects what is wrong with them."""

    def __init__(self, *, in_unit: bool) -> None:
        self.found: list[Problem] = []
        self._in_unit = in_unit

    def find_program(self, configured: LlamaServer, search_path: str | None) -> Path | None:
        """Return the llama-server to execute, None when there is none that could be."""
        if configured.path is not None:
            return self._check_program(configured.path.absolute(), configured.origin)
        found = shutil.which(PROGRAM_NAME, path=search_path)
        if found is None:
            self._add("", "llama_server.path", f"no {PROGRAM_NAME} in PATH; {_PROGRAM_REMEDY}")
            return None
        return Path(found)

    def check_model(self, model: ModelSettings) -> int:
        """Return the size of the model's files, 0 when they cannot be used."""
        key = f"models.{model.model_id}.path"
        try:
            return sum(gguf.read_header(part).file_bytes for part in model_parts(model.path))
        except gguf.GgufError as err:
            self._add(model.origin, key, self._explain_model(err))
        except ValueError as err:
            self._add(model.origin, key, str(err))
        return 0

    def check_args(self, key: str, origin: str, args: tuple[str, ...]) -> None:
        """Refuse options that are RoleMesh's alone."""
        option = command.reserved_option(args)
        if option is not None:
            reason = command.RESERVED_OPTIONS[option]
            self._add(origin, key, f"{option} cannot be given: {reason}; remove it")

    def _check_program(self, program: Path, origin: str) -> Path | None:
        message = self._explain_program(program)
        if message:
            self._add(origin, "llama_server.path", message)
            return None
        return program

    def _explain_program(self, program: Path) -> str:
        """Say what is wrong with the program, "" if nothing is."""
        if not os.path.lexists(program):
            absence = file_access.explain_absence(program, in_unit=self._in_unit)
            return f"{absence}; {_PROGRAM_REMEDY}"
        if program.is_dir():
            return f"{program} is a directory; name the program in it"
        if not os.access(program, os.X_OK):
            user = file_access.user_name()
            return f"{program} may not be executed by user {user}; chmod a+rx helps"
        return ""

    def _explain_model(self, err: gguf.GgufError) -> str:
        if err.fault is gguf.GgufFault.MISSING:
            return file_access.explain_absence(err.path, in_unit=self._in_unit)
        if isinstance(err.__cause__, PermissionError):
            return file_access.explain_refusal(err.path, in_unit=self._in_unit)
        return str(err)

    def _add(self, where: str, key: str, message: str) -> None:
        self.found.append(Problem(where=where, key=key, message=message))


def model_parts(path: Path) -> tuple[Path, ...]:
    """Return the files of a model; raises ValueError when `path` is a part but not the first."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return (path,)
    if int(part["number"]) != 1:
        first = path.with_name(f"{part['stem']}-00001-of-{part['count']}.gguf")
        msg = f"{path} is not the first part of its model; name {first}"
        raise ValueError(msg)
    return tuple(
        path.with_name(f"{part['stem']}-{number:05}-of-{part['count']}.gguf")
        for number in range(1, int(part["count"]) + 1)
    )
