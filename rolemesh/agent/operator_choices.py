"""What operators have said of instances by hand: `choices.json` in the agent's state directory."""

from pathlib import Path
from typing import Any

from rolemesh.names import InstanceName
from rolemesh.runtime.state import StateFile


class OperatorChoices:
    """Who is pinned or not whatever the settings say, and who is drained; kept over restarts."""

    def __init__(self, state_directory: Path | None = None) -> None:
        """Without a directory they last as long as the process."""
        self._file = (
            None if state_directory is None else StateFile(state_directory / "choices.json")
        )
        self.read()

    def read(self) -> None:
        """Take what was saved last, maybe by another process of this agent."""
        tree = self._file.load() if self._file else None
        fields: dict[str, Any] = tree if isinstance(tree, dict) else {}
        self._pins = {
            InstanceName(name): pinned
            for name, pinned in _mapping(fields.get("pinned")).items()
            if isinstance(pinned, bool)
        }
        self._drained = {InstanceName(name) for name in _mapping(fields.get("drained"))}

    @property
    def problem(self) -> str:
        """Say since when they are not saved, and why; "" when they are."""
        return self._file.problem if self._file else ""

    def pinned(self, instance: InstanceName) -> bool | None:
        """Return what was said of an instance, None if nothing was."""
        return self._pins.get(instance)

    def is_drained(self, instance: InstanceName) -> bool:
        """Tell whether an instance is to get nothing."""
        return instance in self._drained

    def pin(self, instance: InstanceName, *, pinned: bool) -> None:
        """Remember that an instance is pinned, or is not."""
        self._pins[instance] = pinned
        self._save()

    def forget_pin(self, instance: InstanceName) -> None:
        """Leave it to the settings whether an instance is pinned."""
        if self._pins.pop(instance, None) is not None:
            self._save()

    def drain(self, instance: InstanceName, *, drained: bool) -> None:
        """Remember that an instance is to get nothing, or is to serve again."""
        if drained:
            self._drained.add(instance)
        else:
            self._drained.discard(instance)
        self._save()

    def _save(self) -> None:
        if self._file is not None:
            drained = dict.fromkeys(sorted(self._drained), True)
            self._file.save({"pinned": dict(sorted(self._pins.items())), "drained": drained})


def _mapping(tree: object) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else {}
