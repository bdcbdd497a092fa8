import os
import subprocess
import sys
from pathlib import Path

import pytest

from rolemesh import __version__
from rolemesh.ctl.verbs import HIDDEN, VERBS
from tests.ctl.conftest import Ctl
from tests.fakes.operator_api import OperatorApi

SLOW_TO_IMPORT = {"aiohttp", "asyncio", "jsonschema", "systemd", "yaml"}


def test_help_lists_every_verb_and_nothing_is_asked_without_one(ctl: Ctl) -> None:
    shown = ctl("--help")
    assert shown.status == 0
    for name, verb in VERBS.items():
        assert f"  {name}" in shown.out
        assert verb.summary in shown.out
    assert not any(name in shown.out for name in HIDDEN)
    bare = ctl()
    assert (bare.status, bare.out) == (2, "")
    assert "verbs:" in bare.err


def test_the_version_is_printed(ctl: Ctl) -> None:
    assert ctl("--version").out == f"rolemeshctl {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(ctl: Ctl, verb: str) -> None:
    shown = ctl(verb, "--help")
    assert shown.status == 0
    assert f"usage: rolemeshctl {verb}" in shown.out
    assert "examples:\n  " in shown.out
    assert f"rolemeshctl {verb}" in shown.out.partition("examples:")[2]


def test_a_verb_that_does_not_exist_is_a_mistake_with_a_remedy(ctl: Ctl) -> None:
    done = ctl("statsu")
    assert done.status == 2
    assert done.err == "rolemeshctl: there is no verb 'statsu'; did you mean 'status'?\n"
    assert "`rolemeshctl --help` lists them" in ctl("frobnicate").err


def test_options_may_stand_before_the_verb(ctl: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = {"aliases": []}
    done = ctl("--url", gateway.url, "--json", "aliases")
    assert (done.status, done.out) == (0, '{\n  "aliases": []\n}\n')


def test_wrong_options_are_status_2(ctl: Ctl) -> None:
    assert ctl("ps", "--by", "node").status == 2
    assert ctl("explain").status == 2


def test_a_reader_that_leaves_is_no_error(gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = {"aliases": []}
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "rolemesh.ctl.main", "aliases", "--json", "--url", gateway.url],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_asking_a_gateway_imports_nothing_slow(gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = {"aliases": []}
    program = (
        "import sys; from rolemesh.ctl.main import main; "
        f"main(['aliases', '--json', '--url', {gateway.url!r}]); "
        "print(*(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert SLOW_TO_IMPORT & set(done.stderr.split()) == set()


def test_what_cannot_be_written_is_said(gateway: OperatorApi) -> None:
    gateway.replies["GET aliases"] = {"aliases": []}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rolemesh.ctl.main", "aliases", "--json", "--url", gateway.url],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"rolemeshctl: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("words", [("explain", ""), ("cancel", "")])
def test_an_empty_name_is_a_mistake(ctl: Ctl, gateway: OperatorApi, words: tuple[str, ...]) -> None:
    done = ctl(*words, "--url", gateway.url)
    assert (done.status, done.err) == (2, "rolemeshctl: a name may not be empty\n")
