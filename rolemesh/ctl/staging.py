"""What a daemon would say of its configuration if one file were another, or gone.

The files are laid out again as links in a temporary directory, with that one in its place among
them; nothing that a daemon reads is touched.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import Loaded
from rolemesh.config.settings import GatewaySettings, NodeSettings
from rolemesh.ctl.config import daemon_environment
from rolemesh.errors import ConfigError, Problem

SettingsT = TypeVar("SettingsT", bound=GatewaySettings | NodeSettings)
Load = Callable[[ConfigSource, Mapping[str, str]], Loaded[SettingsT]]
"""config.load's function for the source's program."""


def judge(
    source: ConfigSource, file: Path, text: str | None, load: Load[SettingsT]
) -> Loaded[SettingsT]:
    """Return what would be in force if `file`, in one of `source`'s directories, held `text`.

    None: if it were not there. Raises ConfigError, with the places as they would be.
    """
    with tempfile.TemporaryDirectory(prefix="rolemeshctl-") as folder:
        staged = {
            Path(folder, str(index), directory.name): directory
            for index, directory in enumerate(source.directories)
        }
        for copy, directory in staged.items():
            _lay_out(copy, directory, file, text)
        try:
            return load(_moved(source, list(staged)), daemon_environment(source))
        except ConfigError as error:
            problems = (_as_in_place(problem, staged) for problem in error.problems)
            raise ConfigError(tuple(problems), error.warnings) from error


def _lay_out(copy: Path, directory: Path, file: Path, text: str | None) -> None:
    copy.mkdir(parents=True)
    for path in directory.iterdir() if directory.is_dir() else ():
        if path != file:
            (copy / path.name).symlink_to(path)
    if file.parent == directory and text is not None:
        staged = copy / file.name
        staged.touch(mode=0o600)
        staged.write_text(text, encoding="utf-8")


def _moved(source: ConfigSource, copies: list[Path]) -> ConfigSource:
    if source.config_dir is not None:
        return replace(source, config_dir=copies[0])
    return replace(source, roots=tuple(copy.parent for copy in copies))


def _as_in_place(problem: Problem, staged: dict[Path, Path]) -> Problem:
    where, message = problem.where, problem.message
    for copy, directory in staged.items():
        where = where.replace(str(copy), str(directory))
        message = message.replace(str(copy), str(directory))
    return Problem(where=where, key=problem.key, message=message)
