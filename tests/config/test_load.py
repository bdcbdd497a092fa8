import hashlib
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rolemesh.config.dropins import ConfigSource, Override
from rolemesh.config.load import Loaded, load_gateway, load_node
from rolemesh.config.node_settings import node_id_from
from rolemesh.config.settings import GatewaySettings, NodeSettings, ProxyAlias
from rolemesh.config.tree import Program
from rolemesh.errors import ConfigError, Problem
from rolemesh.names import Alias, ModelId
from tests.config.conftest import Write
from tests.lab.certificates import Authority

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "etc" / "examples"
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text("utf-8")
DOCUMENTED = re.findall(
    r"^```yaml\n# (gateway|node)\.d/(\S+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL
)

# What the first release documented; these texts must go on loading as they are.
MODELS_YAML = """\
version: 1
default_model: planner
auth:
  client_api_keys:
    - "change-me-client-key"
models:
  planner:
    type: proxy
    openai_model_name: planner
    proxy_url: http://127.0.0.1:8011
    defaults:
      temperature: 0
      max_tokens: 128
  writer:
    type: proxy
    openai_model_name: writer
    proxy_url: http://127.0.0.1:8012
    defaults:
      temperature: 0.6
      max_tokens: 256
"""
SHORT_MODELS_YAML = """\
models:
  planner:
    type: proxy
    proxy_url: http://127.0.0.1:8011
"""
OLLAMA_YAML = """\
models:
  planner:
    type: proxy
    openai_model_name: planner
    proxy_url: http://127.0.0.1:11434
    defaults:
      model: dolphin3:latest
"""
NODE_AGENT_YAML = """\
models:
  - model_id: "planner-gguf"
    path: "/models/SomePlannerModel.Q5_K_M.gguf"
    roles: ["planner"]
"""


def gateway(directory: Path) -> Loaded[GatewaySettings]:
    return load_gateway(ConfigSource(program="gateway", config_dir=directory), {})


def node(directory: Path) -> Loaded[NodeSettings]:
    return load_node(ConfigSource(program="node", config_dir=directory), {})


def refused(source: ConfigSource) -> ConfigError:
    load = load_gateway if source.program == "gateway" else load_node
    with pytest.raises(ConfigError) as error:
        load(source, {})
    return error.value


def proxy(settings: GatewaySettings, alias: str) -> ProxyAlias:
    model = settings.models[Alias(alias)]
    assert isinstance(model, ProxyAlias)
    return model


# --- the old single files -------------------------------------------------------------------


def test_the_seed_gateway_file_loads_unchanged(write: Write) -> None:
    path = write("models.yaml", MODELS_YAML)
    path.chmod(0o600)
    loaded = load_gateway(ConfigSource(program="gateway", config=path), {})
    settings = loaded.settings
    assert loaded.warnings == ()
    assert settings.default_model == "planner"
    assert settings.listen.host == ("127.0.0.1",)
    assert settings.listen.port == 8000
    (key,) = settings.auth.clients
    assert key.digest == hashlib.sha256(b"change-me-client-key").digest()
    assert key.roles is None
    assert list(settings.models) == ["planner", "writer"]
    planner, writer = proxy(settings, "planner"), proxy(settings, "writer")
    assert (planner.proxy_url, planner.model) == ("http://127.0.0.1:8011", "planner")
    assert dict(planner.defaults) == {"temperature": 0, "max_tokens": 128}
    assert (writer.proxy_url, writer.model) == ("http://127.0.0.1:8012", "writer")
    assert dict(writer.defaults) == {"temperature": 0.6, "max_tokens": 256}
    assert settings.stale_after_s == 30


def test_the_seed_gateway_file_may_be_as_short_as_one_alias(write: Write) -> None:
    path = write("models.yaml", SHORT_MODELS_YAML)
    settings = load_gateway(ConfigSource(program="gateway", config=path), {}).settings
    assert proxy(settings, "planner").model is None
    assert settings.auth.clients == ()


def test_the_seed_ollama_file_sends_the_ollama_name(write: Write) -> None:
    path = write("models.yaml", OLLAMA_YAML)
    settings = load_gateway(ConfigSource(program="gateway", config=path), {}).settings
    assert proxy(settings, "planner").model == "dolphin3:latest"
    assert dict(proxy(settings, "planner").defaults) == {}


def test_the_seed_node_file_loads_unchanged(write: Write) -> None:
    path = write("node_agent.yaml", NODE_AGENT_YAML)
    loaded = load_node(ConfigSource(program="node", config=path), {})
    (model,) = loaded.settings.models.values()
    assert loaded.warnings == ()
    assert loaded.settings.node_id == node_id_from(socket.gethostname())
    assert model.model_id == "planner-gguf"
    assert model.path == Path("/models/SomePlannerModel.Q5_K_M.gguf")
    assert model.roles == ("planner",)
    assert (model.context_size, model.parallel, model.args) == (None, 1, ())


def test_the_seed_local_override_has_the_values_of_this_machine(write: Write) -> None:
    path = write("models.example.yaml", MODELS_YAML)
    override = write("models.local.yaml", "models: {planner: {proxy_url: http://10.0.0.9:1}}")
    source = ConfigSource(program="gateway", config=path, override=override)
    settings = load_gateway(source, {}).settings
    assert proxy(settings, "planner").proxy_url == "http://10.0.0.9:1"
    assert proxy(settings, "writer").proxy_url == "http://127.0.0.1:8012"

    path = write("node_agent.example.yaml", NODE_AGENT_YAML)
    override = write("node_agent.local.yaml", "models: [{model_id: planner-gguf, path: /p.gguf}]")
    source = ConfigSource(program="node", config=path, override=override)
    model = load_node(source, {}).settings.models[ModelId("planner-gguf")]
    assert (model.path, model.roles) == (Path("/p.gguf"), ("planner",))


def test_keys_that_only_an_old_file_knows_are_warned_about_and_do_no_harm(write: Write) -> None:
    path = write("node_agent.yaml", NODE_AGENT_YAML + "    placement: 0\nheartbeat_s: 5\n")
    loaded = load_node(ConfigSource(program="node", config=path), {})
    assert list(loaded.settings.models) == ["planner-gguf"]
    top = "advertise_url, auth, gateways, gpus, instances, limits, listen, llama_server, models, "
    of_model, of_node = map(str, loaded.warnings)
    unknown = "unknown key (ignored); known here:"
    assert of_model.startswith(f"{path}:5: models.planner-gguf.placement: {unknown} args, batch_")
    assert of_node == f"{path}:6: heartbeat_s: {unknown} {top}node_id, paths, policy, version"


# --- drop-ins -------------------------------------------------------------------------------


def test_two_drop_ins_with_a_model_and_a_key_each_make_two_of_both(
    write: Write, tmp_path: Path
) -> None:
    for name in ("planner", "coder"):
        write(
            f"gateway.d/{name}.yaml",
            f"""
            auth: {{client_api_keys: [key-of-{name}]}}
            models: {{{name}: {{type: discovered}}}}
            """,
        )
        write(
            f"node.d/{name}.yaml",
            f"""
            auth: {{api_keys: [key-of-{name}]}}
            models: [{{model_id: {name}, path: /{name}.gguf, roles: [{name}]}}]
            """,
        )
    gateway_settings = gateway(tmp_path / "gateway.d").settings
    assert sorted(gateway_settings.models) == ["coder", "planner"]
    assert len(gateway_settings.auth.clients) == 2
    node_settings = node(tmp_path / "node.d").settings
    assert sorted(node_settings.models) == ["coder", "planner"]
    assert len(node_settings.auth) == 2


def test_a_problem_names_what_it_replaced(write: Write, tmp_path: Path) -> None:
    low = write("d/10-a.yaml", "listen:\n  host: 127.0.0.1\n  port: 8000")
    high = write("d/20-b.yaml", "listen:\n  port: high")
    error = refused(ConfigSource(program="gateway", config_dir=tmp_path / "d"))
    assert str(error) == (
        f"{high}:2: listen.port: expected a port number from 0 to 65535, found "
        f'"high" (was 8000 from {low}:3)'
    )


def test_a_replaced_key_is_not_shown(write: Write, tmp_path: Path) -> None:
    low = write("d/10-a.yaml", "auth: {clients: {ci: {key: sk-1}}}")
    high = write("d/20-b.yaml", "auth: {clients: {ci: {key: 'sk 2'}}}")
    error = refused(ConfigSource(program="gateway", config_dir=tmp_path / "d"))
    assert str(error) == (
        f"{high}:1: auth.clients.ci.key: expected a key: a string of printable ASCII characters "
        f"without spaces, found a string (was a string from {low}:1)"
    )


def test_problems_of_every_kind_are_told_at_once_in_the_order_of_the_files(
    write: Write, tmp_path: Path
) -> None:
    a = write(
        "d/a.yaml",
        """
        listen: {host: 0.0.0.0}
        models: {planner: {type: proxy, proxy_url: ftp://h}}
        network: {allow_nodes: [lan]}
        """,
    )
    b = write(
        "d/b.yaml",
        """
        default_model: planer
        auth:
          nodes: {box: {key: same}, box2: {key: same}, box3: {key_file: /gone}}
        timeouts: {idle_s: soon}
        """,
    )
    yml = write("d/c.yml", "x: 1")
    error = refused(ConfigSource(program="gateway", config_dir=tmp_path / "d"))
    assert list(map(str, error.problems)) == [
        f'{a}:1: listen.host: expected a loopback address, found "0.0.0.0"; without client keys '
        "anyone who reaches that address could use the models: set auth.client_api_keys or "
        "auth.clients, or permit it with auth: {open: true}",
        f'{a}:2: models.planner.proxy_url: expected http[s]://HOST[:PORT][/PREFIX], found "ftp://h"',
        f"{a}:3: network.allow_nodes[0]: expected a network such as 10.0.0.0/24, found "
        '"lan"',
        f"{b}:1: default_model: expected an alias that models defines, found "
        '"planer"; did you mean "planner"?',
        f"{b}:3: auth.nodes.box3.key_file: expected a file with a key: /gone cannot be read: "
        "No such file or directory",
        f"{b}:3: auth.nodes.box2: expected a key of its own, found the one of auth.nodes.box",
        f'{b}:4: timeouts.idle_s: expected a number of seconds greater than 0, found "soon"',
    ]  # fmt: skip
    assert error.warnings == (
        Problem(
            where=str(yml), key="",
            message="not read: its name does not end in .yaml; rename it to c.yaml",
        ),
    )  # fmt: skip


def test_what_cannot_be_read_is_told_before_anything_is_judged(
    write: Write, tmp_path: Path
) -> None:
    write("d/a.yaml", "default_model: planner")
    broken = write("d/b.yaml", "models: {planner: {type: discovered}}\nmodels: {}")
    error = refused(ConfigSource(program="gateway", config_dir=tmp_path / "d"))
    assert str(error) == (
        f"{broken}:2: models: expected once in a file, found again (first at line 1)"
    )


def test_an_override_from_outside_the_files_is_judged_like_any_other(tmp_path: Path) -> None:
    overrides = (
        Override(origin="ROLE_MESH_NODE_STALE_AFTER_S", path=("nodes", "stale_after_s"), value="x"),
        Override(origin="--host", path=("listen", "host"), value=("127.0.0.1", "10.0.0.1")),
    )
    error = refused(ConfigSource(program="gateway", config_dir=tmp_path, overrides=overrides))
    assert [problem.where for problem in error.problems] == [
        "ROLE_MESH_NODE_STALE_AFTER_S",
        "--host",
    ]
    assert str(error.problems[0]) == (
        "ROLE_MESH_NODE_STALE_AFTER_S: nodes.stale_after_s: expected a number of seconds greater "
        'than 0, found "x"'
    )
    assert error.problems[1].key == "listen.host[1]"


def test_a_program_without_need_of_keys_does_not_read_the_files_that_hold_them(
    write: Write, tmp_path: Path
) -> None:
    write("d/a.yaml", "gateways: [{url: 'http://h:1', api_key_file: /gone}]")
    source = ConfigSource(program="node", config_dir=tmp_path / "d")
    assert len(refused(source).problems) == 1
    (link,) = load_node(source, {}, reads_keys=False).settings.gateways
    assert link.api_key is None


def test_credentials_come_from_the_directory_that_systemd_names(
    write: Write, tmp_path: Path
) -> None:
    write("d/a.yaml", "gateways: [{url: 'http://h:1', api_key_file: node-key}]")
    directory = write("credentials/node-key", "sk-1\n").parent
    source = ConfigSource(program="node", config_dir=tmp_path / "d")
    loaded = load_node(source, {"CREDENTIALS_DIRECTORY": str(directory)})
    assert loaded.settings.gateways[0].api_key == "sk-1"
    assert "sk-1" not in repr(loaded)


# --- what is shipped ------------------------------------------------------------------------


@pytest.fixture
def made_here(write: Write, tmp_path: Path, authority: Authority) -> Callable[[str], str]:
    """Return an example's text with the files it names in the test's directory, where they are."""
    certificate = authority.sign()
    write("files/keys/ci", "key-of-ci")
    write("files/tls/ca.pem", authority.ca_file.read_text())
    write("files/tls/cert.pem", certificate.cert_file.read_text())
    write("files/tls/key.pem", certificate.key_file.read_text())

    def rename(text: str) -> str:
        return re.sub(r"/etc/rolemesh/(keys|tls)/", rf"{tmp_path}/files/\1/", text)

    return rename


@pytest.mark.parametrize("program", ["gateway", "node"])
def test_every_example_is_valid(
    program: Program, write: Write, tmp_path: Path, made_here: Callable[[str], str]
) -> None:
    load = load_gateway if program == "gateway" else load_node
    shipped = sorted((EXAMPLES / f"{program}.d").iterdir())
    for path in shipped:
        write(f"etc/{path.name}", made_here(path.read_text()))
    together = load(ConfigSource(program=program, config_dir=tmp_path / "etc"), {})
    assert [path.name for path in together.files] == [path.name for path in shipped]
    for warning in together.warnings:
        assert "every user of this machine can read this key" in warning.message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("models.yaml", MODELS_YAML),
        ("models-ollama.yaml", OLLAMA_YAML),
        ("node_agent.yaml", NODE_AGENT_YAML),
    ],
)
def test_the_old_forms_are_shipped_as_they_were_documented(name: str, text: str) -> None:
    assert (EXAMPLES / "seed" / name).read_text() == text


def test_the_examples_of_limits_and_policy_are_the_defaults() -> None:
    source = ConfigSource(program="gateway", config=EXAMPLES / "gateway.d" / "90-limits.yaml")
    assert load_gateway(source, {}).settings == GatewaySettings()
    source = ConfigSource(program="node", config=EXAMPLES / "node.d" / "90-policy.yaml")
    built = load_node(source, {}).settings
    assert built == NodeSettings(node_id=built.node_id)


@pytest.mark.parametrize("program", ["gateway", "node"])
def test_the_examples_of_the_documentation_make_one_valid_configuration(
    program: Program, write: Write, tmp_path: Path, made_here: Callable[[str], str]
) -> None:
    for owner, name, text in DOCUMENTED:
        if owner == program:
            write(f"etc/{name}", made_here(text))
    directory = tmp_path / "etc"
    settings = (gateway if program == "gateway" else node)(directory).settings
    assert "```yaml\n" not in re.sub(r"```yaml\n# (gateway|node)\.d/", "", DOCUMENT)
    assert len(settings.models) == {"gateway": 5, "node": 1}[program]
