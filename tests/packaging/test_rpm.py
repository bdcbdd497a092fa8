"""The rpms: what is in them, what they ask of Fedora and EL 10, and a life in a throw-away root."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import rolemesh
from tests.lab.rpms import NEWER, build_rpms
from tests.lab.tool_root import run_in, tool_root
from tests.packaging.conftest import PREREQUISITES_MISSING

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

LIFE = Path(__file__).with_name("rpm_life.sh")
TARGETS = {"fc42": "3.13", "fc43": "3.14", "el10": "3.12"}
NAMES = ["rolemesh", "rolemesh-common", "rolemesh-gateway", "rolemesh-node-agent"]

# python3-aiohttp, python3-httptools, python3-jeepney, python3-jsonschema and python3-pyyaml have
# these names in all of them.
DISTRIBUTIONS = {
    "(aiohttp) >= 3.8",
    "(httptools) >= 0.1.1",
    "(jeepney) >= 0.8",
    "(jsonschema) >= 4.10",
    "(pyyaml)",
}

# Debian's alone, and how what is in both is called there.
ONLY_IN_DEBS = {
    "/etc/needrestart/conf.d/rolemesh.conf",
    "/usr/share/lintian/overrides/rolemesh-node-agent",
}


@dataclass(frozen=True, slots=True)
class Built:
    """The packages for all targets, and the tree they are made of."""

    folder: Path
    tree: Path

    def package(self, name: str, dist: str = "fc43") -> str:
        """Return a package's name in the folder."""
        return f"{name}-{rolemesh.__version__}-1.{dist}.noarch.rpm"

    def query(self, package: str, *options: str) -> list[str]:
        """Return what `rpm --query` prints of a package, line by line."""
        command = ("rpm", "--query", *options, "--package", f"/srv/rpms/{package}")
        done = run_in(tool_root(), *command, reads={"/srv/rpms": self.folder})
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    def relations(self, package: str, kind: str) -> set[str]:
        """Return what a package requires or provides, but for what rpm itself is asked."""
        return {line for line in self.query(package, kind) if not line.startswith("rpmlib(")}


@pytest.fixture(scope="module")
def built(rpms: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built") / "rpms"
    targets = [f"{python}:.{dist}" for dist, python in TARGETS.items()]
    build_rpms(rpms / "tree", folder, *targets)
    return Built(folder, rpms / "tree")


def test_the_packages_are_these_four_and_their_source(built: Built) -> None:
    for dist in TARGETS:
        found = {path.name for path in built.folder.glob(f"*.{dist}.*")}
        source = f"rolemesh-{rolemesh.__version__}-1.{dist}.src.rpm"
        assert found == {source, *(built.package(name, dist) for name in NAMES)}


@pytest.mark.parametrize("dist", TARGETS)
def test_the_modules_ask_for_what_the_distribution_has(built: Built, dist: str) -> None:
    python = TARGETS[dist]
    assert built.relations(built.package("rolemesh-common", dist), "--requires") == {
        "/bin/sh",
        "/usr/bin/python3",
        f"python(abi) = {python}",
        *(f"python{python}dist{each}" for each in DISTRIBUTIONS),
    }


def test_what_makes_it_faster_is_not_required(built: Built) -> None:
    recommended = built.relations(built.package("rolemesh-common"), "--recommends")
    assert recommended == {
        f"python3-{name}" for name in ("msgspec", "sdnotify", "systemd", "uvloop")
    }


def test_the_modules_can_be_required_by_their_name_in_python(built: Built) -> None:
    version = f"{rolemesh.__version__}-1.fc43"
    short = re.sub(r"(\.0)+$", "", rolemesh.__version__)
    provided = built.relations(built.package("rolemesh-common"), "--provides")
    assert {each for each in provided if not each.startswith("group(")} == {
        f"python3.14dist(rolemesh) = {short}",
        f"python3dist(rolemesh) = {short}",
        f"rolemesh-common = {version}",
    }


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("rolemesh-gateway", {"group(_rolemesh-gateway)"}),
        ("rolemesh-node-agent", {"polkit", "group(_rolemesh-llama)"}),
    ],
)
def test_a_daemon_asks_for_systemd_and_brings_the_users_it_asks_for(
    built: Built, name: str, more: set[str]
) -> None:
    version = f"{rolemesh.__version__}-1.el10"
    package = built.package(name, "el10")
    required = built.relations(package, "--requires")
    brought = built.relations(package, "--provides")
    assert required == more | {
        "/bin/sh",
        "/usr/bin/python3",
        "systemd",
        f"config({name}) = {version}",
        f"rolemesh-common = {version}",
    }
    assert {each for each in required if each.startswith(("group(", "config("))} <= brought


def test_the_metapackage_brings_both_daemons(built: Built) -> None:
    version = f"{rolemesh.__version__}-1.fc42"
    assert built.relations(built.package("rolemesh", "fc42"), "--requires") == {
        f"rolemesh-gateway = {version}",
        f"rolemesh-node-agent = {version}",
    }


def verbs(built: Built, name: str) -> list[str]:
    """Return what a package's scripts ask of systemd's helper, in their order."""
    script = "\n".join(built.query(built.package(name), "--scripts"))
    assert "%" not in script, "a macro that nobody has defined"
    return re.findall(r"systemd-update-helper (\S.*) \|\| :", script)


def test_an_upgrade_reloads_the_gateway(built: Built) -> None:
    assert verbs(built, "rolemesh-gateway") == [
        "install-system-units rolemesh-gateway.service",
        "remove-system-units rolemesh-gateway.service",
        "mark-reload-system-units rolemesh-gateway.service",
    ]


def test_an_upgrade_leaves_llama_servers_alone_and_removal_ends_agents_first(built: Built) -> None:
    assert verbs(built, "rolemesh-node-agent") == [
        "install-system-units rolemesh-node-agent.service rolemesh-llama.target",
        "remove-system-units rolemesh-node-agent.service rolemesh-node-agent@.service",
        "remove-system-units rolemesh-llama.target rolemesh-llama@.service",
        "mark-reload-system-units rolemesh-node-agent.service",
    ]


def packaged(built: Built, name: str) -> set[str]:
    """Return a package's files (no directories, nothing that is only made later)."""
    layout = r"[%{FILEMODES:perms} %{FILEFLAGS:fflags} %{FILENAMES}\n]"
    lines = (
        line.split(" ") for line in built.query(built.package(name), f"--queryformat={layout}")
    )
    return {path for mode, flags, path in lines if mode[0] != "d" and "g" not in flags}


def as_in_fedora(root: Path) -> set[str]:
    """Return the files of an unpacked .deb, by the paths they have in Fedora."""
    places = (f"/{path.relative_to(root)}" for path in root.rglob("*") if not path.is_dir())
    found = set()
    for place in places:
        if place.startswith("/DEBIAN/") or re.search(r"/doc/[^/]+/(changelog\.|copyright$)", place):
            continue
        found.add(place.replace("python3/dist-packages", "python3.14/site-packages"))
    return found - ONLY_IN_DEBS


def in_both(name: str) -> bool:
    """Say whether a file is one that Debian does not have elsewhere, or under a name of its own."""
    return not re.search(r"^/usr/share/licenses/|\.dist-info/|/CHANGELOG\.md$", name)


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_those_of_the_debian_package(
    built: Built, unpacked: Mapping[str, Path], name: str
) -> None:
    ours = {path for path in packaged(built, name) if in_both(path)}
    assert ours == {path for path in as_in_fedora(unpacked[name]) if in_both(path)}


def test_two_builds_are_equal_byte_for_byte(built: Built, tmp_path: Path) -> None:
    tree = shutil.copytree(built.tree, tmp_path / "tree")
    again = build_rpms(tree, tmp_path / "rpms", "3.14:.fc43")
    assert len(again) == 5
    for package in again:
        assert package.read_bytes() == (built.folder / package.name).read_bytes(), package.name


def test_who_is_not_root_is_told_what_the_build_needs(built: Built) -> None:
    script = """
        rm /usr/bin/rpmbuild
        exec setpriv --reuid=65534 --regid=65534 --clear-groups \\
            /srv/tree/packaging/build-rpm.sh /tmp/rpms
    """
    done = run_in(tool_root(), "sh", "-euc", script, reads={"/srv/tree": built.tree})
    assert done.returncode == PREREQUISITES_MISSING
    assert "sudo apt-get install" in done.stdout


def test_rpmlint_has_nothing_to_say(built: Built) -> None:
    script = """
        cd /tmp
        rpm2cpio /srv/rpms/*.fc43.src.rpm | cpio --extract --quiet '*.spec'
        rpmlint --config /srv/tree/packaging/rpm/rpmlint.toml /srv/rpms/*.rpm *.spec
    """
    lent = {"/srv/rpms": built.folder, "/srv/tree": built.tree}
    done = run_in(tool_root(), "sh", "-euc", script, reads=lent)
    assert "0 errors, 0 warnings" in done.stdout, done.stdout
    assert done.returncode == 0


@pytest.fixture(scope="module")
def life(rpms: Path) -> Mapping[str, list[str]]:
    """Return the output of each step of a life: installed, upgraded, erased."""
    lent = {"/srv/life": LIFE.parent, "/srv/rpms": rpms}
    done = run_in(tool_root(), f"/srv/life/{LIFE.name}", "/srv/rpms", reads=lent)
    assert done.returncode == 0, done.stdout
    steps = [each.splitlines() for each in re.split(r"^== ", done.stdout, flags=re.MULTILINE)[1:]]
    return {name: output for name, *output in steps}


def test_an_installation_is_silent_and_complete(life: Mapping[str, list[str]]) -> None:
    assert life["install"] == []
    assert life["verify"] == []


def test_users_groups_and_directories_are_made(life: Mapping[str, list[str]]) -> None:
    assert sorted(life["users"]) == [
        "_rolemesh-agent",
        "_rolemesh-agent:RoleMesh node agent:/var/lib/rolemesh/agent:/sbin/nologin",
        "_rolemesh-gateway",
        "_rolemesh-gateway:RoleMesh gateway:/var/lib/rolemesh/gateway:/sbin/nologin",
        "_rolemesh-llama",
        "_rolemesh-llama:RoleMesh llama-servers:/var/lib/rolemesh/models:/sbin/nologin",
        "rolemesh",
    ]
    assert life["directories"] == [
        "750 root _rolemesh-gateway /etc/rolemesh/gateway.d",
        "750 root _rolemesh-llama /etc/rolemesh/node.d",
        "2775 root rolemesh /var/lib/rolemesh/models",
        "2750 _rolemesh-agent _rolemesh-llama /run/rolemesh/llama",
    ]


def test_users_and_directories_come_out_the_same_where_rpm_makes_no_users(rpms: Path) -> None:
    """As in EL 10."""
    script = """
        rpm --install /srv/rpms/stand-in/*.rpm
        rpm --install --undefine=__systemd_sysusers /srv/rpms/ours/*.noarch.rpm >/dev/null 2>&1
        stat --format='%a %U %G %n' /etc/rolemesh/*.d
        rpm --verify --all
    """
    done = run_in(tool_root(), "sh", "-euc", script, reads={"/srv/rpms": rpms})
    assert done.stdout.splitlines() == [
        "750 root _rolemesh-gateway /etc/rolemesh/gateway.d",
        "750 root _rolemesh-llama /etc/rolemesh/node.d",
    ]


def test_the_programs_run_where_they_are_installed(life: Mapping[str, list[str]]) -> None:
    programs = ("rolemesh-gateway", "rolemesh-node-agent", "rolemeshctl", "rolemesh-llama")
    versions = [f"{program} {rolemesh.__version__}" for program in programs]
    assert life["programs"][: len(versions)] == versions


def test_an_upgrade_keeps_what_an_admin_wrote(life: Mapping[str, list[str]]) -> None:
    assert life["upgrade"] == []
    assert life["versions after the upgrade"] == [f"rolemesh-gateway {NEWER}"]
    assert life["verify the upgrade"] == ["S.5....T.  c /etc/rolemesh/gateway.d/README"]
    assert life["kept by the upgrade"] == ["# mine", "50-mine.yaml", "README"]


def test_erasing_leaves_what_an_admin_wrote_and_state(life: Mapping[str, list[str]]) -> None:
    saved = "/etc/rolemesh/gateway.d/README.rpmsave"
    assert life["erase"] == [
        f"warning: /etc/rolemesh/gateway.d/README saved as {saved}",
    ]
    assert life["leftovers"] == [
        "/etc/rolemesh",
        "/etc/rolemesh/gateway.d",
        "/etc/rolemesh/gateway.d/50-mine.yaml",
        saved,
        "/run/rolemesh",
        "/run/rolemesh/llama",
        "/var/lib/rolemesh",
        "/var/lib/rolemesh/models",
    ]
