"""Which files make up a program's configuration, in which order, and what is in them.

Fragments come from `P.d` directories in systemd's order of precedence: sorted by file name across
all directories, a file of the same name in a higher directory in place of the lower one, an empty
file or a symlink to /dev/null in place of none. The environment and the command line follow as
further fragments. Nothing here knows what the keys mean.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rolemesh.config import tree
from rolemesh.config.tree import Finding, Node, Origin, Program
from rolemesh.config.yamlread import YamlError, read_yaml

ROOTS: Final = tuple(
    map(Path, ("/usr/lib/rolemesh", "/usr/local/lib/rolemesh", "/run/rolemesh", "/etc/rolemesh"))
)
"""Where `P.d` is looked for; later ones take precedence."""

MAX_FILE_BYTES: Final = 1 << 20

_DEV_NULL: Final = os.makedev(1, 3)
_OTHER_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json", ".conf"})
_SINGLE_FILES: Final[dict[Program, tuple[str, ...]]] = {
    "gateway": ("gateway", "models"),
    "node": ("node", "node_agent", "node-agent"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One value set outside the files; `origin` is the option or variable that set it."""

    origin: str
    path: tuple[str, ...]
    value: tree.Scalar | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSource:
    """Where one program's configuration comes from; every path is absolute.

    `config` is read instead of the directories, `config_dir` replaces the directories under
    `roots`, `override` is merged after either, `overrides` after that.
    """

    program: Program
    config: Path | None = None
    config_dir: Path | None = None
    override: Path | None = None
    overrides: tuple[Override, ...] = ()
    roots: tuple[Path, ...] = ROOTS

    @property
    def is_lenient(self) -> bool:
        """Whether unknown keys are only warned about: in the old single-file form."""
        return self.config is not None

    @property
    def directories(self) -> tuple[Path, ...]:
        """The drop-in directories, lowest precedence first."""
        if self.config is not None:
            return ()
        if self.config_dir is not None:
            return (self.config_dir,)
        return tuple(root / f"{self.program}.d" for root in self.roots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a source holds: fragments in the order they are merged in."""

    fragments: tuple[Node, ...]
    files: tuple[Path, ...]
    findings: tuple[Finding, ...]


def read_fragments(source: ConfigSource) -> Reading:
    """Read every fragment of `source`; files that cannot be read become findings."""
    paths, findings = _listed_files(source)
    findings += _files_beside(source)
    fragments: list[Node] = []
    for path in paths:
        try:
            fragments.append(_read_fragment(path))
        except YamlError as error:
            findings += error.findings
    fragments += [tree.nested(o.path, o.value, Origin(o.origin)) for o in source.overrides]
    return Reading(fragments=tuple(fragments), files=paths, findings=tuple(findings))


def _listed_files(source: ConfigSource) -> tuple[tuple[Path, ...], list[Finding]]:
    chosen: dict[str, Path] = {}
    findings: list[Finding] = []
    for directory in source.directories:
        try:
            names = sorted(path.name for path in directory.iterdir())
        except FileNotFoundError:
            if source.config_dir is not None:
                findings.append(_finding(directory, "there is no such directory"))
            continue
        except OSError as error:
            findings.append(_finding(directory, _unreadable(error)))
            continue
        for name in names:
            if _is_fragment(directory / name):
                chosen[name] = directory / name
            else:
                findings += _near_miss(directory / name)
    unmasked = [chosen[name] for name in sorted(chosen) if not _is_mask(chosen[name])]
    single = (path for path in (source.config, source.override) if path is not None)
    return (*unmasked, *single), findings


def _is_fragment(path: Path) -> bool:
    return path.suffix == ".yaml" and not path.name.startswith(".") and not _is_directory(path)


def _is_mask(path: Path) -> bool:
    found = _status(path)
    if found is None:
        return False
    return _is_dev_null(found) or (stat.S_ISREG(found.st_mode) and found.st_size == 0)


def _is_dev_null(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == _DEV_NULL


def _is_directory(path: Path) -> bool:
    found = _status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        # Reading it says why.
        return None


def _near_miss(path: Path) -> Iterator[Finding]:
    """Warn about a file that somebody may believe to be read."""
    if path.name.startswith(".") or path.suffix.lower() not in _OTHER_SUFFIXES:
        return
    if _is_directory(path):
        if path.suffix == ".yaml":
            yield _finding(path, "not read: it is a directory", is_warning=True)
        return
    message = f"not read: its name does not end in .yaml; rename it to {path.stem}.yaml"
    yield _finding(path, message, is_warning=True)


def _files_beside(source: ConfigSource) -> Iterator[Finding]:
    """Warn about single configuration files that stand beside the drop-in directories."""
    if source.config is not None or source.config_dir is not None:
        return
    for root in source.roots:
        for stem in _SINGLE_FILES[source.program]:
            for path in (root / f"{stem}.yaml", root / f"{stem}.yml"):
                if _status(path) is not None:
                    better = root / f"{source.program}.d" / f"50-{stem}.yaml"
                    message = f"not read; rename it to {better}, or name it with --config"
                    yield _finding(path, message, is_warning=True)


def _read_fragment(path: Path) -> Node:
    try:
        text = _decode(path, _read_bounded(path))
    except OSError as error:
        raise YamlError((_finding(path, _unreadable(error)),)) from error
    root = read_yaml(text, str(path))
    if root is None or root.value is None:
        return tree.empty(str(path))
    if not isinstance(root.value, dict):
        raise YamlError((tree.mismatch(root, (), "a mapping of settings"),))
    return root


def _read_bounded(path: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) and not _is_dev_null(found):
            raise YamlError((_finding(path, "expected a file, found something else"),))
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise YamlError((_finding(path, f"expected at most {MAX_FILE_BYTES} bytes, found more"),))
    return content


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        origin = Origin(str(path), content.count(b"\n", 0, error.start) + 1)
        message = f"expected UTF-8 text, found byte 0x{content[error.start]:02x}"
        # Not chained: the library's error holds the whole file.
        raise YamlError((Finding(origin=origin, message=message),)) from None


def _finding(path: Path, message: str, *, is_warning: bool = False) -> Finding:
    return Finding(origin=Origin(str(path)), message=message, is_warning=is_warning)


def _unreadable(error: OSError) -> str:
    by_whom = f" by uid {os.geteuid()}" if isinstance(error, PermissionError) else ""
    return f"cannot be read{by_whom}: {error.strerror}"
