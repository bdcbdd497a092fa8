"""What keeps models from being loaded here, found without loading them.

The checks are rolemesh-llama's own, so that both say the same. A model is checked again when its
settings, its file or the llama-server changed.
"""

import asyncio
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rolemesh.config.settings import ModelSettings, NodeSettings
from rolemesh.errors import ConfigError, Problem
from rolemesh.llama.job import PROGRAM_NAME, prepare_job
from rolemesh.llama.parameters import Parameters
from rolemesh.names import InstanceName, ModelId

_NOWHERE: Final = Path("/nonexistent")
_INSTANCE: Final = InstanceName("cpu0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProblems:
    """`node`: what concerns every model (no llama-server); `models`: what concerns one."""

    node: tuple[str, ...] = ()
    models: Mapping[ModelId, str]

    def of(self, model_id: ModelId) -> str:
        """Return what keeps this model from being loaded; "" when nothing does."""
        own = self.models.get(model_id)
        return "; ".join((*self.node, *((own,) if own else ())))


class ModelCheck:
    """Checks all models of the settings; to be used by one task at a time."""

    def __init__(self) -> None:
        self._seen: dict[ModelId, tuple[Any, tuple[Problem, ...]]] = {}

    async def run(self, settings: NodeSettings) -> ModelProblems:
        """Return what is wrong now; never raises. Files may lie on slow mounts: uses a thread."""
        return await asyncio.to_thread(self._run, settings)

    def _run(self, settings: NodeSettings) -> ModelProblems:
        program = settings.llama_server.path or shutil.which(PROGRAM_NAME)
        node: dict[str, None] = {}
        models: dict[ModelId, str] = {}
        for model in settings.models.values():
            problems = self._check(model, settings, program)
            own = [str(problem) for problem in problems if problem.key.startswith("models.")]
            node |= {str(problem): None for problem in problems if str(problem) not in own}
            if own:
                models[model.model_id] = "; ".join(own)
        self._seen = {key: seen for key, seen in self._seen.items() if key in settings.models}
        return ModelProblems(node=tuple(node), models=models)

    def _check(
        self, model: ModelSettings, settings: NodeSettings, program: Path | str | None
    ) -> tuple[Problem, ...]:
        signature = (model, settings.llama_server, _signature(model.path), _signature(program))
        seen = self._seen.get(model.model_id)
        if seen is None or seen[0] != signature:
            seen = self._seen[model.model_id] = (signature, _problems(model, settings))
        return seen[1]


def _problems(model: ModelSettings, settings: NodeSettings) -> tuple[Problem, ...]:
    try:
        prepare_job(
            settings=settings,
            instance=_INSTANCE,
            parameters=Parameters(model_id=model.model_id, devices=(), generation=0),
            parameters_path=_NOWHERE,
            socket=_NOWHERE,
            environment=os.environ,
        )
    except ConfigError as err:
        return err.problems
    return ()


def _signature(path: Path | str | None) -> tuple[int, ...]:
    """Return what changes with a file; () when it cannot be seen."""
    if path is None:
        return ()
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode, found.st_uid)
