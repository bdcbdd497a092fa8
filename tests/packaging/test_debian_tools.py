"""What Debian's own tools say of the packages and of their source, in the newest stable Debian."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.lab.host_root import NoRoot, cached_archive
from tests.lab.tool_root import obstacle, run_in, tool_root
from tests.packaging.conftest import ROOT, build_packages

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

# Debian wants a first upload to close the bug that asked for the package.
NOT_FOR_US = "initial-upload-closes-no-bugs"
BUILD = """
mkdir /tmp/build
cp /srv/source/*.dsc /srv/source/*.tar.* /tmp/build/
cd /tmp/build
dpkg-source --extract *.dsc tree
cd tree
dpkg-buildpackage --build=full --no-sign
cp ../rolemesh*.* /srv/packages/
"""
PIUPARTS = """
zstd --quiet --decompress --stdout /srv/root.tar.zst | gzip -1 >/tmp/base.tgz
piuparts --distribution=trixie --basetgz=/tmp/base.tgz --mirror='http://127.0.0.1:1 main' \
    --no-eatmydata --skip-minimize --no-upgrade-test /srv/packages/*.changes 2>&1
"""
SOURCES = {".dsc", ".gz", ".xz"}


@pytest.fixture(scope="module")
def tools() -> Path:
    """Return the root that has the tools."""
    if reason := obstacle():
        pytest.skip(reason)
    try:
        return tool_root()
    except NoRoot as err:
        pytest.skip(str(err))


@pytest.fixture(scope="module")
def of_trixie(
    tools: Path, packages: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder with the packages that Debian 13 builds of our source package."""
    folder = tmp_path_factory.mktemp("trixie")
    places = {"/srv/source": packages["rolemesh"].parent}, {"/srv/packages": folder}
    done = run_in(tools, "sh", "-ec", BUILD, reads=places[0], writes=places[1])
    assert done.returncode == 0, done.stdout
    return folder


def names_in(package: Path) -> set[str]:
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as packed:
        listed = subprocess.run(
            ["tar", "-t"], stdin=packed.stdout, capture_output=True, text=True, check=True
        )
    # Of what setuptools says of a module, each version says a little more.
    return {line for line in listed.stdout.splitlines() if ".dist-info/" not in line}


def test_each_debian_builds_packages_of_the_same_files(
    packages: Mapping[str, Path], of_trixie: Path
) -> None:
    for name, package in packages.items():
        assert names_in(of_trixie / package.name) == names_in(package), name


def test_lintian_finds_neither_errors_nor_warnings(tools: Path, of_trixie: Path) -> None:
    options = ("--allow-root", "--fail-on=error,warning", f"--suppress-tags={NOT_FOR_US}")
    (changes,) = of_trixie.glob("*.changes")
    command = ("lintian", *options, f"/srv/packages/{changes.name}")
    done = run_in(tools, *command, reads={"/srv/packages": of_trixie})
    assert (done.stdout, done.returncode) == ("", 0)


def test_piuparts_finds_nothing_that_a_purge_leaves(tools: Path, of_trixie: Path) -> None:
    archive = cached_archive("trixie")
    place = f"/srv/roots/{archive.name}"
    done = run_in(
        tools,
        "sh",
        "-ec",
        PIUPARTS.replace("/srv/root.tar.zst", place),
        reads={"/srv/packages": of_trixie, "/srv/roots": archive.parent},
    )
    assert "PASS: Installation and purging test." in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout


def copied_for_the_owner(source: str | Path, target: str | Path) -> None:
    """Copy a file as of now, and so that nobody else can read it."""
    shutil.copyfile(source, target)
    Path(target).chmod(Path(source).stat().st_mode & 0o700)


def test_two_builds_are_equal_byte_for_byte(packages: Mapping[str, Path], tmp_path: Path) -> None:
    """Wherever the checkout lies, whenever it was made, and whoever's umask it was made with."""
    elsewhere = tmp_path / "a checkout elsewhere"
    for name in ("docs", "etc", "packaging", "rolemesh", "systemd"):
        shutil.copytree(ROOT / name, elsewhere / name, copy_function=copied_for_the_owner)
    for name in ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"):
        copied_for_the_owner(ROOT / name, elsewhere / name)
    again = build_packages(tmp_path / "built", checkout=elsewhere, umask=0o077)
    first = packages["rolemesh"].parent
    names = {path.name for path in first.iterdir() if path.suffix in {".deb", *SOURCES}}
    assert {path.suffix for path in map(Path, names)} == {".deb", *SOURCES}
    for name in names:
        assert (first / name).read_bytes() == (again["rolemesh"].parent / name).read_bytes(), name
