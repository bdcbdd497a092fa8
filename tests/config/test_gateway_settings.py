from ipaddress import ip_network
from pathlib import Path

from rolemesh.config import tree
from rolemesh.config.gateway_settings import build_gateway_settings
from rolemesh.config.keys import KeyFiles
from rolemesh.config.settings import (
    ClientTls,
    DiscoveredAlias,
    GatewayNetwork,
    GatewaySettings,
    Limits,
    Listen,
    Priority,
    ProxyAlias,
    ServerTls,
    Timeouts,
)
from rolemesh.names import Alias, Role
from tests.config.conftest import Parse


def build(parse: Parse, text: str) -> GatewaySettings:
    return build_gateway_settings(parse(text), KeyFiles())


def test_an_empty_tree_is_all_defaults() -> None:
    assert build_gateway_settings(tree.empty("f"), KeyFiles()) == GatewaySettings()


def test_every_section_is_taken_over(parse: Parse) -> None:
    settings = build(
        parse,
        """
        version: 1
        default_model: coder
        listen: {host: [10.0.0.1, "::1"], port: 81}
        aliases: {from_roles: true}
        auth: {client_api_keys: [a], clients: {ci: {key: b}}, node_api_keys: [c],
               nodes: {box: {key: d}}, open: true}
        network: {allow_clients: [10.0.0.0/24, 10.1.1.1], allow_nodes: []}
        timeouts: {connect_s: 1, first_byte_s: 2, idle_s: 3, total_s: 4, load_wait_s: 5}
        limits: {max_body_bytes: 2048, max_header_bytes: 4096, header_timeout_s: 1, max_queue: 2,
                 max_queue_wait_s: 3, drain_s: 4}
        nodes: {stale_after_s: 47}
        """,
    )
    assert settings.default_model == "coder"
    assert settings.listen == Listen(host=("10.0.0.1", "::1"), port=81)
    assert settings.aliases_from_roles
    assert [key.name for key in settings.auth.clients] == ["client-ca978112", "ci"]
    assert [key.name for key in settings.auth.nodes] == ["node-2e7d2c03", "box"]
    assert settings.auth.open
    assert settings.network == GatewayNetwork(
        allow_clients=(ip_network("10.0.0.0/24"), ip_network("10.1.1.1")), allow_nodes=()
    )
    assert settings.timeouts == Timeouts(
        connect_s=1, first_byte_s=2, idle_s=3, total_s=4, load_wait_s=5
    )
    assert settings.limits == Limits(
        max_body_bytes=2048, max_header_bytes=4096, header_timeout_s=1, max_queue=2,
        max_queue_wait_s=3, drain_s=4,
    )  # fmt: skip
    assert settings.stale_after_s == 47


def test_a_proxy_sends_the_model_name_that_the_configuration_says(parse: Parse) -> None:
    models = build(
        parse,
        """
        models:
          silent: {type: proxy, proxy_url: "http://h"}
          named: {type: proxy, proxy_url: "http://h", openai_model_name: n}
          ollama: {type: proxy, proxy_url: "http://h", openai_model_name: n,
                   defaults: {model: "d:1", temperature: 0}}
        """,
    ).models
    sent = {alias: model.model for alias, model in models.items() if isinstance(model, ProxyAlias)}
    assert sent == {"silent": None, "named": "n", "ollama": "d:1"}
    assert dict(models[Alias("ollama")].defaults) == {"temperature": 0}


def test_a_discovered_alias_has_the_role_of_its_name_unless_told(parse: Parse) -> None:
    models = build(
        parse,
        """
        models:
          coder: {type: discovered}
          tutor: {type: discovered, role: coder, defaults: {model: x, stop: [a]}}
        """,
    ).models
    assert models[Alias("coder")] == DiscoveredAlias(alias=Alias("coder"), role=Role("coder"))
    assert models[Alias("tutor")] == DiscoveredAlias(
        alias=Alias("tutor"), role=Role("coder"), defaults={"stop": ["a"]}
    )


def test_timeouts_of_an_alias_are_the_general_ones_but_for_its_own(parse: Parse) -> None:
    models = build(
        parse,
        """
        timeouts: {first_byte_s: 10, idle_s: 20}
        models:
          a: {type: discovered, timeouts: {first_byte_s: 900}}
          b: {type: proxy, proxy_url: "http://h", max_in_flight: 4}
        """,
    ).models
    assert models[Alias("a")].timeouts == Timeouts(first_byte_s=900, idle_s=20)
    b = models[Alias("b")]
    assert b == ProxyAlias(
        alias=Alias("b"), proxy_url="http://h", model=None, max_in_flight=4,
        timeouts=Timeouts(first_byte_s=10, idle_s=20),
    )  # fmt: skip


def test_equal_trees_give_equal_settings_so_that_a_reload_can_tell(parse: Parse) -> None:
    text = "models: {a: {type: proxy, proxy_url: 'http://h', defaults: {stop: [x]}}}"
    assert build(parse, text) == build(parse, "# moved\n" + text)
    assert build(parse, text) != build(parse, text.replace("[x]", "[y]"))


def test_what_every_alias_may_say(parse: Parse) -> None:
    settings = build(
        parse,
        """
        models:
          coder: {type: discovered, fallback: [planner, planner], priority: batch,
                  reserved_slots: 2, echo_model: true}
          planner: {type: proxy, proxy_url: "https://up", api_key: sk-1, tls: {ca_file: /ca.pem}}
        """,
    )
    coder = settings.models[Alias("coder")]
    assert (coder.fallback, coder.priority) == ((Alias("planner"),), Priority.BATCH)
    assert (coder.reserved_slots, coder.echo_model) == (2, True)
    planner = settings.models[Alias("planner")]
    assert isinstance(planner, ProxyAlias)
    assert (planner.fallback, planner.priority, planner.reserved_slots) == ((), Priority.DEFAULT, 0)
    assert planner.api_key == "sk-1"
    assert planner.tls == ClientTls(ca_file=Path("/ca.pem"))
    assert "sk-1" not in repr(planner)


def test_the_key_of_an_upstream_may_stand_in_a_file(parse: Parse) -> None:
    root = parse("models: {p: {type: proxy, proxy_url: http://up, api_key_file: /etc/key}}")
    files = KeyFiles(texts={("models", "p", "api_key_file"): "sk-2"})
    planner = build_gateway_settings(root, files).models[Alias("p")]
    assert isinstance(planner, ProxyAlias)
    assert planner.api_key == "sk-2"


def test_what_a_named_key_may_do(parse: Parse) -> None:
    settings = build(
        parse,
        """
        auth: {clients: {ci: {key: b, roles: [coder], priority: interactive, max_concurrent: 4,
                              requests_per_minute: 60.0, admin: true}}}
        """,
    )
    (key,) = settings.auth.clients
    assert (key.priority, key.max_concurrent, key.requests_per_minute) == (Priority(0), 4, 60)
    assert (key.roles, key.admin) == (frozenset({Alias("coder")}), True)


def test_who_else_is_let_in(parse: Parse) -> None:
    settings = build(
        parse,
        """
        listen: {tls: {cert_file: /c.pem, key_file: /k.pem}}
        nodes: {tls: {ca_file: /ca.pem}}
        cors: {allow_origins: ["https://chat.example"]}
        paths: {/infill: {}, /v1/count: {slots: 0}}
        limits: {max_concurrent_per_key: 8}
        """,
    )
    assert settings.listen.tls == ServerTls(cert_file=Path("/c.pem"), key_file=Path("/k.pem"))
    assert settings.nodes_tls == ClientTls(ca_file=Path("/ca.pem"))
    assert settings.cors_origins == ("https://chat.example",)
    assert settings.paths == {"/infill": 1, "/v1/count": 0}
    assert settings.limits.max_concurrent_per_key == 8
