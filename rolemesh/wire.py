"""What a node tells a gateway: POST /v1/nodes/register and POST /v1/nodes/{id}/heartbeat.

Only `node_id`, `base_url`, `models[].model_id` and `models[].roles` are required of a register
body, so that foreign tooling can call it with curl; fields unknown here are ignored, so that an
older gateway understands a newer node. docs/protocol.md is the prose of this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from rolemesh import jsonread
from rolemesh.names import InstanceName, ModelId, NodeId, Role


class ModelState(Enum):
    """How far a model is from answering on its node."""

    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """The node did not say: it is taken at its word that it serves the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceReport:
    """One ready instance of a model: what takes requests, and how many at once."""

    name: InstanceName
    slots: int
    slots_free: int | None = None

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "InstanceReport":
        """Read one element of a model's `instances`; raises jsonread.JsonError naming the field."""
        return cls(
            name=InstanceName(jsonread.get_str(tree, "name")),
            slots=jsonread.get_optional_int(tree, "slots") or 1,
            slots_free=jsonread.get_optional_int(tree, "slots_free"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the element of `instances`; what is not known is left out."""
        tree = {"name": self.name, "slots": self.slots, "slots_free": self.slots_free}
        return {key: value for key, value in tree.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model of a node.

    `usable`: ready, loading, or loadable without an operator. `slots` and `slots_free` count the
    slots of its loaded instances, None when the node does not count. `progress` is 0..1 of a load
    under way; `load_estimate_s` is how long one takes. `reason` says why the model is not usable.
    `has_room`: a model that is not loaded could be at once. `instances` are the ready ones; a node that does not tell them apart leaves them out.
    """

    model_id: ModelId
    roles: tuple[Role, ...]
    state: ModelState = ModelState.UNKNOWN
    usable: bool = True
    reason: str = ""
    context_size: int | None = None
    slots: int | None = None
    slots_free: int | None = None
    progress: float | None = None
    load_estimate_s: float | None = None
    has_room: bool = True
    instances: tuple[InstanceReport, ...] = ()

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "ModelReport":
        """Read one element of `models`; raises jsonread.JsonError naming the field."""
        state = jsonread.get_str(tree, "state", ModelState.UNKNOWN.value)
        known = state in {member.value for member in ModelState}
        return cls(
            model_id=ModelId(jsonread.get_str(tree, "model_id")),
            roles=tuple(map(Role, jsonread.get_strings(tree, "roles"))),
            state=ModelState(state) if known else ModelState.UNKNOWN,
            usable=jsonread.get_bool(tree, "usable", default=True),
            reason=jsonread.get_str(tree, "reason", ""),
            context_size=jsonread.get_optional_int(tree, "context_size"),
            slots=jsonread.get_optional_int(tree, "slots"),
            slots_free=jsonread.get_optional_int(tree, "slots_free"),
            progress=jsonread.get_optional_float(tree, "progress"),
            load_estimate_s=jsonread.get_optional_float(tree, "load_estimate_s"),
            has_room=jsonread.get_bool(tree, "has_room", default=True),
            instances=tuple(
                map(InstanceReport.from_json, jsonread.get_optional_objects(tree, "instances"))
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the element of `models`; what is not known is left out."""
        tree: dict[str, Any] = {
            "model_id": self.model_id,
            "roles": list(self.roles),
            "state": self.state.value,
            "usable": self.usable,
            "reason": self.reason,
            "context_size": self.context_size,
            "slots": self.slots,
            "slots_free": self.slots_free,
            "progress": self.progress,
            "load_estimate_s": self.load_estimate_s,
            "has_room": None if self.has_room else False,
            "instances": [instance.to_json() for instance in self.instances] or None,
        }
        return {key: value for key, value in tree.items() if value is not None}

    def without_free_slots(self) -> "ModelReport":
        """Return the report without what comes and goes with every request."""
        instances = tuple(replace(instance, slots_free=None) for instance in self.instances)
        return replace(self, slots_free=None, instances=instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """A node as it describes itself.

    `api_key` is what a gateway must present to it. `boot_id` changes with each start of the agent;
    a heartbeat with another one than the registration's makes the gateway ask for a new
    registration. `inventory` (instances, gpus, host) is passed on to people, never decided upon.
    """

    node_id: NodeId
    base_url: str
    boot_id: str = ""
    api_key: str | None = field(default=None, repr=False)
    version: str = ""
    models: tuple[ModelReport, ...] = ()
    inventory: Mapping[str, Any]

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "NodeReport":
        """Read a register body; raises jsonread.JsonError naming the field."""
        return cls(
            node_id=NodeId(jsonread.get_str(tree, "node_id")),
            base_url=jsonread.get_str(tree, "base_url"),
            boot_id=jsonread.get_str(tree, "boot_id", ""),
            api_key=jsonread.get_optional_str(tree, "api_key"),
            version=jsonread.get_str(tree, "version", ""),
            models=models_from_json(tree),
            inventory={key: tree[key] for key in ("instances", "gpus", "host") if key in tree},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the register body."""
        tree: dict[str, Any] = {
            "node_id": self.node_id,
            "base_url": self.base_url,
            "boot_id": self.boot_id,
            "version": self.version,
            "models": [model.to_json() for model in self.models],
            **self.inventory,
        }
        return tree if self.api_key is None else {**tree, "api_key": self.api_key}

    def heartbeat_json(self) -> dict[str, Any]:
        """Return the heartbeat body: what changes while the node runs."""
        return {
            "boot_id": self.boot_id,
            "models": [model.to_json() for model in self.models],
            **self.inventory,
        }


def models_from_json(tree: Mapping[str, Any]) -> tuple[ModelReport, ...]:
    """Read `models` of a register or heartbeat body."""
    return tuple(map(ModelReport.from_json, jsonread.get_objects(tree, "models")))
