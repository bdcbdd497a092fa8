"""The manual pages: they format cleanly, and say all that the programs do."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rolemesh.ctl.main import main
from rolemesh.ctl.verbs import VERBS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "man").iterdir())
PROGRAMS = {
    "rolemesh-gateway.8": "rolemesh.gateway.main",
    "rolemesh-llama.8": "rolemesh.llama",
    "rolemesh-node-agent.8": "rolemesh.agent.main",
}


def text_of(page: Path) -> str:
    """Return the page without its markup."""
    text = re.sub(r"\\f[BIRP]|\\c", "", page.read_text())
    return text.replace("\\-", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_formats_without_a_warning(page: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("there is no groff here")
    command = ["groff", "-man", "-ww", "-Tutf8", "-z", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@pytest.mark.parametrize("page", PROGRAMS)
def test_a_page_names_every_option_of_its_program(page: str) -> None:
    command = [sys.executable, "-m", PROGRAMS[page], "--help"]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = options_in(usage)
    assert "--config" in options
    assert options - options_in(text_of(ROOT / "docs" / "man" / page)) == set()


def usage_of(*words: str) -> str:
    """Return what rolemeshctl prints about a verb."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


def test_the_page_of_rolemeshctl_names_every_verb_and_option() -> None:
    page = text_of(ROOT / "docs" / "man" / "rolemeshctl.1")
    below = {
        "config": ("check", "cat", "delta", "show"),
        "gateway": ("invite",),
        "key": ("add", "list", "limit", "revoke"),
        "model": ("add", "list", "remove"),
        "node": ("plan", "gpus", "join"),
    }
    for verb in VERBS:
        assert re.search(rf"^\.(?:B|BI|SH) (?:rolemeshctl )?{verb}\b", page, re.MULTILINE), verb
        for words in ([verb, each] for each in below.get(verb, ())):
            assert " ".join(words) in page.replace("\\ ", " ")
            assert options_in(usage_of(*words)) - options_in(page) == set()
        assert options_in(usage_of(verb)) - options_in(page) == set()


@pytest.mark.parametrize("program", ["gateway", "node"])
def test_every_top_level_key_of_the_configuration_is_described(program: str) -> None:
    schema = json.loads((ROOT / "rolemesh" / "config" / "schemas" / f"{program}.json").read_text())
    page = text_of(ROOT / "docs" / "man" / "rolemesh-config.5")
    words = set(re.findall(r"[a-z_]+", page))
    assert set(schema["properties"]) - words == {"version"}
