"""GPUs keep their names, and each has one owner."""

from dataclasses import replace

import pytest

from rolemesh.agent.inventory import (
    GpuProcess,
    GpuReading,
    GpuSample,
    Inventory,
    build_inventory,
    claimable,
    gpu_of,
    may_have_devices,
    name_gpus,
    owned,
    renumbered,
)


def sample(*uuids: str, problems: tuple[str, ...] = ()) -> GpuSample:
    readings = tuple(GpuReading(uuid=uuid, name=f"card {uuid}") for uuid in uuids)
    return GpuSample(readings=readings, driver_version="575.57", problems=problems)


def partitioned(card: str, *slices: str, others: tuple[str, ...] = ()) -> GpuSample:
    parts = tuple(GpuReading(uuid=uuid, name="slice", parent=card) for uuid in slices)
    whole = sample(*others)
    return replace(whole, readings=(*parts, *whole.readings), partitioned=frozenset({card}))


def inventory_of(seen: GpuSample, remembered: dict[str, str] | None = None) -> Inventory:
    return build_inventory(seen, name_gpus(seen, remembered or {}))


@pytest.mark.parametrize(
    ("uuids", "remembered", "expected", "lost"),
    [
        ((), {}, {}, {}),
        (("a", "b"), {}, {"a": "gpu0", "b": "gpu1"}, {}),
        (("b", "a"), {"a": "gpu0", "b": "gpu1"}, {"a": "gpu0", "b": "gpu1"}, {}),
        (("b",), {"a": "gpu0", "b": "gpu1"}, {"a": "gpu0", "b": "gpu1"}, {0: "a"}),
        (
            ("b", "c"),
            {"a": "gpu0", "b": "gpu1"},
            {"a": "gpu0", "b": "gpu1", "c": "gpu2"},
            {0: "a"},
        ),
        (("c",), {"a": "gpu1"}, {"a": "gpu1", "c": "gpu0"}, {1: "a"}),
        (
            ("c", "d"),
            {"a": "gpu1", "b": "gpu7"},
            {"a": "gpu1", "b": "gpu7", "c": "gpu0", "d": "gpu2"},
            {1: "a", 7: "b"},
        ),
    ],
)
def test_a_card_keeps_its_number_and_a_new_one_takes_the_next_free(
    uuids: tuple[str, ...],
    remembered: dict[str, str],
    expected: dict[str, str],
    lost: dict[int, str],
) -> None:
    names = name_gpus(sample(*uuids), remembered)
    assert names == expected
    inventory = build_inventory(sample(*uuids), names)
    assert {gpu.reading.uuid: gpu.name for gpu in inventory.gpus} == {
        uuid: expected[uuid] for uuid in uuids
    }
    assert inventory.lost == lost


def test_gpus_stand_in_order_of_their_numbers() -> None:
    inventory = inventory_of(sample("a", "b"), {"a": "gpu1", "b": "gpu0"})
    assert [gpu.number for gpu in inventory.gpus] == [0, 1]


def test_a_gpu_is_found_by_its_number_and_by_its_instances() -> None:
    inventory = inventory_of(sample("a", "b"))
    second = inventory.gpu(1)
    assert second is not None
    assert second.reading.uuid == "b"
    assert inventory.find("gpu1-embed") is second
    assert inventory.gpu(2) is None
    assert inventory.why_missing("gpu2-embed") == "gpu2 is not there"


@pytest.mark.parametrize(
    ("instance", "gpu"),
    [
        ("gpu0", "gpu0"),
        ("gpu12-coder", "gpu12"),
        ("gpu0-2", "gpu0"),
        ("gpu0-mig1", "gpu0-mig1"),
        ("gpu0-mig", "gpu0"),
        ("gpu0-mig1x", "gpu0"),
    ],
)
def test_an_instances_name_says_which_gpu_it_is_on(instance: str, gpu: str) -> None:
    assert gpu_of(instance) == gpu


def test_driver_and_problems_are_passed_on() -> None:
    inventory = inventory_of(sample(problems=("a card is lost",)))
    assert inventory.driver_version == "575.57"
    assert inventory.problems == ("a card is lost",)
    assert inventory.why_missing("gpu0") == "gpu0 is not there; a card is lost"


@pytest.mark.parametrize("answered", [True, False])
def test_whether_the_figures_are_of_now_is_passed_on(answered: bool) -> None:
    inventory = inventory_of(replace(sample("a"), answered=answered))
    assert inventory.answered is answered
    assert owned(inventory, None, {}).answered is answered


def test_the_report_of_a_gpu_names_its_instance_and_uuid() -> None:
    reading = GpuReading(uuid="GPU-1", name="card", processes=(GpuProcess(pid=7, memory_mib=512),))
    seen = GpuSample(readings=(reading,))
    tree = inventory_of(seen, {"GPU-1": "gpu3"}).gpus[0].to_json()
    assert (tree["gpu"], tree["uuid"], tree["memory_total_mib"]) == ("gpu3", "GPU-1", None)
    assert tree["processes"] == [{"pid": 7, "memory_mib": 512}]
    assert (tree["kind"], tree["parent"], tree["health"]) == ("nvml", None, [])


def test_what_the_driver_calls_lost_is_lost_with_its_reason() -> None:
    remembered = {"a": "gpu0", "b": "gpu1"}
    seen = replace(sample("b"), gone={"a": "fallen off the bus"})
    inventory = inventory_of(seen, remembered)
    assert (inventory.lost, inventory.gone) == ({0: "a"}, {0: "fallen off the bus"})
    assert inventory.why_missing("gpu0-coder") == "gpu0 is lost: fallen off the bus"
    assert inventory.names == ("gpu1", "gpu0")


def test_a_card_that_is_not_seen_is_not_called_lost() -> None:
    inventory = inventory_of(sample("b"), {"a": "gpu0", "b": "gpu1"})
    assert inventory.gone == {}
    assert inventory.why_missing("gpu0") == "gpu0 is not there any more (a)"


def test_slices_stand_for_a_partitioned_card() -> None:
    inventory = inventory_of(partitioned("a", "m1", "m2", others=("b",)))
    assert [gpu.name for gpu in inventory.gpus] == ["gpu0-mig0", "gpu0-mig1", "gpu1"]
    assert inventory.gpu(0) is None
    assert inventory.partitioned == {0: "a"}
    assert inventory.lost == {}
    found = inventory.find("gpu0-mig1")
    assert found is not None
    assert (found.reading.uuid, found.reading.parent) == ("m2", "a")
    assert inventory.why_missing("gpu0-coder") == (
        "gpu0 is not there: gpu0 is partitioned (MIG) into gpu0-mig0, gpu0-mig1"
    )


def test_slices_keep_their_numbers() -> None:
    names = name_gpus(partitioned("a", "m1", "m2"), {})
    seen = partitioned("a", "m3", "m2")
    names = name_gpus(seen, names)
    assert names == {"a": "gpu0", "m1": "gpu0-mig0", "m2": "gpu0-mig1", "m3": "gpu0-mig2"}
    inventory = build_inventory(seen, names)
    assert inventory.lost_slices == {"gpu0-mig0": "m1"}
    assert inventory.why_missing("gpu0-mig0").startswith("gpu0-mig0 is not there: gpu0 is part")


def test_slices_of_a_card_that_cannot_be_read_may_come_back() -> None:
    names = name_gpus(partitioned("a", "m1"), {})
    inventory = build_inventory(GpuSample(), names)
    assert inventory.names == ("gpu0", "gpu0-mig0")
    assert inventory.why_missing("gpu0-mig0") == "gpu0-mig0 is not there any more (m1)"


def test_slices_of_a_card_that_is_whole_again_are_forgotten_about() -> None:
    names = name_gpus(partitioned("a", "m1"), {})
    inventory = build_inventory(sample("a"), names)
    assert inventory.names == ("gpu0",)
    assert inventory.why_missing("gpu0-mig0") == "gpu0-mig0 is not there"


def test_renumbering_goes_by_pci_address_and_forgets_the_lost() -> None:
    addresses = {"late": "00000000:81:00.0", "early": "00000000:01:00.0"}
    readings = [GpuReading(uuid=uuid, name="card", pci=pci) for uuid, pci in addresses.items()]
    assert renumbered(GpuSample(readings=tuple(readings))) == {"early": "gpu0", "late": "gpu1"}


def test_devices_of_llama_server_count_where_nvml_shows_nothing() -> None:
    assert may_have_devices(GpuSample(problems=("no driver",)), {"Vulkan0": "gpu0"})


@pytest.mark.parametrize(
    "seen",
    [
        sample("GPU-a"),
        GpuSample(answered=False),
        GpuSample(gone={"GPU-a": "lost"}),
        GpuSample(partitioned=frozenset({"GPU-a"})),
    ],
)
def test_devices_of_llama_server_do_not_count_beside_nvmls(seen: GpuSample) -> None:
    assert not may_have_devices(seen, {})


def test_a_device_is_not_counted_while_it_may_be_a_gpu_that_nvml_misses() -> None:
    assert not may_have_devices(GpuSample(), {"GPU-a": "gpu0"})


HOST = inventory_of(sample("a", "b", "c"), {"lost": "gpu9"})


def test_an_agent_claims_all_that_is_or_was_there_unless_it_is_told_which() -> None:
    assert set(claimable(HOST, None)) == {"a", "b", "c", "lost"}
    assert claimable(HOST, (1, "c", 9)) == ("b", "c", "lost")
    assert claimable(HOST, ()) == ()


def test_a_card_stands_for_its_slices() -> None:
    inventory = inventory_of(partitioned("a", "m1", "m2", others=("b",)))
    assert claimable(inventory, (0,)) == ("m1", "m2")
    assert claimable(inventory, ("a",)) == ("m1", "m2")
    assert claimable(inventory, ("m2", 1)) == ("m2", "b")


def test_what_another_agent_has_is_missing_with_its_owner() -> None:
    inventory = owned(HOST, None, {"b": "the agent of node other (pid 7)"})
    assert [gpu.name for gpu in inventory.gpus] == ["gpu0", "gpu2"]
    assert inventory.why_missing("gpu1-x") == "gpu1 is used by the agent of node other (pid 7)"
    assert inventory.names == ("gpu0", "gpu2", "gpu9", "gpu1")


def test_what_the_settings_do_not_give_is_none_of_the_agents_business() -> None:
    inventory = owned(HOST, (0,), {})
    assert inventory.names == ("gpu0",)
    assert inventory.lost == {}
    assert inventory.problems == ()
    assert inventory.why_missing("gpu1") == "gpu1 is not among the GPUs of this agent (gpus:)"


def test_a_setting_that_names_no_gpu_is_a_problem() -> None:
    inventory = owned(HOST, (0, 5, "GPU-x"), {})
    assert inventory.problems == (
        "gpus: gpu5 has never been seen on this host",
        "gpus: GPU-x has never been seen on this host",
    )
    assert inventory.why_missing("gpu5").startswith("gpu5 is not there; gpus: gpu5 has never")


def test_a_card_without_slices_is_no_unknown_one() -> None:
    assert owned(inventory_of(partitioned("a")), (0,), {}).problems == ()
