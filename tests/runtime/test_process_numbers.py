import os

from rolemesh.runtime.process_numbers import process_families


def numbers() -> dict[str, float]:
    return {family.name: sample.value for family in process_families() for sample in family.samples}


def test_the_numbers_of_this_process() -> None:
    found = numbers()
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert found["process_cpu_seconds_total"] > 0
    assert 2 < found["process_open_fds"] <= found["process_max_fds"]


def test_an_open_file_counts() -> None:
    before = numbers()["process_open_fds"]
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        assert numbers()["process_open_fds"] == before + 1
    finally:
        os.close(fd)
