"""Hosts with a real systemd: containers on a private network, for system tests.

Nothing of this machine is changed, and all that is made carries the tag of its run: any number of
runs work side by side. `obstacle` says whether hosts can run here at all.
"""

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.lab import control_group
from tests.lab.host import Host
from tests.lab.private_network import (
    CLIENT,
    PrivateNetwork,
    remove_namespaces,
    tags_in_use,
)
from tests.lab.processes import is_running

_TAG = "rolemesh"  # followed by the pid of the run and the number of the lab in it
_labs = itertools.count(1)


def obstacle() -> str:
    """Say in one line why hosts cannot run here; "" when they can."""
    if os.geteuid() != 0:
        return "hosts need root"
    for program in ("systemd-nspawn", "mmdebstrap", "ip", "zstd", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is missing here"
    if control_group.hierarchy() is None:
        return "no cgroup2 hierarchy is mounted here"
    trials = {
        "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup": "cgroup2 may not be mounted",
        "unshare --net true": "network namespaces may not be made",
        "cd $0 && mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m": (
            "overlayfs may not be mounted"
        ),
    }
    for trial, reason in trials.items():
        with tempfile.TemporaryDirectory(prefix="rolemesh-trial-") as folder:
            command = ["unshare", "--mount", "sh", "-c", trial, folder]
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                return f"{reason} here"
    return ""


class Lab:
    """The hosts of one run and their network; `hosts_lab` makes and removes it."""

    def __init__(self, tag: str, folder: Path, cgroup: Path) -> None:
        self._folder = folder
        self._cgroup = cgroup
        self.network = PrivateNetwork(tag)
        self.hosts: list[Host] = []

    def boot(
        self, names: Sequence[str], *, root: Sequence[Path], binds: Mapping[str, Path] | None = None
    ) -> list[Host]:
        """Boot new hosts from the layers of a root, the uppermost first.

        `binds` are folders of this machine, by where they appear in the hosts.
        """
        new: list[Host] = []
        for name in names:
            number = len(self.hosts) + len(new) + 1
            self.network.add(name, number)
            host = Host(
                name=name,
                network=self.network,
                folder=self._folder / name,
                layers=root,
                cgroup=self._cgroup / name,
                binds=binds or {},
            )
            new.append(host)
        known = [*self.hosts, *new]
        lines = [f"{self.network.address(each)} {each}" for each in (*map(_name, known), CLIENT)]
        for host in new:
            host.name_hosts(lines)
        self.hosts.extend(new)
        with ThreadPoolExecutor(len(new)) as pool:
            list(pool.map(Host.boot, new))
        return new

    def close(self) -> None:
        """End and remove everything."""
        for host in self.hosts:
            host.close()
        self.network.close()


@contextmanager
def hosts_lab() -> Iterator[Lab]:
    """Make a lab for the length of the block, after removing those whose runs were killed."""
    remove_abandoned()
    tag = f"{_TAG}{os.getpid()}.{next(_labs)}"
    cgroup = control_group.top_group(tag)
    with tempfile.TemporaryDirectory(prefix=f"{tag}-", ignore_cleanup_errors=True) as folder:
        lab = Lab(tag, Path(folder), cgroup)
        try:
            yield lab
        finally:
            lab.close()
            control_group.remove(cgroup)


def remove_abandoned() -> None:
    """Remove what runs left that were killed: their tags name processes that are gone."""
    for tag in tags_in_use():
        pid = tag.removeprefix(_TAG).partition(".")[0]
        if tag.startswith(_TAG) and pid.isdigit() and not is_running(int(pid)):
            control_group.remove(control_group.top_group(tag))
            remove_namespaces(tag)
            for folder in Path(tempfile.gettempdir()).glob(f"{tag}-*"):
                shutil.rmtree(folder)


def _name(host: Host) -> str:
    return host.name
