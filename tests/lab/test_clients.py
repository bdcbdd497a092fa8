import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.clients import NODE_PACKAGES, Clients, NoClients
from tests.lab.clients import clients as find_clients


def test_the_command_prints_where_they_are(clients: Clients) -> None:
    command = [sys.executable, "-m", "tests.lab.clients"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{clients.folder}\n", "")


def test_each_interpreter_finds_its_packages(clients: Clients) -> None:
    imports = "import agents, anthropic, openai, pydantic_ai"
    subprocess.run([clients.python, "-c", imports], check=True)
    name, _, version = NODE_PACKAGES[0].partition("@")
    package = clients.modules / "node_modules" / name / "package.json"
    assert json.loads(package.read_text())["version"] == version
    subprocess.run([clients.node, "-e", f"require('{package.parent}')"], check=True)


@pytest.mark.clients
def test_without_a_registry_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    remedy = f"cd .* && {sys.executable} -m tests.lab.clients"
    with pytest.raises(NoClients, match=rf"(?s)No matching distribution.*\n.*{remedy}$"):
        find_clients()
    assert not list(tmp_path.rglob("installed.json"))
