"""The signed repositories for apt and dnf: what clients take from them, and what they refuse."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.host_root import NoRoot
from tests.lab.tool_root import obstacle, run_in, tool_root

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
URL = "file:///public"

MAKE_KEY = """
gpg --batch --quiet --passphrase '' --quick-generate-key "$0 <$0@example.org>" rsa3072 sign 1y
"""

# In the form of the real ones, but made in a moment: what is in them is of no matter here.
MAKE_RPM = """
printf '%s\n' 'Name: rolemesh-probe' 'Version: 1' "Release: $1" 'Summary: .' 'License: MIT' \
    'BuildArch: noarch' %description . %files > /tmp/probe.spec
rpmbuild --quiet -bb --define '_topdir /tmp/rpm' --define "_rpmdir $0" \
    --define '_rpmfilename %{name}-%{version}-%{release}.noarch.rpm' /tmp/probe.spec
"""

CONFIGURE_APT = """
set -e
rm -f /etc/apt/sources.list
mkdir -p /etc/apt/keyrings
cp "/public/$0.asc" /etc/apt/keyrings/rolemesh.asc
cp /public/rolemesh.sources /etc/apt/sources.list.d/
"""

INSTALL_RPM = """
mkdir -p /etc/yum.repos.d
cp /public/rolemesh-$0.repo /etc/yum.repos.d/
dnf --assumeyes --releasever="$1" --installroot=/tmp/root --setopt=reposdir=/etc/yum.repos.d \
    install rolemesh-probe &&
rpm --root /tmp/root --query rolemesh-probe
"""


@dataclass(frozen=True, slots=True)
class Tools:
    """What makes and reads repositories: `run` raises nothing, and returns status and output."""

    root: Path
    keys: Path

    def run(self, *command: str | Path, **folders: Path) -> tuple[int, str]:
        """Run a command with the checkout at /source, and each of `folders` at /NAME."""
        done = run_in(
            self.root,
            *command,
            reads={"/source": ROOT},
            writes={"/keys": self.keys, **{f"/{name}": path for name, path in folders.items()}},
            environment={"GNUPGHOME": "/keys"},
        )
        return done.returncode, done.stdout

    def publish(self, key: str, packages: Path, public: Path) -> None:
        """Add packages to a repository, which is signed by a key of that name."""
        script = "/source/packaging/repository.sh"
        command = (script, key, "/packages", "/public", URL)
        status, output = self.run(*command, packages=packages, public=public)
        assert status == 0, output


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Return the tools, with two keys that last as long as this run: "ours" and "theirs"."""
    if reason := obstacle():
        pytest.skip(reason)
    keys = tmp_path_factory.mktemp("keys")
    keys.chmod(0o700)
    try:
        tools = Tools(tool_root(), keys)
    except NoRoot as err:
        pytest.skip(str(err))
    for name in ("ours", "theirs"):
        status, output = tools.run("sh", "-ec", MAKE_KEY, name)
        assert status == 0, output
    return tools


@pytest.fixture(scope="module")
def published(
    tools: Tools, packages: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a repository of the .debs and of an .rpm for Fedora 43 and for EL 10."""
    source = tmp_path_factory.mktemp("source")
    for package in packages.values():
        shutil.copy2(package, source)
    for release in ("1.fc43", "1.el10"):
        status, output = tools.run("sh", "-ec", MAKE_RPM, "/packages", release, packages=source)
        assert status == 0, output
    public = tmp_path_factory.mktemp("public")
    public.chmod(0o755)  # apt reads as a user of its own
    tools.publish("ours", source, public)
    status, theirs = tools.run("gpg", "--armor", "--export", "theirs")
    (public / "theirs.asc").write_text(theirs)
    (public / "ours.asc").write_text((public / "rolemesh.asc").read_text())
    return public


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    """Return a copy of the repository, to be damaged."""
    copy = tmp_path / "public"
    shutil.copytree(published, copy)
    copy.chmod(0o755)
    return copy


def apt(tools: Tools, public: Path, script: str, *, key: str = "ours") -> tuple[int, str]:
    """Run a script where apt is told to use the repository by that key, and no other.

    What the packages depend on is there already, next to the tools.
    """
    return tools.run("sh", "-c", f"{CONFIGURE_APT}\n{script}", key, public=public)


def dnf(tools: Tools, public: Path, *, kind: str, release: str) -> tuple[int, str]:
    """Install the .rpm in an empty root, as the .repo file says; the key is taken from there."""
    return tools.run("sh", "-ec", INSTALL_RPM, kind, release, public=public)


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_apt_installs_what_is_signed_by_our_key(tools: Tools, published: Path) -> None:
    script = "apt-get update -q && apt-get install -qy --no-install-recommends rolemesh && rolemesh-gateway --version"
    status, output = apt(tools, published, script)
    assert status == 0, output
    assert "\nW:" not in output
    assert "\nN:" not in output
    assert output.splitlines()[-1].startswith("rolemesh-gateway ")


def test_apt_refuses_what_is_signed_by_another_key(tools: Tools, published: Path) -> None:
    status, output = apt(tools, published, "apt-get update -q", key="theirs")
    assert status != 0, output
    assert "is not signed" in output


def test_apt_refuses_an_index_that_was_changed(tools: Tools, copied: Path) -> None:
    for index in ("Packages", "Packages.gz"):
        (copied / "apt" / index).write_bytes(b"Package: rolemesh\nVersion: 9\n")
    status, output = apt(tools, copied, "apt-get update -q")
    assert status != 0, output
    assert "unexpected size" in output or "Hash Sum mismatch" in output


def test_apt_refuses_a_signed_statement_that_was_changed(tools: Tools, copied: Path) -> None:
    replace_bytes(copied / "apt/InRelease", b"Origin: RoleMesh", b"Origin: RoleMuse")
    status, output = apt(tools, copied, "apt-get update -q")
    assert status != 0, output
    assert "is not signed" in output


def test_apt_refuses_a_package_that_was_changed(tools: Tools, copied: Path) -> None:
    package = next((copied / "apt").glob("rolemesh-common_*.deb"))
    content = bytearray(package.read_bytes())
    content[-1] ^= 1
    package.write_bytes(content)
    script = "apt-get update -q && apt-get install -qy rolemesh-common"
    status, output = apt(tools, copied, script)
    assert status != 0, output
    assert "Hash Sum mismatch" in output


def test_an_older_version_stays_beside_the_new_one(
    tools: Tools, copied: Path, packages: Mapping[str, Path], tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    subprocess.run(["dpkg-deb", "--raw-extract", packages["rolemesh"], newer], check=True)
    replace_bytes(newer / "DEBIAN/control", b"\nVersion: ", b"\nVersion: 9+")
    folder = tmp_path / "packages"
    folder.mkdir()
    command = ["dpkg-deb", "--root-owner-group", "--build", str(newer), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    tools.publish("ours", folder, copied)
    index = (copied / "apt/Packages").read_text()
    versions = [line for line in index.splitlines() if line.startswith("Version: ")]
    assert len(versions) == len(packages) + 1
    assert any(line.startswith("Version: 9+") for line in versions)


@pytest.mark.parametrize(("kind", "release"), [("fedora", "43"), ("el", "10"), ("el", "10.1")])
def test_dnf_installs_what_is_signed_by_our_key(
    tools: Tools, published: Path, kind: str, release: str
) -> None:
    status, output = dnf(tools, published, kind=kind, release=release)
    assert status == 0, output
    suffix = {"fedora": "fc43", "el": "el10"}[kind]
    assert output.splitlines()[-1] == f"rolemesh-probe-1-1.{suffix}.noarch"


def test_dnf_refuses_an_index_that_was_changed(tools: Tools, copied: Path) -> None:
    replace_bytes(copied / "rpm/fc43/repodata/repomd.xml", b"<revision>", b"<revision>1")
    status, output = dnf(tools, copied, kind="fedora", release="43")
    assert status != 0, output
    assert "Unable to find a match" in output


def test_dnf_refuses_a_repository_of_another_key(tools: Tools, copied: Path) -> None:
    shutil.copy(copied / "theirs.asc", copied / "rolemesh.asc")
    status, output = dnf(tools, copied, kind="fedora", release="43")
    assert status != 0, output
    assert "theirs@example.org" in output
    assert "Unable to find a match" in output


def test_dnf_refuses_a_package_that_is_not_signed(tools: Tools, copied: Path) -> None:
    """Even where the index, which is signed, has it."""
    folder = "/public/rpm/fc43"
    script = f"rpmsign --delsign {folder}/*.rpm && createrepo_c --quiet {folder} && gpg --yes \
        --local-user ours --armor --detach-sign {folder}/repodata/repomd.xml"
    status, output = tools.run("sh", "-ec", script, public=copied)
    assert status == 0, output
    status, output = dnf(tools, copied, kind="fedora", release="43")
    assert status != 0, output
    assert "is not signed" in output


def test_the_secret_key_is_not_published(published: Path) -> None:
    assert b"PRIVATE KEY" not in (published / "rolemesh.asc").read_bytes()
    assert not list(published.rglob("*.key"))


def test_nothing_is_published_without_a_secret_key(tools: Tools, tmp_path: Path) -> None:
    packages, public = tmp_path / "packages", tmp_path / "public"
    packages.mkdir()
    public.mkdir()
    (packages / "any.deb").touch()
    command = ("/source/packaging/repository.sh", "nobody", "/packages", "/public", URL)
    status, output = tools.run(*command, packages=packages, public=public)
    assert status != 0, output
    assert list(public.iterdir()) == []
