"""A source -> settings, or every problem at once: the configuration path in one function.

What only one of the programs needs is imported where that begins: each cold model waits for this.
"""

import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rolemesh.config.dropins import ConfigSource, Reading, read_fragments
from rolemesh.config.keys import SECTIONS, KeyFiles, exposed_keys, read_key_files, repeated_keys
from rolemesh.config.merge import SHAPES, merge
from rolemesh.config.node_checks import node_checks
from rolemesh.config.node_settings import build_node_settings
from rolemesh.config.schema import check_schema
from rolemesh.config.settings import GatewaySettings, NodeSettings
from rolemesh.config.tree import Finding, Node
from rolemesh.errors import ConfigError, Problem

SettingsT = TypeVar("SettingsT", bound=GatewaySettings | NodeSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[SettingsT]):
    """An accepted configuration.

    `warnings` are what is doubtful about it, `files` what it was read from, `root` the merged
    tree with the origin of every value.
    """

    settings: SettingsT
    warnings: tuple[Problem, ...]
    files: tuple[Path, ...]
    root: Node


def load_gateway(
    source: ConfigSource, environ: Mapping[str, str] = os.environ
) -> Loaded[GatewaySettings]:
    """Return the gateway's settings; raises ConfigError with everything that is wrong."""
    from rolemesh.config.gateway_checks import gateway_checks  # noqa: PLC0415
    from rolemesh.config.gateway_settings import build_gateway_settings  # noqa: PLC0415
    from rolemesh.config.tls_checks import tls_findings  # noqa: PLC0415

    def read_keys(root: Node) -> KeyFiles:
        return read_key_files(root, environ)

    def checks(root: Node) -> Iterator[Finding]:
        yield from gateway_checks(root)
        yield from tls_findings(root, "gateway")

    return _load(source, read_keys, checks, build_gateway_settings)


def load_node(
    source: ConfigSource, environ: Mapping[str, str] = os.environ, *, reads_keys: bool = True
) -> Loaded[NodeSettings]:
    """Return the node's settings; raises ConfigError with everything that is wrong.

    `reads_keys`: whether to read the files that hold keys, or certificates. A program that needs
    none may not be allowed to; the keys in files are then missing from the settings.
    """

    def build(root: Node, key_files: KeyFiles) -> NodeSettings:
        return build_node_settings(root, key_files, host_name=socket.gethostname())

    def read_keys(root: Node) -> KeyFiles:
        return read_key_files(root, environ) if reads_keys else KeyFiles()

    def checks(root: Node) -> Iterator[Finding]:
        yield from node_checks(root)
        if reads_keys:
            from rolemesh.config.tls_checks import tls_findings  # noqa: PLC0415

            yield from tls_findings(root, "node")

    return _load(source, read_keys, checks, build)


def _load(
    source: ConfigSource,
    read_keys: Callable[[Node], KeyFiles],
    checks: Callable[[Node], Iterator[Finding]],
    build: Callable[[Node, KeyFiles], SettingsT],
) -> Loaded[SettingsT]:
    reading = read_fragments(source)
    # What a file that cannot be read would have said is unknown: judging the rest would mislead.
    _refuse(reading.findings, reading)
    merged = merge(reading.fragments, SHAPES[source.program])
    checked = check_schema(merged.root, source.program, is_lenient=source.is_lenient)
    key_files = read_keys(checked.root)
    findings = [
        *reading.findings,
        *merged.findings,
        *checked.findings,
        *checks(checked.root),
        *key_files.findings,
        *exposed_keys(checked.root, reading.files),
    ]
    for section in SECTIONS[source.program]:
        findings += repeated_keys(checked.root, section, key_files)
    _refuse(findings, reading)
    return Loaded(
        settings=build(checked.root, key_files),
        warnings=_problems(findings, reading, are_warnings=True),
        files=reading.files,
        root=checked.root,
    )


def _refuse(findings: Collection[Finding], reading: Reading) -> None:
    problems = _problems(findings, reading, are_warnings=False)
    if problems:
        raise ConfigError(problems, _problems(findings, reading, are_warnings=True))


def _problems(
    findings: Collection[Finding], reading: Reading, *, are_warnings: bool
) -> tuple[Problem, ...]:
    """Return the warnings, or all but the warnings, in the order a reader would come by them."""
    rank = {str(path): index for index, path in enumerate(reading.files)}
    chosen = [finding for finding in findings if finding.is_warning is are_warnings]
    chosen.sort(key=lambda found: (rank.get(found.origin.source, -1), found.origin.line or 0))
    return tuple(dict.fromkeys(finding.problem() for finding in chosen))
