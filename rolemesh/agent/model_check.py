"""What keeps models from being loaded here, and what they take, found without loading them.

The checks are rolemesh-llama's own, so that both say the same. A model is checked again when its
settings, its file or the llama-server changed.
"""

import asyncio
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rolemesh.agent.programs import Programs
from rolemesh.config.settings import ModelSettings, NodeSettings
from rolemesh.errors import ConfigError, Problem
from rolemesh.llama.build import Builds
from rolemesh.llama.gguf import GgufError, GgufHeader, read_model
from rolemesh.llama.gguf_parts import model_parts
from rolemesh.llama.job import Job, prepare_job
from rolemesh.llama.job_checks import PROGRAM_NAME
from rolemesh.llama.memory import MIB, MemoryNeed, estimate_memory
from rolemesh.llama.memory_options import MemoryOptions, read_options
from rolemesh.llama.model_options import FLASH_ATTENTION, model_files
from rolemesh.llama.parameters import Parameters
from rolemesh.names import InstanceName, ModelId

_NOWHERE: Final = Path("/nonexistent")
_INSTANCE: Final = InstanceName("gpu0")
_DEVICES: Final = ("GPU-0",)  # any one: what concerns GPUs is to be checked, too
# Builds without it are older than July 2026 (github.com/ggml-org/llama.cpp/pull/20834).
_OPTION_OF_NEWER_BUILDS: Final = "--load-mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProblems:
    """`node`: what concerns every model (no llama-server); `models`: what concerns one.

    `needs` is the memory that a model takes, as far as that can be told; `headers` what its file
    says of it. `checked` are the models that were looked at, as they were configured; None: all.
    """

    node: tuple[str, ...] = ()
    models: Mapping[ModelId, str]
    needs: Mapping[ModelId, MemoryNeed] = field(default_factory=dict)
    headers: Mapping[ModelId, GgufHeader] = field(default_factory=dict)
    checked: Mapping[ModelId, ModelSettings] | None = None

    def of(self, model_id: ModelId) -> str:
        """Return what keeps this model from being loaded; "" when nothing does."""
        own = self.models.get(model_id)
        return "; ".join((*self.node, *((own,) if own else ())))

    def need_of(self, model_id: ModelId) -> MemoryNeed | None:
        """Return the memory that this model takes; None when it cannot be told."""
        return self.needs.get(model_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """What was found out of one model, and what it holds for."""

    signature: Any
    further: tuple[Path | None, ...]
    further_signatures: Any
    problems: tuple[Problem, ...]
    header: GgufHeader | None
    need: MemoryNeed | None

    def holds_for(self, signature: Any) -> bool:
        """Tell whether nothing changed, the files included that only arguments name."""
        return bool(
            self.signature == signature and self.further_signatures == _signatures(self.further)
        )


class ModelCheck:
    """Checks all models of the settings; to be used by one task at a time.

    `programs` is what was installed when they were looked at last.
    """

    def __init__(self) -> None:
        self._seen: dict[ModelId, _Finding] = {}
        self._builds = Builds()
        self.programs = Programs()

    async def run(self, settings: NodeSettings) -> ModelProblems:
        """Return what is wrong now; never raises. Files may lie on slow mounts: uses a thread."""
        return await asyncio.to_thread(self._run, settings)

    def _run(self, settings: NodeSettings) -> ModelProblems:
        program = settings.llama_server.path or shutil.which(PROGRAM_NAME)
        found = {
            model.model_id: self._check(model, settings, program)
            for model in settings.models.values()
        }
        self._seen = found
        # After the models: then the program has been asked, if there is anything to run.
        self.programs = Programs.now(Path(program).absolute() if program else None, self._builds)
        node: dict[str, None] = {}
        models: dict[ModelId, str] = {}
        for model_id, finding in found.items():
            own = [str(each) for each in finding.problems if each.key.startswith("models.")]
            node |= {str(each): None for each in finding.problems if str(each) not in own}
            if own:
                models[model_id] = "; ".join(own)
        needs = {key: each.need for key, each in found.items() if each.need is not None}
        headers = {key: each.header for key, each in found.items() if each.header is not None}
        return ModelProblems(
            node=tuple(node),
            models=models,
            needs=needs,
            headers=headers,
            checked=dict(settings.models),
        )

    def _check(
        self, model: ModelSettings, settings: NodeSettings, program: Path | str | None
    ) -> _Finding:
        named = (model.path, *model_parts(model.path), *(path for _, path in model_files(model)))
        seen = self._seen.get(model.model_id)
        # What it holds for is read before the files are, so that no change is missed.
        signature = (model, settings.llama_server, _signatures((program, *named)))
        if seen is not None and seen.holds_for(signature):
            return seen
        job, problems = self._prepare(model, settings)
        options = _options(job) if job is not None else MemoryOptions()
        further = (options.draft, options.mmproj, *options.adapters)
        further_signatures = _signatures(further)
        header = _read(model.path)
        return _Finding(
            signature=signature,
            further=further,
            further_signatures=further_signatures,
            problems=problems,
            header=header,
            need=None if job is None or header is None else _need(model, options, header),
        )

    def _prepare(
        self, model: ModelSettings, settings: NodeSettings
    ) -> tuple[Job | None, tuple[Problem, ...]]:
        try:
            job = prepare_job(
                settings=settings,
                instance=_INSTANCE,
                parameters=Parameters(model_id=model.model_id, devices=_DEVICES, generation=0),
                parameters_path=_NOWHERE,
                socket=_NOWHERE,
                environment=os.environ,
                builds=self._builds,
            )
        except ConfigError as err:
            return None, err.problems
        return job, ()


def _options(job: Job) -> MemoryOptions:
    argv, build = job.command.argv, job.build
    options = read_options(argv)
    flash_attention = build.find(FLASH_ATTENTION)
    if flash_attention is not None and not flash_attention.value_count:
        # Such builds are without it by default.
        given = not set(FLASH_ATTENTION).isdisjoint(argv)
        options = replace(options, flash_attention=given)
    return replace(options, older_build=_OPTION_OF_NEWER_BUILDS not in build.options)


def _need(model: ModelSettings, options: MemoryOptions, header: GgufHeader) -> MemoryNeed | None:
    """Return what the operator says a model takes, else what its options let expect."""
    if model.memory_mib is not None:
        return MemoryNeed(weights=model.memory_mib * MIB)
    draft = _read(options.draft) if options.draft else None
    mmproj = _read(options.mmproj) if options.mmproj else None
    adapters = [_read(path) for path in options.adapters]
    if (options.draft and not draft) or (options.mmproj and not mmproj) or None in adapters:
        return None
    adapter_bytes = sum(adapter.file_bytes for adapter in adapters if adapter)
    return estimate_memory(header, options, draft=draft, mmproj=mmproj, adapter_bytes=adapter_bytes)


def _read(path: Path) -> GgufHeader | None:
    """Return a header; None when the file cannot be used, which is said elsewhere."""
    try:
        return read_model(path)
    except GgufError:
        return None


def _signatures(paths: Iterable[Path | str | None]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(_signature, paths))


def _signature(path: Path | str | None) -> tuple[int, ...]:
    """Return what changes with a file; () when it cannot be seen."""
    if path is None:
        return ()
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode, found.st_uid)
