"""Command-line options that the programs share.

A daemon calls `add_daemon_options` (another program `add_source_options`), turns the parsed
options into a ConfigSource with `source_from`, and gives that to `check` (for `--check`: prints,
returns the exit status) or to `gateway_store` or `node_store`. `state_directory` says where state
is kept; `source_arguments` starts another program with the same configuration.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from rolemesh import __version__
from rolemesh.config.dropins import ConfigSource, Override
from rolemesh.config.load import Loaded, load_gateway, load_node
from rolemesh.config.node_files import node_file_warnings
from rolemesh.config.settings import GatewaySettings, Listen, NodeSettings
from rolemesh.config.tree import Program
from rolemesh.config.yamlread import resolve_scalar
from rolemesh.errors import ConfigError, Problem

EXIT_OK: Final = 0
EXIT_CONFIG: Final = 78

CONFIG_VARIABLE: Final = "ROLE_MESH_CONFIG"
OVERRIDE_VARIABLE: Final = "ROLE_MESH_CONFIG_OVERRIDE"
STALE_AFTER_VARIABLE: Final = "ROLE_MESH_NODE_STALE_AFTER_S"

_STATE_NAMES: Final[Mapping[Program, str]] = {"gateway": "gateway", "node": "agent"}


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the configuration is."""
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--config", metavar="FILE", type=Path, help="read FILE instead of the drop-in directories"
    )
    instead.add_argument(
        "--config-dir", metavar="DIR", type=Path, help="read DIR/*.yaml instead of them"
    )
    parser.add_argument(
        "--config-override", metavar="FILE", type=Path, help="merge FILE over the configuration"
    )


def add_daemon_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both daemons have."""
    add_source_options(parser)
    parser.add_argument(
        "--host", action="append", help="listen on HOST; may be repeated (default: listen.host)"
    )
    parser.add_argument("--port", type=int, help="listen on PORT (default: listen.port)")
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        help="keep state in DIR (default: $STATE_DIRECTORY)",
    )
    parser.add_argument(
        "--check", action="store_true", help="check the configuration, say what is wrong, and exit"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")


def source_from(
    args: argparse.Namespace, *, program: Program, environ: Mapping[str, str] = os.environ
) -> ConfigSource:
    """Return where the configuration is, as the options say or else the environment."""
    config: Path | None = args.config
    if config is None and args.config_dir is None:
        config = _path_in(environ, CONFIG_VARIABLE)
    override: Path | None = args.config_override or _path_in(environ, OVERRIDE_VARIABLE)
    return ConfigSource(
        program=program,
        config=_absolute(config),
        config_dir=_absolute(args.config_dir),
        override=_absolute(override),
        overrides=tuple(_overrides(args, program, environ)),
    )


def _path_in(environ: Mapping[str, str], variable: str) -> Path | None:
    text = environ.get(variable, "")
    return Path(text) if text else None


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _overrides(
    args: argparse.Namespace, program: Program, environ: Mapping[str, str]
) -> Iterator[Override]:
    stale_after = environ.get(STALE_AFTER_VARIABLE, "")
    if program == "gateway" and stale_after:
        value = resolve_scalar(stale_after)
        path = ("nodes", "stale_after_s")
        yield Override(origin=STALE_AFTER_VARIABLE, path=path, value=value)
    # A program without these options (rolemesh-llama) has no such attributes.
    host, port = getattr(args, "host", None), getattr(args, "port", None)
    if host is not None:
        yield Override(origin="--host", path=("listen", "host"), value=tuple(host))
    if port is not None:
        yield Override(origin="--port", path=("listen", "port"), value=port)


def source_arguments(source: ConfigSource) -> list[str]:
    """Return the options that make another program read the same files."""
    options = {
        "--config": source.config,
        "--config-dir": source.config_dir,
        "--config-override": source.override,
    }
    return [f"{option}={path}" for option, path in options.items() if path is not None]


def state_directory(
    args: argparse.Namespace, *, program: Program, environ: Mapping[str, str] = os.environ
) -> Path:
    """Return where the program keeps its state; it may not exist yet."""
    if args.state_dir is not None:
        return Path(args.state_dir).absolute()
    # systemd lists several directories with colons; the first is the program's own.
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    given = given or environ.get("ROLEMESH_STATE_DIRECTORY", "")
    if given:
        return Path(given).absolute()
    user_state = _path_in(environ, "XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return user_state / "rolemesh" / _STATE_NAMES[program]


def check(
    source: ConfigSource,
    environ: Mapping[str, str] = os.environ,
    *,
    refused: Callable[[ConfigError], None] | None = None,
) -> int:
    """Carry out `--check`: print warnings, problems and a summary; return the exit status.

    With `refused`, that is told of a refusal in place of stderr.
    """
    try:
        summary, warnings = _checked(source, environ)
    except ConfigError as error:
        if refused is not None:
            refused(error)
            return EXIT_CONFIG
        _print_errors("warning: ", error.warnings)
        _print_errors("", error.problems)
        count = _counted(len(error.problems), "problem")
        sys.stderr.write(f"{count}: this configuration is refused\n")
        return EXIT_CONFIG
    _print_errors("warning: ", warnings)
    sys.stdout.write(f"OK: {summary}\n")
    return EXIT_OK


def _print_errors(mark: str, problems: Iterable[Problem]) -> None:
    for problem in problems:
        sys.stderr.write(f"{mark}{problem}\n")


def _checked(source: ConfigSource, environ: Mapping[str, str]) -> tuple[str, tuple[Problem, ...]]:
    if source.program == "gateway":
        gateway = load_gateway(source, environ)
        return _summary(gateway, _gateway_facts(gateway.settings)), gateway.warnings
    node = load_node(source, environ)
    warnings = (*node.warnings, *node_file_warnings(node.settings))
    return _summary(node, _node_facts(node.settings)), warnings


def _summary(loaded: Loaded[GatewaySettings] | Loaded[NodeSettings], facts: Iterator[str]) -> str:
    return ", ".join((_counted(len(loaded.files), "file"), *facts))


def _gateway_facts(settings: GatewaySettings) -> Iterator[str]:
    yield _counted(len(settings.models), "alias", "aliases")
    yield _counted(len(settings.auth.clients), "client key")
    yield _counted(len(settings.auth.nodes), "node key")
    yield from _listen_facts(settings.listen)


def _node_facts(settings: NodeSettings) -> Iterator[str]:
    yield f"node {settings.node_id}"
    yield _counted(len(settings.models), "model")
    yield _counted(len(settings.instances), "instance")
    yield _counted(len(settings.gateways), "gateway")
    yield from _listen_facts(settings.listen)


def _listen_facts(listen: Listen) -> Iterator[str]:
    yield "listening on " + " and ".join(
        f"{_bracketed(host)}:{listen.port}" for host in listen.host
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count or 'no'} {one if count == 1 else many or one + 's'}"
