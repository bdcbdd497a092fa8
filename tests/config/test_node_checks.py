import pytest

from rolemesh.config.merge import SHAPES, merge
from rolemesh.config.node_checks import node_checks
from tests.config.conftest import Parse


def findings(parse: Parse, text: str) -> list[str]:
    root = merge([parse(text)], SHAPES["node"]).root
    return [str(finding.problem()) for finding in node_checks(root)]


def test_a_sound_node_has_no_findings(parse: Parse) -> None:
    text = """
        advertise_url: http://10.0.0.7:8100
        gateways: [{url: "http://10.0.0.1:8000", api_key: a}]
        models: [{model_id: m}]
        instances: {gpu0: {model: m}, cpu0: {}}
        """
    assert findings(parse, text) == []


def test_an_instance_of_an_unknown_model_is_found(parse: Parse) -> None:
    text = """
        models: [{model_id: planner-gguf}]
        instances:
          gpu0: {model: planer-gguf}
          gpu1: {model: 5}
        """
    assert findings(parse, text) == [
        "f.yaml:3: instances.gpu0.model: expected a model_id that models defines, found "
        '"planer-gguf"; did you mean "planner-gguf"?'
    ]


@pytest.mark.parametrize("models", ["", "models: 5"])
def test_without_models_only_the_schema_can_be_at_fault(parse: Parse, models: str) -> None:
    found = findings(parse, f"instances: {{gpu0: {{model: m}}}}\n{models}")
    assert len(found) == (0 if models else 1)


def test_urls_and_keys_are_checked(parse: Parse) -> None:
    text = """
        advertise_url: "ftp://h"
        gateways:
          - {url: "h:1"}
          - {url: "http://h:1", api_key: a, api_key_file: /b}
        auth: {clients: {c: {}}}
        """
    url = "expected http[s]://HOST[:PORT][/PREFIX], found"
    assert findings(parse, text) == [
        f'f.yaml:1: advertise_url: {url} "ftp://h"',
        "f.yaml:5: auth.clients.c: expected exactly one of key, key_sha256 and key_file, "
        "found none",
        f'f.yaml:3: gateways."h:1".url: {url} "h:1"',
        'f.yaml:4: gateways."http://h:1": expected at most one of api_key and api_key_file, '
        "found both",
    ]  # fmt: skip


def test_a_gateway_url_is_shown_without_its_password(parse: Parse) -> None:
    assert findings(parse, "gateways: {'http://me:secret@h:1': {api_key: a}}") == [
        'f.yaml:1: gateways."http://...@h:1".url: expected http[s]://HOST[:PORT][/PREFIX], '
        'found "http://...@h:1"'
    ]


def test_the_name_inside_a_mapping_is_its_key(parse: Parse) -> None:
    assert findings(parse, "models: {a: {model_id: b}}") == [
        'f.yaml:1: models.a.model_id: expected "a", as its key says, found "b"'
    ]


def test_an_advertised_url_that_nobody_serves_is_doubtful(parse: Parse) -> None:
    text = "{advertise_url: 'http://h:1', listen: {tls: {cert_file: /c, key_file: /k}}}"
    assert findings(parse, text) == [
        "f.yaml:1: advertise_url: listen.tls serves https:// only, so gateways would not reach "
        "this address"
    ]
    assert findings(parse, text.replace("http:", "https:")) == []


def test_the_gpus_of_an_instance_begin_with_its_own(parse: Parse) -> None:
    text = """
        instances:
          gpu0: {gpus: [0, 1]}
          gpu10-small: {gpus: [10]}
          gpu2: {gpus: [1, 2]}
          cpu0: {gpus: [0]}
        """
    assert findings(parse, text) == [
        "f.yaml:4: instances.gpu2.gpus: expected a list that begins with 2, its own GPU, found a list",
        "f.yaml:5: instances.cpu0.gpus: expected no gpus, found a list",
    ]


def test_what_excludes_each_other_in_a_model_is_found(parse: Parse) -> None:
    text = """
        models:
          a: {embeddings: true, rerank: true}
          b: {embeddings: true, rerank: false, chat_template: chatml}
          c: {chat_template: chatml, chat_template_file: /c.jinja}
        """
    assert findings(parse, text) == [
        "f.yaml:4: models.c: expected at most one of chat_template and chat_template_file, found both",
        "f.yaml:2: models.a: expected at most one of embeddings and rerank, found both",
    ]
