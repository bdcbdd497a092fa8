"""What the gateway would say of its configuration if one file were another, or gone.

The files are laid out again as links in a temporary directory, with that one in its place among
them; nothing that a daemon reads is touched.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from rolemesh.config.dropins import ConfigSource
from rolemesh.config.load import load_gateway
from rolemesh.ctl.config import daemon_environment
from rolemesh.errors import ConfigError, Problem


def problems_with(source: ConfigSource, file: Path, text: str | None) -> tuple[Problem, ...]:
    """Return what would be wrong if `file`, in one of `source`'s directories, held `text`.

    None: if it were not there.
    """
    with tempfile.TemporaryDirectory(prefix="rolemeshctl-") as folder:
        staged = {
            Path(folder, str(index), directory.name): directory
            for index, directory in enumerate(source.directories)
        }
        for copy, directory in staged.items():
            _lay_out(copy, directory, file, text)
        try:
            load_gateway(_moved(source, list(staged)), daemon_environment("gateway"))
        except ConfigError as error:
            return tuple(_as_in_place(problem, staged) for problem in error.problems)
    return ()


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
