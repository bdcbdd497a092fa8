import json
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource
from rolemesh.ctl import config_delta


@pytest.fixture
def source(tmp_path: Path) -> ConfigSource:
    """Return the directories of a vendor, a program at run time, and an administrator."""
    files = {
        "lib/gateway.d/10-a.yaml": "listen: {port: 9000}\n",
        "lib/gateway.d/20-b.yaml": "models: {x: {type: discovered}, y: {type: discovered}}\n",
        "lib/gateway.d/30-c.yaml": "aliases: {from_roles: true}\n",
        "run/gateway.d/key-ci.yaml": "auth: {clients: {ci: {key_sha256: secret}}}\n",
        "etc/gateway.d/20-b.yaml": "",
        "etc/gateway.d/30-c.yaml": "default_model: x\n",
        "etc/gateway.d/40-d.yaml": "listen: {port: 9001}\nmodels: {z: {type: discovered}}\n",
        "etc/gateway.d/50-e.yaml": "models: {z: null}\n",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    roots = tuple(tmp_path / name for name in ("lib", "run", "etc"))
    return ConfigSource(program="gateway", roots=roots)


def test_files_and_values_that_differ_from_the_vendors(
    source: ConfigSource, capsys: pytest.CaptureFixture[str]
) -> None:
    lib, run, etc = (root / "gateway.d" for root in source.roots)
    assert config_delta.run(source, as_json=False, vendor=lib) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"[masked] {lib}/20-b.yaml is switched off by {etc}/20-b.yaml",
        f"[replaced] {lib}/30-c.yaml is replaced by {etc}/30-c.yaml",
        f"# {etc}/30-c.yaml",
        '  added    default_model: "x"',
        f"# {etc}/40-d.yaml",
        f"  changed  listen.port: 9001, was 9000 ({lib}/10-a.yaml:1)",
        '  added    models.z.type: "discovered"',
        f"# {etc}/50-e.yaml",
        f'  deleted  models.z.type: was "discovered" ({etc}/40-d.yaml:2)',
        f"# {run}/key-ci.yaml",
        "  added    auth.clients.ci.key_sha256: (hidden)",
    ]


def test_programs_get_the_same(source: ConfigSource, capsys: pytest.CaptureFixture[str]) -> None:
    lib, _, etc = (root / "gateway.d" for root in source.roots)
    config_delta.run(source, as_json=True, vendor=lib)
    told = json.loads(capsys.readouterr().out)
    assert [each["how"] for each in told["files"]] == ["masked", "replaced"]
    assert told["values"][1] == {
        "file": f"{etc}/40-d.yaml",
        "how": "changed",
        "key": "listen.port",
        "value": "9001",
        "where": f"{etc}/40-d.yaml:1",
        "was": "9000",
        "was_where": f"{lib}/10-a.yaml:1",
    }


def test_nothing_of_ones_own_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ConfigSource(program="gateway", roots=(tmp_path,))
    assert config_delta.run(source, as_json=False) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "nothing is changed of what packages brought\n")
