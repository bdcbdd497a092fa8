"""Which instances shall exist, and which settings make a model run anew."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from rolemesh.agent.desired import changed_models, desired_instances
from rolemesh.config.settings import InstanceSettings, LlamaServer, ModelSettings, NodeSettings
from rolemesh.names import InstanceName, ModelId, Role
from tests.agent.builders import inventory, model, node_settings


@pytest.mark.parametrize(
    ("numbers", "lost", "allow_cpu", "expected"),
    [
        ((), {}, True, ["cpu0"]),
        ((), {}, False, []),
        ((0,), {}, True, ["gpu0"]),
        ((1, 0, 10, 2), {}, True, ["gpu0", "gpu1", "gpu2", "gpu10"]),
        ((1,), {0: "GPU-0"}, True, ["gpu0", "gpu1"]),
        ((), {0: "GPU-0"}, True, ["gpu0", "cpu0"]),
    ],
)
def test_without_settings_there_is_one_instance_for_each_gpu_or_else_the_cpu(
    numbers: tuple[int, ...], lost: dict[int, str], allow_cpu: bool, expected: list[str]
) -> None:
    found = desired_instances(node_settings(allow_cpu=allow_cpu), inventory(*numbers, lost=lost))
    assert [instance.name for instance in found] == expected


def test_configured_instances_exist_in_order_of_gpus_before_cpus() -> None:
    settings = node_settings("coder", instances={"cpu0": None, "gpu1": "coder", "gpu0": None})
    found = desired_instances(settings, inventory(0, 1))
    assert [(each.name, each.model, each.devices, each.missing) for each in found] == [
        ("gpu0", None, ("GPU-0",), ""),
        ("gpu1", "coder", ("GPU-1",), ""),
        ("cpu0", None, (), ""),
    ]


def test_several_instances_share_a_gpu() -> None:
    settings = node_settings(instances={"gpu0-embed": None, "gpu0": None})
    found = desired_instances(settings, inventory(0))
    assert [(each.name, each.devices) for each in found] == [
        ("gpu0", ("GPU-0",)),
        ("gpu0-embed", ("GPU-0",)),
    ]


@pytest.mark.parametrize(
    ("lost", "problem", "expected"),
    [
        ({}, "", "gpu1 is not there"),
        ({1: "GPU-1"}, "", "gpu1 is not there any more (GPU-1)"),
        ({}, "the driver is not loaded", "gpu1 is not there; the driver is not loaded"),
    ],
)
def test_an_instance_whose_gpu_is_absent_says_why(
    lost: dict[int, str], problem: str, expected: str
) -> None:
    settings = node_settings(instances={"gpu1": None})
    (found,) = desired_instances(settings, inventory(0, lost=lost, problem=problem))
    assert found.missing == expected
    assert found.devices == ()


@pytest.mark.parametrize("name", ["gpu1", "cpu0"])
def test_what_another_agent_uses_is_missing_and_says_whose_it_is(name: str) -> None:
    found = replace(inventory(0), taken={name: "agent 'second' (pid 7)"})
    (instance,) = desired_instances(node_settings(instances={name: None}), found)
    assert instance.missing == f"{name} is used by agent 'second' (pid 7)"
    assert instance.is_foreign


def test_an_instance_may_be_told_its_gpus() -> None:
    settings = node_settings()
    spread = InstanceSettings(name=InstanceName("gpu0"), gpus=(0, 1))
    settings = replace(settings, instances=MappingProxyType({spread.name: spread}))
    (instance,) = desired_instances(settings, inventory(0, 1))
    assert (instance.devices, instance.is_fixed) == (("GPU-0", "GPU-1"), True)
    (instance,) = desired_instances(settings, inventory(0))
    assert instance.missing == "gpu1 is not there"


def test_a_card_that_the_driver_calls_lost_is_lost() -> None:
    found = replace(inventory(0, lost={1: "GPU-1"}), gone={1: "GPU is lost"})
    first, second = desired_instances(node_settings(), found)
    assert (first.is_lost, second.is_lost) == (False, True)
    assert second.missing == "gpu1 is lost: GPU is lost"


def test_a_cpu_instance_is_missing_where_the_policy_forbids_it() -> None:
    settings = node_settings(instances={"cpu0": None}, allow_cpu=False)
    (found,) = desired_instances(settings, inventory())
    assert found.missing == "policy.allow_cpu is false"


def test_a_pinned_instance_stays_pinned() -> None:
    settings = node_settings("coder", instances={"gpu0": "coder"}, pinned=("gpu0",))
    (found,) = desired_instances(settings, inventory(0))
    assert found.pinned


BASE = node_settings("a", "b")


def with_model(changed: ModelSettings) -> NodeSettings:
    models = {**BASE.models, changed.model_id: changed}
    return replace(BASE, models=MappingProxyType(models))


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (BASE, set()),
        (with_model(replace(model("a"), context_size=4096)), {"a"}),
        (with_model(replace(model("b"), args=("-ngl", "9"))), {"b"}),
        (with_model(replace(model("a"), path=Path("/elsewhere.gguf"))), {"a"}),
        (with_model(replace(model("a"), parallel=3)), {"a"}),
        (with_model(replace(model("a"), roles=(Role("critic"),), origin="x.yaml:3")), set()),
        (with_model(model("c")), set()),
        (replace(BASE, models=MappingProxyType({ModelId("b"): model("b")})), {"a"}),
        (replace(BASE, llama_server=LlamaServer(args=("--mlock",))), {"a", "b"}),
    ],
)
def test_a_model_is_changed_when_it_is_gone_or_would_run_differently(
    new: NodeSettings, expected: set[str]
) -> None:
    assert changed_models(BASE, new) == expected
