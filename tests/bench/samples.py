"""Everything measured in one run, as it is saved."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Sample = Mapping[str, Any]


@dataclass(slots=True)
class Samples:
    """`measured` has one sample a round by target and scenario; `about` describes the run."""

    about: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, target: str, scenario: str, sample: Sample) -> None:
        """Keep a sample; one with an "error" is no figure and fails the run."""
        error = sample.get("error")
        if error:
            self.errors.append(f"{target}, {scenario}: {error}")
        self.measured.setdefault(target, {}).setdefault(scenario, []).append(sample)

    def values(self, target: str, scenario: str, key: str) -> list[float]:
        """Return one figure of each round, in order; [] when one is missing or failed."""
        samples = self.measured.get(target, {}).get(scenario, [])
        if any(key not in sample or sample.get("error") for sample in samples):
            return []
        return [float(sample[key]) for sample in samples]

    def save(self, path: Path) -> None:
        """Write everything to a file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Samples":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))
