import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rolemesh.config import tree
from rolemesh.config.schema import check_schema, load_schema
from rolemesh.config.tree import Program
from tests.config.conftest import Parse

PROGRAMS: tuple[Program, ...] = ("gateway", "node")
ASSERTIONS = {"type", "const", "enum", "pattern"}


def problems(parse: Parse, program: Program, text: str) -> list[str]:
    checked = check_schema(parse(text), program, is_lenient=False)
    assert not any(finding.is_warning for finding in checked.findings)
    return sorted(str(finding.problem()) for finding in checked.findings)


def parts(part: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every schema inside a schema."""
    if isinstance(part, dict):
        yield path, part
    for key, child in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(child, dict | list) and key not in ("default", "enum", "required"):
            yield from parts(child, f"{path}/{key}")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_schema_is_valid_itself(program: Program) -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema(program))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_part_that_can_fail_says_what_it_expects(program: Program) -> None:
    silent = [
        path
        for path, part in parts(load_schema(program))
        if ASSERTIONS & part.keys() and "x-expected" not in part
        and not path.endswith(("/properties", "/if/properties/type"))
    ]  # fmt: skip
    assert silent == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_key_is_described(program: Program) -> None:
    silent = [
        f"{path}/{key}"
        for path, part in parts(load_schema(program))
        if path.endswith("/properties") and "/if/" not in path
        for key, child in part.items()
        if child is not True and "description" not in child
    ]
    assert silent == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_key_is_in_the_documentation(program: Program) -> None:
    document = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
    keys = {
        key
        for path, part in parts(load_schema(program))
        if path.endswith("/properties")
        for key in part
    }
    assert {key for key in keys if f"`{key}`" not in document} == set()


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_reference_leads_somewhere(program: Program) -> None:
    schema = load_schema(program)
    references = {part["$ref"] for _, part in parts(schema) if "$ref" in part}
    assert references == {f"#/$defs/{name}" for name in schema["$defs"]}


def test_all_problems_are_told_at_once_with_file_line_and_key(parse: Parse) -> None:
    assert problems(
        parse,
        "gateway",
        """
        version: 2
        listen: {host: [], port: 70000}
        aliases: {from_roles: yes}
        auth:
          client_api_keys: [secret one, 17, ""]
          clients: {"a b": {}, ci: {key_sha256: abc, roles: []}}
        timeouts: {idle_s: soon, connect_s: 0}
        limits: {max_queue: 1.5, max_body_bytes: true}
        models:
          planner: {type: proxy, max_in_flight: 0}
          coder: {type: discovered, proxy_url: http://h:1}
          critic: {type: magic}
          writer: {}
          other: 5
          "two words": {type: discovered}
        """,
    ) == sorted([
        "f.yaml:1: version: expected 1, the version of this format, found 2",
        "f.yaml:2: listen.host: expected an address or a list of addresses, found an empty list",
        "f.yaml:2: listen.port: expected a port number from 0 to 65535, found 70000",
        'f.yaml:3: aliases.from_roles: expected true or false, found "yes"',
        "f.yaml:5: auth.client_api_keys[0]: expected a key: a string of printable ASCII "
        "characters without spaces, found a string",
        "f.yaml:5: auth.client_api_keys[1]: expected a key: a string of printable ASCII "
        "characters without spaces, found a number or boolean; put it in quotes",
        "f.yaml:5: auth.client_api_keys[2]: expected a key: a string of printable ASCII "
        "characters without spaces, found a string",
        'f.yaml:6: auth.clients."a b": expected a name of letters, digits and ._- as key',
        "f.yaml:6: auth.clients.ci.key_sha256: expected 64 hexadecimal digits, the SHA-256 of "
        "the key, found a string",
        "f.yaml:6: auth.clients.ci.roles: expected a list of at least one alias, found an empty list",
        'f.yaml:7: timeouts.idle_s: expected a number of seconds greater than 0, found "soon"',
        "f.yaml:7: timeouts.connect_s: expected a number of seconds greater than 0, found 0",
        "f.yaml:8: limits.max_queue: expected a whole number of requests, 0 or more, found 1.5",
        "f.yaml:8: limits.max_body_bytes: expected a whole number of bytes, 1024 or more, "
        "found true",
        "f.yaml:10: models.planner.proxy_url: expected a URL such as http://127.0.0.1:8011, "
        "found nothing",
        "f.yaml:10: models.planner.max_in_flight: expected a whole number of requests, 1 or "
        "more, found 0",
        "f.yaml:11: models.coder.proxy_url: unknown key; known here: defaults, echo_model, "
        "fallback, priority, reserved_slots, role, timeouts, type",
        'f.yaml:12: models.critic.type: expected proxy or discovered, found "magic"',
        "f.yaml:13: models.writer.type: expected proxy or discovered, found nothing",
        "f.yaml:14: models.other: expected a mapping with type: proxy or type: discovered, "
        "found 5",
        'f.yaml:15: models."two words": expected a name without spaces, of at most 200 '
        "characters as key",
    ])  # fmt: skip


def test_all_problems_of_a_node_are_told_at_once(parse: Parse) -> None:
    assert problems(
        parse,
        "node",
        """
        node_id: -x
        gateways: {"http://h:1": {api_key: 5, api_key_file: a/b}}
        llama_server: {path: llama-server, args: -v}
        models:
          a: {path: models/a.gguf, roles: []}
          b: {roles: planner, context_size: 0, parallel: 300, args: [true]}
        instances: {gpu: {}, gpu01: {}, gpu0: {model: a, pinned: 1}}
        """,
    ) == sorted([
        'f.yaml:1: node_id: expected a name of at most 63 letters, digits and ._-, found "-x"',
        'f.yaml:2: gateways."http://h:1".api_key: expected a key: a string of printable ASCII '
        "characters without spaces, found a number or boolean; put it in quotes",
        'f.yaml:2: gateways."http://h:1".api_key_file: expected the absolute path of a file, or '
        "the name of a systemd credential, found a string",
        'f.yaml:3: llama_server.path: expected an absolute path, found "llama-server"',
        'f.yaml:3: llama_server.args: expected a list of arguments, found "-v"',
        'f.yaml:5: models.a.path: expected an absolute path, found "models/a.gguf"',
        "f.yaml:5: models.a.roles: expected a list of at least one role, found an empty list",
        "f.yaml:6: models.b.path: expected an absolute path, found nothing",
        'f.yaml:6: models.b.roles: expected a list of at least one role, found "planner"',
        "f.yaml:6: models.b.context_size: expected a whole number of tokens, 1 or more, found 0",
        "f.yaml:6: models.b.parallel: expected a whole number of slots from 1 to 256, found 300",
        "f.yaml:6: models.b.args[0]: expected a string or a number, found true",
        "f.yaml:7: instances.gpu: expected an instance name: gpuN, gpuN-NAME or cpuN as key",
        "f.yaml:7: instances.gpu01: expected an instance name: gpuN, gpuN-NAME or cpuN as key",
        "f.yaml:7: instances.gpu0.pinned: expected true or false, found 1",
    ])  # fmt: skip


def test_an_unknown_key_is_answered_with_the_nearest_known_one(parse: Parse) -> None:
    text = "modles: {}\ntimeouts: {idle: 3}\nmodels: {a: {type: proxy, proxy_url: x, defualts: {}}}"
    assert problems(parse, "gateway", text) == [
        'f.yaml:1: modles: unknown key; did you mean "models"?',
        'f.yaml:2: timeouts.idle: unknown key; did you mean "idle_s"?',
        'f.yaml:3: models.a.defualts: unknown key; did you mean "defaults"?',
    ]


def test_in_the_single_file_form_unknown_keys_are_warned_about_and_dropped(parse: Parse) -> None:
    root = parse("modles: {}\nmodels: {a: {type: discovered, rol: x}}\ntimeouts: 5")
    checked = check_schema(root, "gateway", is_lenient=True)
    assert {(str(finding.problem()), finding.is_warning) for finding in checked.findings} == {
        ('f.yaml:1: modles: unknown key (ignored); did you mean "models"?', True),
        ('f.yaml:2: models.a.rol: unknown key (ignored); did you mean "role"?', True),
        ("f.yaml:3: timeouts: expected a mapping of timeouts in seconds, found 5", False),
    }
    assert tree.plain(checked.root) == {"models": {"a": {"type": "discovered"}}, "timeouts": 5}


@pytest.mark.parametrize("key", ["abc\\n", "abc ", "a b", "ä", "", "a\\tb"])
def test_a_key_that_no_header_can_carry_is_refused(parse: Parse, key: str) -> None:
    assert problems(parse, "gateway", f'auth: {{clients: {{ci: {{key: "{key}"}}}}}}') == [
        "f.yaml:1: auth.clients.ci.key: expected a key: a string of printable ASCII characters "
        "without spaces, found a string"
    ]


def test_a_list_in_a_single_file_satisfies_the_published_schema_too() -> None:
    """Editors check files as they are written, with lists of models and gateways."""
    validator = jsonschema.Draft202012Validator(load_schema("node"))
    model = {"model_id": "a", "path": "/a", "roles": ["x"]}
    assert validator.is_valid({"models": [model], "gateways": [{"url": "http://h:1"}]})
    assert not validator.is_valid({"models": [{"path": "/a", "roles": ["x"]}]})


def test_only_a_check_pays_for_the_schema_library() -> None:
    program = "import sys, rolemesh.config.cli; sys.exit('jsonschema' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
