"""Our rpms, built in the root with tools, and what lets them be installed there.

There is no Fedora here. What a package asks of one is provided by a package of our own
(fedora.spec), under the names that Fedora and EPEL have; beneath is the Debian of the tool root,
whose Python is the one that PYTHON names.
"""

import re
import subprocess
from pathlib import Path

from tests.lab.tool_root import run_in, tool_root

PYTHON = "3.13"  # of the Debian that the tool root is
HERE = f"{PYTHON}:.here"
NEWER = "99.0"
SPEC = Path(__file__).with_name("fedora.spec")
REPOSITORY = Path(__file__).parents[2]


def make_rpms(folder: Path) -> None:
    """Make what an upgrade on a host needs: `ours` and, of a later version, `newer`; `stand-in`.

    `tree` is the checkout as it was then. Raises NoRoot.
    """
    build_rpms(copy_tree(folder / "tree"), folder / "ours", HERE)
    build_rpms(copy_tree(folder / "newer-tree", NEWER), folder / "newer", HERE)
    build_stand_in(folder / "stand-in")


def copy_tree(folder: Path, version: str | None = None) -> Path:
    """Copy what packages are made of into a new folder, under another version if one is named."""
    command = 'cd "$0" && . packaging/tree.sh && export_tree "$1"'
    subprocess.run(["bash", "-euc", command, REPOSITORY, folder], check=True)
    if version is not None:
        module, changelog = folder / "rolemesh/__init__.py", folder / "CHANGELOG.md"
        text = module.read_text()
        module.write_text(re.sub(r'(?m)^(__version__\b.*) = ".*"$', rf'\1 = "{version}"', text))
        entry = f"## {version} (2026-12-01)\n\n### Added\n\n- A version.\n\n"
        text = changelog.read_text()
        changelog.write_text(re.sub(r"(?m)^(?=## \d)", entry, text, count=1))
    return folder


def build_rpms(tree: Path, folder: Path, *targets: str) -> list[Path]:
    """Build the rpms of a tree into a (new) folder, for each target: "3.14:.fc43"."""
    folder.mkdir()
    done = run_in(
        tool_root(),
        "/srv/tree/packaging/build-rpm.sh",
        "/srv/rpms",
        reads={"/srv/tree": tree},
        writes={"/srv/rpms": folder},
        environment={"RPM_TARGETS": " ".join(targets)},
    )
    assert done.returncode == 0, done.stdout
    return sorted(folder.glob("*.rpm"))


def build_stand_in(folder: Path) -> Path:
    """Build what stands in for Fedora into a (new) folder."""
    folder.mkdir()
    options = ("--quiet", "--define=_topdir /srv/rpms/top", f"--define=python {PYTHON}")
    done = run_in(
        tool_root(),
        *("rpmbuild", "-bb", *options, "/srv/lab/fedora.spec"),
        reads={"/srv/lab": SPEC.parent},
        writes={"/srv/rpms": folder},
    )
    assert done.returncode == 0, done.stdout
    (package,) = folder.glob("top/RPMS/noarch/*.rpm")
    return package.rename(folder / package.name)
