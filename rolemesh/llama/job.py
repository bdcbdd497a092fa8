"""Node settings and parameters -> what this instance runs; every file it needs is checked here.

All that is wrong is told at once, as configuration problems: restarting would not help.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rolemesh.config.settings import InstanceSettings, ModelSettings, NodeSettings
from rolemesh.errors import ConfigError, Problem
from rolemesh.llama import command
from rolemesh.llama.build import Builds, Signature, file_signature
from rolemesh.llama.command import Devices, ServerCommand
from rolemesh.llama.gguf_parts import model_parts
from rolemesh.llama.job_checks import JobChecks, wrong_options
from rolemesh.llama.model_options import Option, model_files
from rolemesh.llama.parameters import Parameters
from rolemesh.llama.server_options import UNKNOWN_BUILD, ServerBuild
from rolemesh.names import InstanceName


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one instance runs.

    `source` names where the model was chosen; `generation` is that of the parameters, 0 without.
    `files` are all that the llama-server reads; `model_bytes` is the size of the weights.
    `server_args` are those the operator gave.
    `args_hash` changes with whatever determines how the engine behaves, `settings_hash` with the
    settings that it was started with. `slot_directory` is where
    the llama-server saves the KV cache of its slots, None when it does not. `signature` changes with
    the file of the program.
    """

    instance: InstanceName
    model: ModelSettings
    source: str
    generation: int
    command: ServerCommand
    server_args: tuple[str, ...]
    files: tuple[Path, ...]
    model_bytes: int
    load_timeout_s: float
    wedge_after_s: float
    build: ServerBuild
    args_hash: str
    settings_hash: str
    slot_directory: Path | None
    signature: Signature


def prepare_job(
    *,
    settings: NodeSettings,
    instance: InstanceName,
    parameters: Parameters | None,
    parameters_path: Path,
    socket: Path,
    environment: Mapping[str, str],
    builds: Builds | None = None,
    slot_directory: Path | None = None,
) -> Job:
    """Return what to run; raises ConfigError with everything that prevents it.

    `builds` remembers what llama-servers said of themselves. `slot_directory` is used for a model
    that saves its slots.
    """
    model, source = choose_model(settings, instance, parameters, parameters_path)
    devices = find_devices(settings.instances.get(instance), instance, parameters)
    slot_directory = slot_directory if model.save_slots else None
    options_for = partial(
        command.set_options, model, devices=devices, slot_directory=slot_directory
    )
    ready = _check(settings, model, environment, builds or Builds(), options_for)
    argv = command.build_argv(
        program=ready.program,
        model=model,
        socket=socket,
        build=ready.build,
        options=options_for(ready.build),
        extra_args=settings.llama_server.args,
    )
    return Job(
        instance=instance,
        model=model,
        source=source,
        generation=parameters.generation if parameters else 0,
        command=ServerCommand(
            argv=argv, environment=command.build_environment(environment, devices)
        ),
        server_args=(*settings.llama_server.args, *model.args),
        files=(*model_parts(model.path), *(path for _, path in model_files(model))),
        model_bytes=ready.model_bytes,
        load_timeout_s=settings.policy.load_timeout_s,
        wedge_after_s=settings.policy.wedge_after_s,
        build=ready.build,
        args_hash=command.arguments_hash(ready.identity, argv),
        settings_hash=command.settings_hash(settings, model),
        slot_directory=slot_directory,
        signature=ready.signature,
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


def find_devices(
    configured: InstanceSettings | None, instance: InstanceName, parameters: Parameters | None
) -> Devices:
    """Return an instance's devices: those the agent names, else GPUs by their numbers."""
    if command.is_cpu(instance):
        return command.NO_GPU
    if parameters is not None:
        return command.devices_from(parameters.devices)
    own = int(instance.removeprefix("gpu").partition("-")[0])
    return Devices(numbers=(configured and configured.gpus) or (own,))


@dataclass(frozen=True, slots=True)
class _Ready:
    """What was found in order."""

    program: Path
    build: ServerBuild
    model_bytes: int
    signature: Signature

    @property
    def identity(self) -> str:
        """What the program is: its build, or else its file."""
        return self.build.version or f"{self.program} {self.signature or None}"


def _check(
    settings: NodeSettings,
    model: ModelSettings,
    environment: Mapping[str, str],
    builds: Builds,
    options_for: Callable[[ServerBuild], tuple[Option, ...]],
) -> _Ready:
    """Check everything that a model needs here; raises ConfigError."""
    server = settings.llama_server
    checks = JobChecks(in_unit="INVOCATION_ID" in environment)
    program = checks.find_program(server, environment.get("PATH"))
    model_bytes = checks.check_model(model)
    checks.check_arguments(server, model)
    build, signature = UNKNOWN_BUILD, Signature()
    if program is not None:
        signature = file_signature(program) or Signature()
        build = builds.of(program, environment)
        problems = list(wrong_options(build, server, model, options_for(build)))
        if problems:
            # What is remembered may be older than a library of the program.
            build = builds.ask_again(program, environment)
            problems = list(wrong_options(build, server, model, options_for(build)))
        checks.found += problems
    if checks.found or program is None:
        raise ConfigError(tuple(checks.found))
    return _Ready(program, build, model_bytes, signature)
