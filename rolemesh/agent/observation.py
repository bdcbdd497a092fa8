"""What was seen of the machine at one moment; values only."""

from dataclasses import dataclass, field

from rolemesh.agent.host import Host
from rolemesh.agent.inventory import Inventory
from rolemesh.agent.model_check import ModelProblems
from rolemesh.agent.programs import Programs


@dataclass(frozen=True, slots=True, kw_only=True)
class HostObservation:
    """The machine at one moment; `state_problem` says which state is not saved.

    `programs` are those that a start would run.
    """

    inventory: Inventory
    host: Host
    model_problems: ModelProblems
    state_problem: str = ""
    programs: Programs = field(default_factory=Programs)
