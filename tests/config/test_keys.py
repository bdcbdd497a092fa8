import hashlib
import os
from pathlib import Path

import pytest

from rolemesh.config.keys import (
    AGENT_KEYS,
    CLIENT_KEYS,
    MAX_KEY_BYTES,
    NODE_KEYS,
    KeyFiles,
    client_keys,
    exposed_keys,
    read_key_files,
    repeated_keys,
)
from rolemesh.config.settings import ClientKey
from rolemesh.config.tree import Finding
from rolemesh.names import Alias
from tests.config.conftest import Parse, Write


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def texts(findings: tuple[Finding, ...] | list[Finding]) -> list[str]:
    return [str(finding.problem()) for finding in findings]


def test_listed_keys_are_named_after_their_digest(parse: Parse) -> None:
    root = parse("auth: {client_api_keys: [abc], node_api_keys: [abc], api_keys: [abc]}")
    for section, name in (
        (CLIENT_KEYS, "client-ba7816bf"),
        (NODE_KEYS, "node-ba7816bf"),
        (AGENT_KEYS, "client-ba7816bf"),
    ):
        (key,) = client_keys(root, section, KeyFiles())
        assert key == ClientKey(name=name, digest=digest("abc"), roles=None)


def test_named_keys_come_in_three_forms_and_may_be_bound_to_aliases(
    parse: Parse, write: Write
) -> None:
    path = write("key", "  in-file\n")
    root = parse(f"""
        auth:
          clients:
            inline: {{key: abc}}
            hashed: {{key_sha256: "{digest("def").hex().upper()}", roles: [coder, critic]}}
            filed: {{key_file: {path}}}
        """)
    files = read_key_files(root, {})
    assert files.findings == ()
    assert client_keys(root, CLIENT_KEYS, files) == (
        ClientKey(name="inline", digest=digest("abc")),
        ClientKey(
            name="hashed", digest=digest("def"), roles=frozenset({Alias("coder"), Alias("critic")})
        ),
        ClientKey(name="filed", digest=digest("in-file")),
    )


def test_keys_are_in_no_repr(parse: Parse, write: Write) -> None:
    root = parse(
        f"auth: {{clients: {{a: {{key: sk-1}}, b: {{key_file: {write('key', 'sk-2')}}}}}}}"
    )
    files = read_key_files(root, {})
    assert "sk-" not in repr((root, files, client_keys(root, CLIENT_KEYS, files)))


def test_a_key_file_without_slash_is_a_credential(parse: Parse, write: Write) -> None:
    root = parse("gateways: {'http://h:1': {api_key_file: node-key}}")
    directory = write("credentials/node-key", "abc\n").parent
    files = read_key_files(root, {"CREDENTIALS_DIRECTORY": str(directory)})
    assert files.texts == {("gateways", "http://h:1", "api_key_file"): "abc"}


def test_a_credential_without_credentials_is_found_and_not_named(parse: Parse) -> None:
    root = parse("auth: {clients: {ci: {key_file: sk-1}}}")
    assert texts(read_key_files(root, {}).findings) == [
        "f.yaml:1: auth.clients.ci.key_file: expected a file with a key: a name without / is a "
        "systemd credential, and this program was given none"
    ]


@pytest.mark.parametrize("content", ["", " \n", "two keys", "a\nb", "ä", "x" * (MAX_KEY_BYTES + 1)])
def test_a_file_that_holds_no_key_is_found(parse: Parse, write: Write, content: str) -> None:
    path = write("key", "x")
    path.write_text(content)
    root = parse(f"auth: {{clients: {{ci: {{key_file: {path}}}}}}}")
    files = read_key_files(root, {})
    assert files.texts == {}
    assert texts(files.findings) == [
        f"f.yaml:1: auth.clients.ci.key_file: expected a file with a key: {path} does not hold "
        "one line of printable ASCII characters without spaces"
    ]


def test_key_files_that_cannot_be_read_are_found_without_waiting(
    parse: Parse, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    root = parse(f"""
        auth:
          clients:
            a: {{key_file: {tmp_path}/gone}}
            b: {{key_file: {tmp_path}}}
            c: {{key_file: {tmp_path}/pipe}}
            d: {{key_file: 5}}
        """)
    expected = "expected a file with a key:"
    assert texts(read_key_files(root, {}).findings) == [
        f"f.yaml:3: auth.clients.a.key_file: {expected} {tmp_path}/gone cannot be read: "
        "No such file or directory",
        f"f.yaml:4: auth.clients.b.key_file: {expected} {tmp_path} cannot be read: "
        "Is a directory",
        f"f.yaml:5: auth.clients.c.key_file: {expected} {tmp_path}/pipe does not hold one line "
        "of printable ASCII characters without spaces",
    ]  # fmt: skip


def test_a_key_that_two_have_is_found_without_showing_it(parse: Parse, write: Write) -> None:
    root = parse(f"""
        auth:
          client_api_keys: [same, other]
          clients:
            ci: {{key: same}}
            cd: {{key_sha256: "{digest("other").hex()}"}}
            ce: {{key_file: {write("key", "third")}}}
            cf: {{key: third}}
        """)
    found = list(repeated_keys(root, CLIENT_KEYS, read_key_files(root, {})))
    assert texts(found) == [
        "f.yaml:4: auth.clients.ci: expected a key of its own, found the one of "
        "auth.client_api_keys[0]",
        "f.yaml:5: auth.clients.cd: expected a key of its own, found the one of "
        "auth.client_api_keys[1]",
        "f.yaml:7: auth.clients.cf: expected a key of its own, found the one of auth.clients.ce",
    ]


@pytest.mark.parametrize(
    "text",
    ["auth: 5", "auth: {client_api_keys: a}", "auth: {client_api_keys: [5], clients: [a]}",
        "auth: {clients: {ci: {key_sha256: xyz}, cd: {key: 5}, ce: 5, cf: {}}}"],
)  # fmt: skip
def test_what_the_schema_refuses_is_passed_over(parse: Parse, text: str) -> None:
    root = parse(text)
    assert client_keys(root, CLIENT_KEYS, KeyFiles()) == ()
    assert list(repeated_keys(root, CLIENT_KEYS, KeyFiles())) == []


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nauth: {client_api_keys: [abc, def]}",
        "a: 1\nauth: {clients: {ci: {key: abc}}}",
        "a: 1\ngateways: {'http://h:1': {api_key: abc}}",
    ],
)
def test_a_file_with_a_key_that_everybody_can_read_is_warned_about_once(
    parse: Parse, open_directory: Path, text: str
) -> None:
    path = open_directory / "f.yaml"
    path.touch()
    path.chmod(0o644)
    (found,) = exposed_keys(parse(text, str(path)), [path])
    assert found.is_warning
    assert str(found.problem()).startswith(f"{path}:2: ")
    assert str(found.problem()).endswith(
        f": every user of this machine can read this key; run: chmod o-r {path}"
    )


def test_a_file_that_others_cannot_reach_is_not_warned_about(
    parse: Parse, open_directory: Path
) -> None:
    path = open_directory / "private" / "f.yaml"
    path.parent.mkdir(mode=0o750)
    path.touch()
    path.chmod(0o644)
    root = parse("auth: {client_api_keys: [abc]}", str(path))
    assert list(exposed_keys(root, [path])) == []
    path.parent.chmod(0o755)
    assert len(list(exposed_keys(root, [path]))) == 1
    path.chmod(0o640)
    assert list(exposed_keys(root, [path])) == []


@pytest.mark.parametrize("text", ["listen: {port: 1}", "auth: {clients: {ci: {key_sha256: abc}}}"])
def test_a_file_without_keys_may_be_read_by_everybody(
    parse: Parse, open_directory: Path, text: str
) -> None:
    path = open_directory / "f.yaml"
    path.touch()
    path.chmod(0o644)
    assert list(exposed_keys(parse(text, str(path)), [path])) == []
    assert list(exposed_keys(parse(text), [Path("/nowhere")])) == []


def test_a_key_file_that_everybody_can_read_is_warned_about(
    parse: Parse, open_directory: Path
) -> None:
    path = open_directory / "key"
    path.write_text("abc")
    path.chmod(0o604)
    files = read_key_files(parse(f"auth: {{clients: {{ci: {{key_file: {path}}}}}}}"), {})
    assert texts(files.findings) == [
        "f.yaml:1: auth.clients.ci.key_file: every user of this machine can read this key; "
        f"run: chmod o-r {path}"
    ]
    assert files.findings[0].is_warning
