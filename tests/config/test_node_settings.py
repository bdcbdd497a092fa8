from pathlib import Path

import pytest

from rolemesh.config import tree
from rolemesh.config.keys import KeyFiles
from rolemesh.config.merge import SHAPES, merge
from rolemesh.config.node_settings import build_node_settings, node_id_from
from rolemesh.config.settings import (
    DraftModel,
    GatewayLink,
    InstanceSettings,
    Limits,
    Listen,
    LlamaServer,
    Lora,
    ModelSettings,
    NodePolicy,
    NodeSettings,
)
from rolemesh.names import InstanceName, ModelId, NodeId, Role
from tests.config.conftest import Parse


def build(parse: Parse, text: str, key_files: KeyFiles | None = None) -> NodeSettings:
    root = merge([parse(text)], SHAPES["node"]).root
    return build_node_settings(root, key_files or KeyFiles(), host_name="gpubox")


def test_an_empty_tree_is_all_defaults_under_the_name_of_the_host() -> None:
    built = build_node_settings(tree.empty("f"), KeyFiles(), host_name="gpubox")
    assert built == NodeSettings(node_id=NodeId("gpubox"))
    assert built.limits.drain_s == 10


@pytest.mark.parametrize(
    ("host_name", "node_id"),
    [
        ("gpubox.lan", "gpubox.lan"),
        ("-gpu box_1", "gpu-box_1"),
        ("büro", "b-ro"),
        ("x" * 80, "x" * 63),
        ("", "node"),
        ("...", "node"),
    ],
)
def test_a_host_name_becomes_a_node_id(host_name: str, node_id: str) -> None:
    assert node_id_from(host_name) == node_id


def test_every_section_is_taken_over(parse: Parse) -> None:
    settings = build(
        parse,
        """
        node_id: box
        listen: {host: 10.0.0.7, port: 81}
        advertise_url: http://10.0.0.7:81
        auth: {api_keys: [a], clients: {ci: {key: b}}}
        gateways:
          - {url: "http://10.0.0.1:8000", api_key: k}
          - {url: "http://10.0.0.2:8000", api_key_file: /k}
          - {url: "http://10.0.0.3:8000"}
        llama_server: {path: /usr/bin/llama-server, args: [-v]}
        models:
          - {model_id: m, path: /m.gguf, roles: [a, b, a], context_size: 8192, parallel: 4,
             args: [-ngl, 99]}
          - {model_id: n, path: /n.gguf, roles: [a]}
        instances: {gpu0: {model: m, pinned: true}, cpu0: {}}
        policy: {allow_cpu: false, load_timeout_s: 5}
        limits: {max_body_bytes: 2048, drain_s: 3}
        """,
        KeyFiles(texts={("gateways", "http://10.0.0.2:8000", "api_key_file"): "in-file"}),
    )
    assert settings.node_id == "box"
    assert settings.listen == Listen(host=("10.0.0.7",), port=81)
    assert settings.advertise_url == "http://10.0.0.7:81"
    assert [key.name for key in settings.auth] == ["client-ca978112", "ci"]
    assert settings.gateways == (
        GatewayLink(url="http://10.0.0.1:8000", api_key="k"),
        GatewayLink(url="http://10.0.0.2:8000", api_key="in-file"),
        GatewayLink(url="http://10.0.0.3:8000"),
    )
    assert settings.llama_server == LlamaServer(path=Path("/usr/bin/llama-server"), args=("-v",))
    assert settings.llama_server.origin == "f.yaml:9"
    assert settings.llama_server.args_origin == "f.yaml:9"
    assert list(settings.models.values()) == [
        ModelSettings(
            model_id=ModelId("m"), path=Path("/m.gguf"), roles=(Role("a"), Role("b")),
            context_size=8192, parallel=4, args=("-ngl", "99"),
        ),
        ModelSettings(model_id=ModelId("n"), path=Path("/n.gguf"), roles=(Role("a"),)),
    ]  # fmt: skip
    assert settings.models[ModelId("m")].origin == "f.yaml:11"
    assert list(settings.instances.values()) == [
        InstanceSettings(name=InstanceName("gpu0"), model=ModelId("m"), pinned=True),
        InstanceSettings(name=InstanceName("cpu0")),
    ]
    assert settings.policy == NodePolicy(allow_cpu=False, load_timeout_s=5.0)
    assert settings.limits == Limits(max_body_bytes=2048, drain_s=3.0)


def test_everything_llama_server_can_be_told_of_a_model(parse: Parse) -> None:
    settings = build(
        parse,
        """
        gpus: [0, GPU-7]
        models:
          m:
            path: /m.gguf
            roles: [r]
            gpu_layers: 20
            gpus: 2
            cache_type_k: q8_0
            cache_type_v: q4_0
            flash_attention: true
            batch_size: 1024.0
            ubatch_size: 256
            threads: 8
            lora: [{path: /a.gguf}, {path: /b.gguf, scale: 0.5}]
            mmproj: /p.gguf
            draft_model: {path: /d.gguf, max_tokens: 8}
            chat_template_file: /t.jinja
            embeddings: true
            pooling: mean
            save_slots: true
            memory_mib: 9000
            warm: true
            idle_unload_s: 60
        instances: {gpu0: {gpus: [0, 1]}}
        """,
    )
    assert settings.gpus == (0, "GPU-7")
    assert settings.instances[InstanceName("gpu0")].gpus == (0, 1)
    assert settings.models[ModelId("m")] == ModelSettings(
        model_id=ModelId("m"), path=Path("/m.gguf"), roles=(Role("r"),), gpu_layers=20, gpus=2,
        cache_type_k="q8_0", cache_type_v="q4_0", flash_attention=True, batch_size=1024,
        ubatch_size=256, threads=8,
        lora=(Lora(path=Path("/a.gguf")), Lora(path=Path("/b.gguf"), scale=0.5)),
        mmproj=Path("/p.gguf"), draft_model=DraftModel(path=Path("/d.gguf"), max_tokens=8),
        chat_template_file=Path("/t.jinja"), embeddings=True, pooling="mean", save_slots=True,
        memory_mib=9000, warm=True, idle_unload_s=60,
    )  # fmt: skip
