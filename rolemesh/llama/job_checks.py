"""What may prevent a model from being run here: its files, its options, the program itself."""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from rolemesh.config.settings import LlamaServer, ModelSettings
from rolemesh.errors import Problem
from rolemesh.llama import command, file_access, gguf, server_options
from rolemesh.llama.model_options import Option, model_files
from rolemesh.llama.server_options import ServerBuild

PROGRAM_NAME: Final = "llama-server"
_PROGRAM_REMEDY: Final = "install llama.cpp's server (Debian: apt install llama.cpp-tools), or set llama_server.path"  # What the header calls a kind of GGUF file -> what we call it; which kind a key names.
_KINDS: Final = {"model": "a model", "adapter": "a LoRA adapter", "mmproj": "a projector"}
_WANTED: Final = {"lora": "a LoRA adapter", "mmproj": "a projector"}


class JobChecks:
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
        """Check every file of a model; return the size of its weights."""
        weights = self._check_gguf(model, "path", model.path)
        for key, path in model_files(model):
            if key == "chat_template_file":
                self._check_readable(model, key, path)
            else:
                self._check_gguf(model, key, path)
        for message in _unlistable_adapters(model):
            self._add_of(model, "lora", message)
        return weights

    def check_arguments(self, server: LlamaServer, model: ModelSettings) -> None:
        """Refuse options that are RoleMesh's alone, and keys that do not go together."""
        self._check_reserved("llama_server.args", server.args_origin, server.args)
        self._check_reserved(f"models.{model.model_id}.args", model.origin, model.args)
        other = {"embeddings": model.embeddings, "rerank": model.rerank, "mmproj": model.mmproj}
        for key, value in other.items():
            if model.save_slots and value:
                message = (
                    f"llama-server saves no slots of a model with {key}; remove one of the two"
                )
                self._add_of(model, "save_slots", message)

    def _check_reserved(self, key: str, origin: str, args: tuple[str, ...]) -> None:
        option = command.reserved_option(args)
        if option is not None:
            reason = command.RESERVED_OPTIONS[server_options.plain_name(option)]
            self._add(origin, key, f"{option} cannot be given: {reason}; remove it")

    def _check_gguf(self, model: ModelSettings, key: str, path: Path) -> int:
        """Return the size of all parts of a GGUF file, 0 when it cannot be used."""
        try:
            header = gguf.read_model(path)
        except gguf.GgufError as err:
            self._add_of(model, key, self._explain_gguf(err))
            return 0
        kind = header.kind or ("model" if header.architecture else "")
        found, wanted = _KINDS.get(kind), _WANTED.get(key, "a model")
        # Projectors made before 2025 do not say what they are.
        if found not in {None, wanted} and header.architecture != "clip":
            self._add_of(model, key, f"expected {wanted}, found {found} in {path}")
        return header.file_bytes

    def _check_readable(self, model: ModelSettings, key: str, path: Path) -> None:
        try:
            file_access.open_regular(path).close()
        except FileNotFoundError:
            absence = file_access.explain_absence(path, in_unit=self._in_unit)
            self._add_of(model, key, absence)
        except PermissionError:
            refusal = file_access.explain_refusal(path, in_unit=self._in_unit)
            self._add_of(model, key, refusal)
        except OSError as err:
            self._add_of(model, key, f"{path} cannot be read: {err.strerror}")

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

    def _explain_gguf(self, err: gguf.GgufError) -> str:
        if err.fault is gguf.GgufFault.MISSING:
            return file_access.explain_absence(err.path, in_unit=self._in_unit)
        if isinstance(err.__cause__, PermissionError):
            return file_access.explain_refusal(err.path, in_unit=self._in_unit)
        return str(err)

    def _add_of(self, model: ModelSettings, key: str, message: str) -> None:
        self._add(model.origin, f"models.{model.model_id}.{key}", message)

    def _add(self, where: str, key: str, message: str) -> None:
        self.found.append(Problem(where=where, key=key, message=message))


def _unlistable_adapters(model: ModelSettings) -> Iterator[str]:
    """Say which adapters cannot be named in llama-server's list of them."""
    separators = ',"' if all(each.scale == 1 for each in model.lora) else ',":'
    for adapter in model.lora:
        found = next((each for each in separators if each in str(adapter.path)), None)
        if found is not None:
            yield f"{adapter.path} has {found} in its path, which llama-server cannot take; rename it"


def wrong_options(
    build: ServerBuild, server: LlamaServer, model: ModelSettings, options: Iterable[Option]
) -> Iterator[Problem]:
    """Yield the options of a job that its build of llama-server does not have."""
    for message in server_options.wrong_arguments(build, server.args):
        yield Problem(where=server.args_origin, key="llama_server.args", message=message)
    prefix = f"models.{model.model_id}"
    for option in options:
        message = _wrong_option(build, option) if option.key else ""
        if message:
            yield Problem(where=model.origin, key=f"{prefix}.{option.key}", message=message)
    for message in server_options.wrong_arguments(build, model.args):
        yield Problem(where=model.origin, key=f"{prefix}.args", message=message)


def _wrong_option(build: ServerBuild, option: Option) -> str:
    """Say what the build has against an option that the configuration asks for, "" if nothing."""
    name = build.choose(option.names)
    if name is None:
        return server_options.unknown_option(build, option.names)
    known = build.option(name)
    allowed = known.allowed if known is not None else ()
    if option.key == "chat_template":
        # Anything else would be taken for the text of a template.
        allowed = build.chat_templates
    if allowed and option.values and option.values[0] not in allowed:
        return server_options.wrong_value(build, name, option.values[0], allowed)
    return ""
