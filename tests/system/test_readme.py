"""README's lines, typed on a fresh Debian 13 that has nothing of ours: they end in an answered chat."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.hosts import Lab
from tests.lab.llama_server import llama_server_seen_at
from tests.lab.models import TinyModel, make_model
from tests.system.conftest import REPOSITORY, Layers
from tests.system.mesh import LLAMA_FOLDER, MODELS_FOLDER

PAGE = REPOSITORY / "README.md"
SECTION = "Install it"
CHECKOUT = "/srv/checkout"
GATEWAY_ADDRESS = "10.0.0.1"  # on the page
SAYS = "the code of the coder"


@pytest.fixture(scope="module")
def host(
    lab: Lab,
    suite: str,
    unpacked_root: Callable[[str], Layers],
    binds: Mapping[str, Path],
) -> Host:
    """Return a fresh host, with a llama-server in PATH and a checkout where `make packages` ran."""
    seen = {**binds, f"{CHECKOUT}/dist": binds["/srv/packages"]}
    (host,) = lab.boot(["desk"], root=unpacked_root(suite), binds=seen)
    _, program = llama_server_seen_at(LLAMA_FOLDER)
    host.run("ln", "-s", program, "/usr/local/bin/llama-server")
    return host


def lines() -> Iterator[str]:
    """Yield what the page has people type, at whichever host: `$ command` or `host$ command`."""
    text = PAGE.read_text().partition(f"\n## {SECTION}\n")[2].partition("\n## ")[0]
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        yield from re.findall(r"^\w*\$ (.*)$", block, re.MULTILINE)


def the_line(*words: str) -> str:
    """Return the one line of the page that has all these words."""
    (found,) = [line for line in lines() if all(word in line for word in words)]
    return found


def typed(host: Host, line: str, *, status: int = 0) -> str:
    """Type a line in the checkout, as root, who needs no sudo; return what was printed."""
    script = f'sudo() {{ "$@"; }}\ncd {CHECKOUT}\n{line}\n'
    done = host.run("sh", text=script, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_lines_of_the_first_evening_end_in_an_answered_chat(host: Host) -> None:
    typed(host, the_line("apt install ./dist/"))
    typed(host, the_line("systemctl enable --now"))
    assert typed(host, the_line("systemctl status")).count("active (running)") == 2

    invite = the_line("gateway invite")
    said = typed(host, invite, status=1)
    key = typed(host, said[said.index("# From then on") : said.index("rolemeshctl: ")]).split()[0]
    said = typed(host, invite)
    (token,) = re.findall(r"--token (\S+)", said)
    join = the_line("node join").replace(GATEWAY_ADDRESS, host.address)
    assert "desk has joined" in typed(host, join.replace("rm-2pJR…", token))

    add = the_line("model add")
    (file,) = re.findall(r"\S+\.gguf", add)
    path = make_model(TinyModel(name="coder", says=SAYS))
    host.run("cp", f"{MODELS_FOLDER}/{path.name}", file)
    said = typed(host, add)
    (chat,) = re.findall(r"^curl (?:.*\\\n)*.*$", said, re.MULTILINE)
    assert SAYS in typed(host, chat.replace("KEY", key))


def test_the_lines_for_every_day_work(host: Host) -> None:
    """But for those with an id that was shortened, or a GPU that is not there."""
    everyday = list(lines())[list(lines()).index(the_line("model add")) + 1 :]
    works = [line for line in everyday if "…" not in line and "@gpu" not in line]
    assert len(works) >= 3
    for line in works:
        assert typed(host, line) or "reload" in line
