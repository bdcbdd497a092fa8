from pathlib import Path

import pytest

from rolemesh.ctl import key_files
from rolemesh.ctl.key_files import KeyEntry
from rolemesh.ctl.outcomes import Failed

DIGEST = "ab" * 32
ENTRY = KeyEntry(
    kind="client",
    name="0815",
    key_sha256=DIGEST,
    roles=("coder", "c#: 1"),
    priority="batch",
    max_concurrent=4,
    requests_per_minute=60,
    admin=True,
)


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY,
        KeyEntry(kind="client", name="ci", key_sha256=DIGEST),
        KeyEntry(kind="node", name="true", key_sha256=DIGEST),
    ],
)
def test_what_is_written_is_read_again(entry: KeyEntry) -> None:
    text = key_files.render(entry)
    assert key_files.parse(text, entry.kind, entry.name) == entry


def test_a_file_says_no_more_than_was_asked_for() -> None:
    text = key_files.render(KeyEntry(kind="node", name="gpubox", key_sha256=DIGEST))
    assert text.splitlines()[1:] == [
        "auth:",
        "  nodes:",
        '    "gpubox":',
        f'      key_sha256: "{DIGEST}"',
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "auth: [",
        f"auth: {{clients: {{'0815': {{key_sha256: {DIGEST}}}}}}}\n",
        key_files.render(ENTRY) + "listen: {port: 1}\n",
        key_files.render(ENTRY).replace("max_concurrent", "max_concurent"),
        key_files.render(ENTRY).replace('"batch"', "batch"),
        "# mine\n" + key_files.render(ENTRY),
    ],
)
def test_a_file_that_somebody_wrote_or_edited_is_not_ours(text: str, tmp_path: Path) -> None:
    assert key_files.parse(text, "client", "0815") is None
    file = tmp_path / ENTRY.file_name
    file.write_text(text)
    with pytest.raises(Failed, match="was not written by rolemeshctl, or was edited"):
        key_files.read_own(file, "client", "0815")


def test_clients_and_nodes_of_one_name_have_two_files() -> None:
    node = KeyEntry(kind="node", name="x", key_sha256=DIGEST)
    client = KeyEntry(kind="client", name="x", key_sha256=DIGEST)
    assert {node.file_name, client.file_name} == {"node-key-x.yaml", "key-x.yaml"}
