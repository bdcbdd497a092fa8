"""Slot leases."""

import pytest

from rolemesh.agent.slots import Slots, Use
from rolemesh.names import InstanceName, ModelId

GPU0, MODEL = InstanceName("gpu0"), ModelId("m")


def slots_of(total: int) -> Slots:
    slots = Slots()
    slots.total = total
    return slots


@pytest.mark.parametrize(
    ("total", "held", "cost", "fits"),
    [
        (2, 0, 1, True),
        (2, 1, 1, True),
        (2, 2, 1, False),
        (2, 1, 2, False),
        (2, 2, 0, True),
        (2, 0, 9, True),  # dearer than all slots: it takes them all
        (2, 1, 9, False),
    ],
)
def test_a_request_fits_when_its_slots_are_free(
    total: int, held: int, cost: int, fits: bool
) -> None:
    slots = slots_of(total)
    slots.lease(GPU0, MODEL, held, lambda: None)
    assert slots.fits(cost) is fits


def test_what_another_process_uses_is_not_given_out_again() -> None:
    slots = slots_of(2)
    slots.others = Use(1, 2)
    assert (slots.held, slots.requests) == (1, 2)
    assert slots.fits(1)
    assert not slots.fits(2)
    with slots.lease(GPU0, MODEL, 1, lambda: None):
        assert (slots.held, slots.requests) == (2, 3)
    slots.others = Use()
    assert (slots.held, slots.requests) == (0, 0)


def test_a_lease_holds_its_slots_until_it_is_left() -> None:
    slots, ended = slots_of(4), []
    with slots.lease(GPU0, MODEL, 3, lambda: ended.append(slots.held)) as lease:
        assert (lease.instance, lease.model_id, lease.slots) == (GPU0, MODEL, 3)
        assert (slots.held, slots.requests) == (3, 1)
    assert (slots.held, slots.requests, ended) == (0, 0, [0])


def test_a_lease_given_back_twice_counts_once() -> None:
    slots, ended = slots_of(2), []
    lease = slots.lease(GPU0, MODEL, 1, lambda: ended.append(True))
    slots.lease(GPU0, MODEL, 1, lambda: None)
    lease.release()
    lease.release()
    assert (slots.held, ended) == (1, [True])


def test_a_request_that_costs_nothing_still_counts_as_a_request() -> None:
    slots = slots_of(1)
    with slots.lease(GPU0, MODEL, 0, lambda: None):
        assert (slots.held, slots.requests) == (0, 1)
