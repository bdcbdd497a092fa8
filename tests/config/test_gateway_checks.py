import pytest

from rolemesh.config.gateway_checks import gateway_checks, is_loopback
from tests.config.conftest import Parse


def findings(parse: Parse, text: str, *, are_warnings: bool = False) -> list[str]:
    return [str(f.problem()) for f in gateway_checks(parse(text)) if f.is_warning is are_warnings]


MODELS = "models: {planner: {type: discovered}, coder: {type: discovered}}"


@pytest.mark.parametrize(
    "text",
    [
        f"default_model: planner\n{MODELS}",
        "default_model: planner\naliases: {from_roles: true}",
        "default_model: 5",
        "default_model: planner\nmodels: 5",
        MODELS,
    ],
)
def test_the_default_model_is_an_alias_or_may_become_one(parse: Parse, text: str) -> None:
    assert findings(parse, text) == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (f"default_model: planer\n{MODELS}", '; did you mean "planner"?'),
        (f"default_model: planer\naliases: {{from_roles: false}}\n{MODELS}",
            '; did you mean "planner"?'),
        ("default_model: planer", ""),
    ],
)  # fmt: skip
def test_a_default_model_that_nothing_defines_is_found(parse: Parse, text: str, hint: str) -> None:
    assert findings(parse, text) == [
        "f.yaml:1: default_model: expected an alias that models defines, found "
        f'"planer"{hint}'
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "listen: {host: 127.0.0.1}",
        'listen: {host: ["::1", localhost, 127.0.0.9]}',
        "listen: {host: 0.0.0.0}\nauth: {client_api_keys: [a]}",
        "listen: {host: 0.0.0.0}\nauth: {clients: {ci: {key: a}}}",
        "listen: {host: 0.0.0.0}\nauth: {open: true}",
        "listen: {host: 0.0.0.0}\nauth: 5",
        "listen: {host: 5}",
        "listen: {port: 80}",
    ],
)
def test_who_listens_for_others_has_keys_or_says_that_all_may_call(parse: Parse, text: str) -> None:
    assert findings(parse, text) == []


OPEN = (
    "without client keys anyone who reaches that address could use the models: set "
    "auth.client_api_keys or auth.clients, or permit it with auth: {open: true}"
)


@pytest.mark.parametrize(
    ("text", "key", "host"),
    [
        ("listen: {host: 0.0.0.0}", "listen.host", "0.0.0.0"),
        ("listen: {host: gpubox}", "listen.host", "gpubox"),
        ('listen: {host: [127.0.0.1, "::"]}', "listen.host[1]", "::"),
        ("listen: {host: 10.0.0.1}\nauth: {open: false, client_api_keys: []}",
            "listen.host", "10.0.0.1"),
        ("listen: {host: 10.0.0.1}\nauth: {node_api_keys: [a]}", "listen.host", "10.0.0.1"),
    ],
)  # fmt: skip
def test_listening_for_others_without_client_keys_is_found(
    parse: Parse, text: str, key: str, host: str
) -> None:
    expected = f'f.yaml:1: {key}: expected a loopback address, found "{host}"; {OPEN}'
    assert findings(parse, text) == [expected]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_networks_are_networks(parse: Parse) -> None:
    text = """
        network:
          allow_clients: [10.0.0.0/24, 10.0.0.5, "fd00::/8"]
          allow_nodes:
            - 10.0.0.5/24
            - lan
            - 5
        """
    assert findings(parse, text) == [
        "f.yaml:4: network.allow_nodes[0]: expected a network such as 10.0.0.0/24, found "
        '"10.0.0.5/24"; did you mean "10.0.0.0/24"?',
        'f.yaml:5: network.allow_nodes[1]: expected a network such as 10.0.0.0/24, found "lan"',
    ]


def test_keys_and_urls_are_checked(parse: Parse) -> None:
    text = """
        auth: {clients: {a: {}}, nodes: {b: {}}}
        models: {c: {type: proxy, proxy_url: "ftp://h"}}
        """
    keys = "expected exactly one of key, key_sha256 and key_file, found none"
    assert findings(parse, text) == [
        f"f.yaml:1: auth.clients.a: {keys}",
        f"f.yaml:1: auth.nodes.b: {keys}",
        'f.yaml:2: models.c.proxy_url: expected http[s]://HOST[:PORT][/PREFIX], found "ftp://h"',
    ]


def test_a_key_for_an_alias_that_does_not_exist_is_warned_about(parse: Parse) -> None:
    text = f"auth: {{clients: {{ci: {{key: a, roles: [coder, plannr, 5]}}}}}}\n{MODELS}"
    assert findings(parse, text) == []
    assert findings(parse, text, are_warnings=True) == [
        'f.yaml:1: auth.clients.ci.roles[1]: "plannr" is no alias that models defines; '
        'did you mean "planner"?'
    ]
    roles = text + "\naliases: {from_roles: true}"
    assert findings(parse, roles, are_warnings=True) == []


def test_a_model_name_for_a_discovered_alias_is_warned_about(parse: Parse) -> None:
    text = "models: {a: {type: discovered, defaults: {model: x}}, b: {type: proxy, defaults: {model: x}}}"
    assert findings(parse, text, are_warnings=True) == [
        "f.yaml:1: models.a.defaults.model: no effect: what is sent to a node is the model_id "
        "that it announced"
    ]


@pytest.mark.parametrize(
    ("fallback", "found"),
    [
        ("[planner]", []),
        ("[planer]", ['expected an alias that models defines, found "planer"; did you mean '
            '"planner"?']),
        ("[coder]", ['expected another alias than its own, found "coder"']),
        ("5", []),
    ],
)  # fmt: skip
def test_a_fallback_is_another_alias(parse: Parse, fallback: str, found: list[str]) -> None:
    text = f"models: {{planner: {{type: discovered}}, coder: {{fallback: {fallback}}}}}"
    where = "f.yaml:1: models.coder.fallback[0]: "
    assert findings(parse, text) == [where + each for each in found]


def test_an_upstream_has_one_key(parse: Parse) -> None:
    text = "models: {p: {type: proxy, proxy_url: http://up, api_key: a, api_key_file: /b}}"
    assert findings(parse, text) == [
        "f.yaml:1: models.p: expected at most one of api_key and api_key_file, found both"
    ]


@pytest.mark.parametrize(("url", "is_doubtful"), [("http://h/v1/", True), ("http://h/v10", False)])
def test_a_base_url_that_has_the_version_already_is_doubtful(
    parse: Parse, url: str, is_doubtful: bool
) -> None:
    text = f"models: {{a: {{type: proxy, proxy_url: {url}}}}}"
    expected = [
        "f.yaml:1: models.a.proxy_url: requests would go to .../v1/v1/...; leave /v1 out, unless "
        "that is meant"
    ]
    assert findings(parse, text, are_warnings=True) == (expected if is_doubtful else [])
