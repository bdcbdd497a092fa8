"""The printed table."""

from pathlib import Path

from tests.bench.samples import Samples
from tests.bench.table import render

ABOUT = {
    "machine": "a machine",
    "rounds": 2,
    "seconds": 61.5,
    "journal": "Records were counted.",
    "columns": ["newest"],
    "debian12": "No Debian 12 here.",
}


def measured() -> Samples:
    samples = Samples(about=dict(ABOUT))
    for ours, theirs in ((30, 10), (52, 20)):
        samples.add("gateway@newest", "request", {"cpu_us_per_request": ours})
        samples.add("nginx", "request", {"cpu_us_per_request": theirs})
    return samples


def test_a_row_has_values_ratio_spread_and_verdict() -> None:
    row = next(line for line in render(measured()).splitlines() if line.startswith("| 1a"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["≤ 2.5 / 1.9 / 1.4", "41 to 15 us", "2.80 (2.60..3.00)", "**MISSED**"]


def test_rows_without_a_measurement_are_left_out() -> None:
    rows = [line for line in render(measured()).splitlines() if line.startswith("|")]
    assert len(rows) == 3


def test_a_second_column_stands_beside_the_first() -> None:
    samples = measured()
    samples.about["columns"] = ["newest", "debian12"]
    samples.add("gateway@debian12", "request", {"cpu_us_per_request": 15})
    row = next(line for line in render(samples).splitlines() if line.startswith("| 1a"))
    assert row.endswith("| 15 to 15 us | 1.50 | target |")


def test_what_else_the_machine_did_is_said_below_the_table() -> None:
    samples = measured()
    for others in (0.01, 0.02, 0.5):
        samples.add("nginx", "flood", {"others": others})
    assert "used 0.02 cores meanwhile, at most 0.50." in render(samples)


def test_what_failed_is_said_below_the_table() -> None:
    samples = measured()
    samples.add("gateway@newest", "flood", {"error": "1 of 5 failed"})
    assert render(samples).endswith("1 measurements FAILED:\ngateway@newest, flood: 1 of 5 failed")


def test_a_saved_run_gives_the_same_table(tmp_path: Path) -> None:
    samples = measured()
    samples.save(tmp_path / "run.json")
    assert render(Samples.load(tmp_path / "run.json")) == render(samples)
