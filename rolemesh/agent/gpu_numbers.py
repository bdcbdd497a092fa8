"""The remembered numbers of GPUs: `gpus.json` in the agent's state directory."""

import re
from pathlib import Path
from typing import Final

from rolemesh.agent.inventory import GpuNumbers
from rolemesh.runtime.state import StateFile

_UUID: Final = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]*")


class GpuNumbersFile:
    """UUID -> number, kept over restarts; entries that make no sense are dropped."""

    def __init__(self, state_directory: Path) -> None:
        self._file = StateFile(state_directory / "gpus.json")
        self._saved: GpuNumbers = {}

    @property
    def problem(self) -> str:
        """Say since when the numbers are not saved, and why; "" when they are."""
        return self._file.problem

    def load(self) -> GpuNumbers:
        """Return what is remembered, nothing when there is no file."""
        tree = self._file.load()
        numbers: dict[str, int] = {}
        for uuid, number in tree.items() if isinstance(tree, dict) else ():
            is_number = type(number) is int and number >= 0
            if is_number and _UUID.fullmatch(uuid) and number not in numbers.values():
                numbers[uuid] = number
        self._saved = numbers
        return numbers

    def save(self, numbers: GpuNumbers) -> None:
        """Remember `numbers`; a failure stands in `problem` and is tried again with each call."""
        if numbers != self._saved or self._file.problem:
            self._file.save(dict(numbers))
            self._saved = dict(numbers)
