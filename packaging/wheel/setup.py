# ruff: noqa: INP001 - it is no part of a package
"""Compiles what every request passes through, from the same sources, by mypyc (mypyc.readthedocs.io).

`packaging/build-wheel.sh` puts this beside pyproject.toml; without it RoleMesh is plain Python. A
compiled class cannot be inherited from by one that is not, so whoever inherits from it is here, too.
"""

from mypyc.build import mypycify
from setuptools import setup

COMPILED = {
    "agent": "batches inference request_headers slots streaming",
    "gateway": (
        "admission affinity breakers chooser crash_guard dispatch inference routing_table "
        "selection tables trip"
    ),
    "relay": (
        "access attempt client collect connection deadlines echo edit events exchange headers "
        "inbound job members outbox paths replies request response target upstream"
    ),
    "runtime": "keys request_history request_log",
}
MODULES = [
    "rolemesh/names.py",
    *(
        f"rolemesh/{package}/{module}.py"
        for package, modules in COMPILED.items()
        for module in modules.split()
    ),
]

# What the checked types come from need not be installed for a build.
OPTIONS = ["--config-file=", "--ignore-missing-imports", "--no-warn-unused-ignores"]

setup(ext_modules=mypycify([*OPTIONS, *MODULES], opt_level="3", group_name="rolemesh"))
