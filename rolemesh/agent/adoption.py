"""What a unit runs that somebody else has started: an earlier agent, an admin, an older package.

The files that tell may be of an older version, of a newer one, or missing. What is not known is
left alone and said.
"""

import logging
import re
from typing import Final

from rolemesh.agent.instance_files import InstanceFiles
from rolemesh.agent.managed_instance import ManagedInstance
from rolemesh.agent.unit_control import ActiveState, UnitStatus
from rolemesh.llama.server_facts import NoFacts, ServerFacts
from rolemesh.names import ModelId
from rolemesh.runtime.log import fields

logger = logging.getLogger(__name__)

# STATUS of a rolemesh-llama that is ready, in every version.
_SERVING: Final = re.compile(r"serving (.+) \(from .+\)")


def find_model(
    managed: ManagedInstance, status: UnitStatus, files: InstanceFiles
) -> ModelId | None:
    """Return the model of a unit, None where nothing tells; what it runs over is kept in `managed`.

    The file says what it was told, the settings what it runs else. Without either, what it says of
    itself.
    """
    told = files.read_parameters(status.instance)
    managed.devices = (told.devices if told else ()) or managed.desired.devices
    if told is not None:
        return told.model_id
    if status.active is not ActiveState.ACTIVE:
        return managed.desired.model
    return _said_by_itself(files.read_facts(status.instance), status) or managed.desired.model


def _said_by_itself(facts: ServerFacts | NoFacts, status: UnitStatus) -> ModelId | None:
    if isinstance(facts, ServerFacts):
        return facts.model_id
    found = _SERVING.fullmatch(status.status_text)
    return ModelId(found[1]) if found else None


def learn_facts(managed: ManagedInstance, files: InstanceFiles) -> None:
    """Read what an instance that is ready says of its llama-server."""
    name, found = managed.desired.name, files.read_facts(managed.desired.name)
    if isinstance(found, ServerFacts):
        managed.facts, managed.why_no_facts, managed.version = found, "", found.version
        return
    managed.facts, managed.version = None, found.version
    if managed.why_no_facts != found.reason:
        managed.why_no_facts = found.reason
        logger.warning(
            "%s serves, but its version and build are not known: %s",
            *(name, found.reason),
            extra=fields(instance=name),
        )
