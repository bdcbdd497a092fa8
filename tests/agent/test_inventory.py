"""GPUs keep their numbers."""

import pytest

from rolemesh.agent.inventory import GpuReading, GpuSample, build_inventory


def sample(*uuids: str, problems: tuple[str, ...] = ()) -> GpuSample:
    readings = tuple(GpuReading(uuid=uuid, name=f"card {uuid}") for uuid in uuids)
    return GpuSample(readings=readings, driver_version="575.57", problems=problems)


@pytest.mark.parametrize(
    ("uuids", "remembered", "expected", "lost"),
    [
        ((), {}, {}, {}),
        (("a", "b"), {}, {"a": 0, "b": 1}, {}),
        (("b", "a"), {"a": 0, "b": 1}, {"a": 0, "b": 1}, {}),
        (("b",), {"a": 0, "b": 1}, {"a": 0, "b": 1}, {0: "a"}),
        (("b", "c"), {"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2}, {0: "a"}),
        (("c",), {"a": 1}, {"a": 1, "c": 0}, {1: "a"}),
        (("c", "d"), {"a": 1, "b": 7}, {"a": 1, "b": 7, "c": 0, "d": 2}, {1: "a", 7: "b"}),
    ],
)
def test_a_card_keeps_its_number_and_a_new_one_takes_the_next_free(
    uuids: tuple[str, ...],
    remembered: dict[str, int],
    expected: dict[str, int],
    lost: dict[int, str],
) -> None:
    inventory, numbers = build_inventory(sample(*uuids), remembered)
    assert numbers == expected
    assert {gpu.reading.uuid: gpu.number for gpu in inventory.gpus} == {
        uuid: expected[uuid] for uuid in uuids
    }
    assert inventory.lost == lost


def test_gpus_stand_in_order_of_their_numbers() -> None:
    inventory, _ = build_inventory(sample("a", "b"), {"a": 1, "b": 0})
    assert [gpu.number for gpu in inventory.gpus] == [0, 1]


def test_a_gpu_is_found_by_its_number() -> None:
    inventory, _ = build_inventory(sample("a", "b"), {})
    second = inventory.gpu(1)
    assert second is not None
    assert second.reading.uuid == "b"
    assert inventory.gpu(2) is None


def test_driver_and_problems_are_passed_on() -> None:
    inventory, _ = build_inventory(sample(problems=("a card is lost",)), {})
    assert inventory.driver_version == "575.57"
    assert inventory.problems == ("a card is lost",)


def test_the_report_of_a_gpu_names_its_instance_and_uuid() -> None:
    inventory, _ = build_inventory(sample("GPU-1"), {"GPU-1": 3})
    tree = inventory.gpus[0].to_json()
    assert (tree["gpu"], tree["uuid"], tree["memory_total_mib"]) == ("gpu3", "GPU-1", None)
