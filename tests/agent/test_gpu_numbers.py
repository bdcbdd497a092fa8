"""The names of GPUs over restarts, and among the agents of a host."""

import fcntl
import json
import threading
from pathlib import Path
from typing import Any

from rolemesh.agent.gpu_numbers import GpuNumbersFile, numbers_directory
from rolemesh.agent.inventory import GpuReading, GpuSample


def sample(*uuids: str, pci: dict[str, str] | None = None) -> GpuSample:
    readings = [GpuReading(uuid=uuid, name="card", pci=(pci or {}).get(uuid, "")) for uuid in uuids]
    return GpuSample(readings=tuple(readings))


def saved(directory: Path) -> Any:
    return json.loads((directory / "gpus.json").read_text())


def test_names_are_found_again(tmp_path: Path) -> None:
    GpuNumbersFile(tmp_path).name(sample("GPU-a", "GPU-b"))
    assert GpuNumbersFile(tmp_path).name(sample("GPU-b")) == {"GPU-a": "gpu0", "GPU-b": "gpu1"}


def test_without_gpus_no_file_is_made(tmp_path: Path) -> None:
    assert GpuNumbersFile(tmp_path).name(sample()) == {}
    assert list(tmp_path.iterdir()) == []


def test_entries_that_make_no_sense_are_dropped(tmp_path: Path) -> None:
    sound = {
        "GPU-5d1c2a30-9b7e-4f10-8c55-0e2f6a7b8c9d": "gpu0",
        "MIG-GPU-5d1c2a30-9b7e-4f10-8c55-0e2f6a7b8c9d/7/0": "gpu0-mig2",
        "RPC0[192.0.2.7:50052]": "gpu4",
    }
    senseless = {"GPU-b": 1, "GPU-c": "gpu-1", "GPU-d": "gpu0", "GPU-e": "cpu0", "": "gpu7"}
    (tmp_path / "gpus.json").write_text(json.dumps(sound | senseless))
    assert GpuNumbersFile(tmp_path).name(sample()) == sound


def test_a_corrupt_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "gpus.json").write_text("no json")
    assert GpuNumbersFile(tmp_path).name(sample("GPU-a")) == {"GPU-a": "gpu0"}
    assert (tmp_path / "gpus.json.corrupt").read_text() == "no json"
    assert saved(tmp_path) == {"GPU-a": "gpu0"}


def test_names_that_cannot_be_saved_are_a_problem_until_they_are(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    file = GpuNumbersFile(directory)
    assert file.name(sample("GPU-a")) == {"GPU-a": "gpu0"}
    assert "gpus.json not saved" in file.problem
    directory.mkdir()
    file.name(sample("GPU-a"))
    assert file.problem == ""
    assert saved(directory) == {"GPU-a": "gpu0"}


def test_agents_see_what_the_others_have_named(tmp_path: Path) -> None:
    first, second = GpuNumbersFile(tmp_path), GpuNumbersFile(tmp_path)
    assert second.name(sample("GPU-a")) == {"GPU-a": "gpu0"}
    assert first.name(sample("GPU-b")) == {"GPU-a": "gpu0", "GPU-b": "gpu1"}
    assert second.name(sample("GPU-a")) == {"GPU-a": "gpu0", "GPU-b": "gpu1"}


def test_agents_that_see_a_card_at_once_give_it_one_name(tmp_path: Path) -> None:
    files = [GpuNumbersFile(tmp_path) for _ in range(8)]
    threads = [
        threading.Thread(target=file.name, args=(sample(f"GPU-{number}", "GPU-all"),))
        for number, file in enumerate(files)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    named = files[0].name(sample())
    assert all(file.name(sample()) == named for file in files)
    assert sorted(named.values()) == [f"gpu{number}" for number in range(9)]
    assert named == saved(tmp_path)


def test_a_lock_that_nobody_lets_go_of_does_not_stop_the_agent(tmp_path: Path) -> None:
    with (tmp_path / "gpus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = GpuNumbersFile(tmp_path, lock_wait_s=0.05)
        assert file.name(sample("GPU-a")) == {"GPU-a": "gpu0"}


def test_a_file_that_is_deleted_under_a_running_agent_changes_no_name(tmp_path: Path) -> None:
    file = GpuNumbersFile(tmp_path)
    file.name(sample("GPU-a", "GPU-b"))
    (tmp_path / "gpus.json").unlink()
    assert file.name(sample("GPU-b")) == {"GPU-a": "gpu0", "GPU-b": "gpu1"}
    assert saved(tmp_path) == {"GPU-a": "gpu0", "GPU-b": "gpu1"}


def test_renumbering_forgets_what_is_lost_and_goes_by_pci_address(tmp_path: Path) -> None:
    first, second = GpuNumbersFile(tmp_path), GpuNumbersFile(tmp_path)
    first.name(sample("GPU-lost", "GPU-b"))
    second.name(sample("GPU-b", "GPU-a"))
    pci = {"GPU-b": "00000000:41:00.0", "GPU-a": "00000000:01:00.0"}
    assert first.renumber(sample("GPU-b", "GPU-a", pci=pci)) == {"GPU-a": "gpu0", "GPU-b": "gpu1"}
    assert second.name(sample("GPU-a")) == {"GPU-a": "gpu0", "GPU-b": "gpu1"}


def test_systemd_names_the_directory_that_agents_share(tmp_path: Path) -> None:
    own, shared = tmp_path / "agent", tmp_path / "gpus"
    systemd = {"STATE_DIRECTORY": f"{own}:{shared}"}
    assert numbers_directory(own, systemd) == shared
    assert numbers_directory(tmp_path / "else", systemd) == tmp_path / "else"
    assert numbers_directory(own, {"STATE_DIRECTORY": str(own)}) == own
    assert numbers_directory(own, {}) == own
