"""Progress of a load from what the kernel counts of a process."""

import os
from pathlib import Path

import pytest

from rolemesh.llama.load_progress import LoadProgress


def write_process(proc: Path, *, resident_kib: int, read_bytes: int) -> None:
    folder = proc / "7"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status").write_text(f"Name:\tllama\nVmHWM:\t  {resident_kib} kB\n")
    (folder / "io").write_text(f"rchar: {read_bytes}\nwchar: 3\n")


def test_mapped_and_read_weights_both_count(tmp_path: Path) -> None:
    progress = LoadProgress(7, 10_240, proc=tmp_path)
    write_process(tmp_path, resident_kib=5, read_bytes=100)
    progress.sample()
    assert progress.fraction == pytest.approx(0.5)
    write_process(tmp_path, resident_kib=1, read_bytes=7680)
    progress.sample()
    assert progress.fraction == pytest.approx(0.75)


def test_progress_never_goes_back_and_never_claims_the_end(tmp_path: Path) -> None:
    progress = LoadProgress(7, 1024, proc=tmp_path)
    write_process(tmp_path, resident_kib=500, read_bytes=0)
    progress.sample()
    write_process(tmp_path, resident_kib=0, read_bytes=0)
    progress.sample()
    assert progress.fraction == pytest.approx(0.99)


def test_a_process_that_is_gone_makes_no_progress(tmp_path: Path) -> None:
    progress = LoadProgress(7, 1024, proc=tmp_path)
    progress.sample()
    assert (progress.loaded_bytes, progress.fraction) == (0, 0.0)


def test_a_model_of_unknown_size_has_no_fraction() -> None:
    progress = LoadProgress(os.getpid(), 0)
    progress.sample()
    assert progress.loaded_bytes > 0
    assert progress.fraction == pytest.approx(0.0)
