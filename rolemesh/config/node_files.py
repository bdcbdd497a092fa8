"""Whether the files that a node's settings name are there and readable, for `--check`.

Only ever warnings: a missing model must not keep the others from being served, and the files may
be readable for the user that runs the models but not for the one that asks.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rolemesh.config.settings import ModelSettings, NodeSettings
from rolemesh.config.tree import dotted
from rolemesh.errors import Problem

_GGUF_MAGIC: Final = b"GGUF"


def node_file_warnings(settings: NodeSettings) -> tuple[Problem, ...]:
    """Return what is missing or unreadable among the program and the model files."""
    return (*_program_warnings(settings), *_model_warnings(settings))


def _program_warnings(settings: NodeSettings) -> Iterator[Problem]:
    if not settings.models:
        return
    path = settings.llama_server.path
    if path is None:
        if shutil.which("llama-server") is None:
            message = "not set, and there is no llama-server on $PATH"
            yield Problem(where="", key="llama_server.path", message=message)
    elif not os.access(path, os.X_OK) or path.is_dir():
        message = f"expected a program, found {_what_is_at(path)}"
        yield Problem(where=settings.llama_server.origin, key="llama_server.path", message=message)


def _model_warnings(settings: NodeSettings) -> Iterator[Problem]:
    for model in settings.models.values():
        message = _model_fault(model)
        if message:
            key = dotted(("models", model.model_id, "path"))
            yield Problem(where=model.origin, key=key, message=message)


def _model_fault(model: ModelSettings) -> str:
    try:
        with model.path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        return f"{model.path} cannot be read: {error.strerror}"
    return "" if magic == _GGUF_MAGIC else f"{model.path} is not a GGUF file"


def _what_is_at(path: Path) -> str:
    try:
        kind = "a directory" if path.is_dir() else "a file that may not be executed"
        path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"{path}, {kind}"
