import json
from pathlib import Path

import pytest

from rolemesh.ctl.config_cat import hide_keys
from tests.ctl.conftest import Ctl

SECRETS = """\
# client_api_keys: [old-secret-1]
auth:
  client_api_keys: ["secret-2", secret-3]   # two
  clients:
    ci: {key: secret-4, roles: [coder], max_concurrent: 4}
    guest:
      key_sha256: "ab12secret-5"
      # key: secret-6
    credential: {key_file: secret-7}
    file: {key_file: /etc/keys/ci}
    long:
      key: |
        secret-8
    folded:
      key: >-
        secret-9
models:
  remote: {type: proxy, proxy_url: "https://user:secret-10@h/v1", api_key: secret-11}
other: &anchor secret-12
gateways:
  - {url: "http://h", api_key: *anchor}
"""


SHOWN = """\
# client_api_keys: "(hidden)"
auth:
  client_api_keys: ["(hidden)", "(hidden)"]   # two
  clients:
    ci: {key: "(hidden)", roles: [coder], max_concurrent: 4}
    guest:
      key_sha256: "(hidden)"
      # key: "(hidden)"
    credential: {key_file: "(hidden)"}
    file: {key_file: /etc/keys/ci}
    long:
      key: "(hidden)"
    folded:
      key: "(hidden)"
models:
  remote: {type: proxy, proxy_url: "https://...@h/v1", api_key: "(hidden)"}
other: "(hidden)"
gateways:
  - {url: "http://h", api_key: *anchor}
"""


def test_no_key_or_digest_is_shown_and_everything_else_is() -> None:
    assert hide_keys(SECRETS) == SHOWN


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_a_file_with_nothing_in_it_is_shown_as_it_is(text: str) -> None:
    assert hide_keys(text) == text


def test_files_stand_in_the_order_they_are_read_below_their_names(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "20-b.yaml").write_text("listen: {port: 9001}\n")
    (tmp_path / "10-a.yaml").write_text("listen:\n\thost: x\n")
    (tmp_path / "15-masked.yaml").touch()
    override = tmp_path / "over" / "x.yaml"
    override.parent.mkdir()
    override.write_text("auth: {client_api_keys: [hush]}\n")
    done = ctl("config", "cat", "--config-dir", tmp_path, "--config-override", override)
    assert done.status == 78
    assert done.lines == [
        f"# {tmp_path}/10-a.yaml",
        "# (not shown: it is not valid)",
        "",
        f"# {tmp_path}/20-b.yaml",
        "listen: {port: 9001}",
        "",
        f"# {override}",
        'auth: {client_api_keys: ["(hidden)"]}',
    ]
    assert done.err.startswith(f"{tmp_path}/10-a.yaml:2: not valid YAML")


def test_programs_get_paths_and_texts(ctl: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("listen: {port: 1}\n")
    done = ctl("config", "cat", "--config", file, "--json")
    assert json.loads(done.out) == {"files": [{"path": str(file), "text": "listen: {port: 1}\n"}]}


def test_no_file_at_all_is_said(ctl: Ctl, tmp_path: Path) -> None:
    done = ctl("config", "cat", "--config-dir", tmp_path)
    assert (done.status, done.out) == (0, "")
    assert done.err == "no file is read: everything is at its default\n"
