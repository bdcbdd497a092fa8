"""rolemeshctl run inside the test, against an operator API that the test speaks for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rolemesh.ctl.main import main
from tests.fakes.operator_api import OperatorApi, operator_api

Ctl = Callable[..., "Done"]


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture(autouse=True)
def a_user_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what this machine's user has set out of the tests."""
    for variable in ("ROLEMESH_URL", "ROLEMESH_KEY", "ROLE_MESH_CONFIG", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home-config"))


@pytest.fixture
def gateway(short_path: Path) -> Iterator[OperatorApi]:
    """Return a gateway's control socket."""
    with operator_api(short_path / "control.sock") as api:
        yield api


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Run rolemeshctl with these words."""

    def run(*words: Any) -> Done:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        return Done(status, printed.out, printed.err)

    return run


@pytest.fixture
def ask(ctl: Ctl, gateway: OperatorApi) -> Ctl:
    """Run rolemeshctl with these words and the gateway's address."""
    return lambda *words: ctl(*words, "--url", gateway.url)


class Host:
    """A user's runtime directory, with the sockets of daemons in it."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack

    def socket(self, program: str) -> Path:
        path = self.directory / "rolemesh" / program / "control.sock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def agent(self, program: str, description: Any) -> OperatorApi:
        api = self._stack.enter_context(operator_api(self.socket(program)))
        api.replies["GET /v1/node"] = description
        return api

    def gateway(self, *nodes: Any) -> OperatorApi:
        api = self._stack.enter_context(operator_api(self.socket("gateway")))
        api.replies["GET status"] = {"nodes": list(nodes)}
        return api


@pytest.fixture
def host(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Return a host on which this user may run daemons."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    with ExitStack() as stack:
        yield Host(short_path, stack)
