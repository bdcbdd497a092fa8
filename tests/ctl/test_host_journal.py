import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rolemesh.ctl.host_journal import (
    JournalUnreadable,
    read_by_journalctl,
    read_by_module,
    require_rights,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program in place of journalctl that prints `entries` and keeps its words."""
    program = tmp_path / "journalctl"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / 'words').write_text('\\n'.join(sys.argv[1:]))\n"
        "print((folder / 'entries').read_text(), end='')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_journalctls_entries_have_their_time_and_text(journalctl: Path) -> None:
    entry = {
        "__REALTIME_TIMESTAMP": "1795348800000123",
        "__CURSOR": "s=1",
        "MESSAGE": list("grün".encode()),
        "ROLEMESH_REQUEST_ID": ["req-a", "req-b"],
        "PRIORITY": "6",
    }
    (journalctl / "entries").write_text(json.dumps(entry) + "\n")
    found = read_by_journalctl(["A=b", "C=d"], NOON, NOON + timedelta(milliseconds=5))
    at = NOON + timedelta(microseconds=123)
    texts = {"MESSAGE": "grün", "ROLEMESH_REQUEST_ID": "req-a", "PRIORITY": "6"}
    assert found == [(at, texts)]
    assert (journalctl / "words").read_text().splitlines() == [
        "--quiet",
        "--no-pager",
        "--all",
        "--output=json",
        "--since=@1795348800.000000",
        "--until=@1795348800.005000",
        "A=b",
        "C=d",
    ]


def test_without_journalctl_nothing_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JournalUnreadable, match="journalctl cannot be used"):
        read_by_journalctl([], None, None)


def test_a_journal_without_entries_is_read_by_the_module(tmp_path: Path) -> None:
    pytest.importorskip("systemd.journal")
    assert read_by_module(["A=b"], NOON, NOON, directory=tmp_path) == []


def test_a_host_may_keep_no_journal(tmp_path: Path) -> None:
    for directories in ([tmp_path], [tmp_path / "none"]):
        with pytest.raises(JournalUnreadable, match="keeps no journal"):
            require_rights(directories)
    machine = tmp_path / "0123"
    machine.mkdir()
    (machine / "system.journal").touch()
    require_rights([tmp_path])
