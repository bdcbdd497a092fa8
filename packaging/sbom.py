#!/usr/bin/python3
"""sbom.py VERSION: what RoleMesh ships and what it needs, as a CycloneDX 1.6 document on stdout.

It lists every file of the program with its digest, and the dependencies that pyproject.toml declares,
by their names on PyPI, in Debian and in Fedora. Which version of a dependency runs is up to the
machine: a range is all that can be said here. The same tree and $SOURCE_DATE_EPOCH give the same
document, byte for byte.

The format: https://cyclonedx.org/docs/1.6/json/; purls: https://github.com/package-url/purl-spec.
"""

import datetime as dt
import hashlib
import json
import os
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("rolemesh", "systemd")
EXTRAS = ("fast", "journal")  # of pyproject.toml; the others are for work on RoleMesh itself
NAMESPACE = uuid.UUID("4c0b1b1e-6f0c-5d0e-9d5e-3b7c1a7f3a51")  # any, but always the same


@dataclass(frozen=True)
class Dependency:
    """A library or a program that RoleMesh uses; "" is for who does not have it."""

    name: str
    debian: str
    fedora: str
    licence: str
    versions: str = ""
    optional: bool = False
    pypi: bool = True


# What pyproject.toml does not know: names in the distributions, and licences (SPDX).
LIBRARIES = {
    each.name: each
    for each in (
        Dependency("aiohttp", "python3-aiohttp", "python3-aiohttp", "Apache-2.0 AND MIT"),
        Dependency("PyYAML", "python3-yaml", "python3-pyyaml", "MIT"),
        Dependency("jsonschema", "python3-jsonschema", "python3-jsonschema", "MIT"),
        Dependency("jeepney", "python3-jeepney", "python3-jeepney", "MIT"),
        Dependency("httptools", "python3-httptools", "python3-httptools", "MIT"),
        Dependency("sdnotify", "python3-sdnotify", "python3-sdnotify", "MIT", optional=True),
        Dependency("nvidia-ml-py", "python3-pynvml", "", "BSD-3-Clause", optional=True),
        Dependency("uvloop", "python3-uvloop", "python3-uvloop", "MIT OR Apache-2.0"),
        Dependency("msgspec", "python3-msgspec", "python3-msgspec", "BSD-3-Clause"),
        Dependency("systemd-python", "python3-systemd", "python3-systemd", "LGPL-2.1-or-later"),
    )
}
PROGRAMS = (
    Dependency("python", "python3", "python3", "PSF-2.0", versions=">=3.11", pypi=False),
    Dependency(
        "systemd", "systemd", "systemd", "LGPL-2.1-or-later", versions=">=252", pypi=False,
        optional=True,
    ),
    Dependency("dbus", "dbus", "dbus", "AFL-2.1 OR GPL-2.0-or-later", pypi=False, optional=True),
    Dependency("polkit", "polkitd", "polkit", "LGPL-2.0-or-later", pypi=False, optional=True),
    Dependency("llama.cpp", "llama.cpp", "llama-cpp", "MIT", pypi=False, optional=True),
)  # fmt: skip


def dependencies(project: Mapping[str, Any]) -> Iterator[Dependency]:
    """Yield what `[project]` of pyproject.toml names, and the programs beside it."""
    named = [(each, False) for each in project["dependencies"]]
    for extra in EXTRAS:
        named += [(each, True) for each in project["optional-dependencies"][extra]]
    for requirement, optional in named:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", requirement)
        if match is None or match[1] not in LIBRARIES:
            sys.exit(f"packaging/sbom.py: LIBRARIES does not have {requirement}")
        known = LIBRARIES[match[1]]
        yield Dependency(
            **{
                **vars(known),
                "versions": match[2].strip(),
                "optional": optional or known.optional,
            }
        )
    yield from PROGRAMS


def dependency_component(each: Dependency) -> dict[str, Any]:
    """Return the component of a dependency; its distribution packages stand in its properties."""
    packages = {
        "rolemesh:versions": each.versions,
        "rolemesh:package:debian": f"pkg:deb/debian/{each.debian}" if each.debian else "",
        "rolemesh:package:fedora": f"pkg:rpm/fedora/{each.fedora}" if each.fedora else "",
    }
    return {
        "type": "library" if each.pypi else "application",
        "bom-ref": reference(each),
        "name": each.name,
        "scope": "optional" if each.optional else "required",
        "licenses": [licence(each.licence)],
        **({"purl": reference(each)} if each.pypi else {}),
        "properties": [{"name": name, "value": value} for name, value in packages.items() if value],
    }


def reference(each: Dependency) -> str:
    """Return the purl of a library (PyPI's names are lower-case in those), the name of a program."""
    return f"pkg:pypi/{each.name.lower()}" if each.pypi else f"program:{each.name}"


def licence(expression: str) -> dict[str, Any]:
    """Return one licence by its id, a choice of several as an expression."""
    if " " in expression:
        return {"expression": expression}
    return {"license": {"id": expression}}


def file_components(folders: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a component for every file that is shipped, in the order of their paths."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*"))
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(ROOT).as_posix()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield {
                "type": "file",
                "bom-ref": f"file:{name}",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }


def document(version: str, epoch: int) -> dict[str, Any]:
    """Return the whole document; `epoch` is its date, in seconds since 1970."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = list(dependencies(project))
    rolemesh = f"pkg:generic/rolemesh@{version}"
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "application",
                "bom-ref": rolemesh,
                "name": project["name"],
                "version": version,
                "description": project["description"],
                "licenses": [licence("MIT")],
                "purl": rolemesh,
                "components": list(file_components(SHIPPED)),
            },
        },
        "components": [dependency_component(each) for each in needed],
        "dependencies": [
            {"ref": rolemesh, "dependsOn": sorted(map(reference, needed))},
        ],
        # What the dependencies themselves depend on is not said here.
        "compositions": [
            {"aggregate": "complete", "assemblies": [rolemesh]},
            {"aggregate": "incomplete", "dependencies": sorted(map(reference, needed))},
        ],
    }
    content = json.dumps(bom, sort_keys=True)
    return {**bom, "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, content)}"}


def main(arguments: Sequence[str]) -> int:
    """Print the document."""
    if len(arguments) != 1 or "SOURCE_DATE_EPOCH" not in os.environ:
        sys.stderr.write("usage: SOURCE_DATE_EPOCH=... packaging/sbom.py VERSION\n")
        return 64
    made = document(arguments[0], int(os.environ["SOURCE_DATE_EPOCH"]))
    sys.stdout.write(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
