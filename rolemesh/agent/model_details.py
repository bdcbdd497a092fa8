"""What is known of a model besides its state, for people: its size, and what it needs; pure."""

from typing import Any, Final

from rolemesh.agent.model_check import ModelProblems
from rolemesh.names import ModelId

_MIB: Final = 1 << 20


def model_details(known: ModelProblems, model_id: ModelId) -> dict[str, Any]:
    """Return what a model's file says and the memory it takes; null where it cannot be told.

    `need_mib` is what a GPU has to have free for all of it.
    """
    header, need = known.headers.get(model_id), known.need_of(model_id)
    return {
        "architecture": header and header.architecture,
        "parameters": header and header.parameter_count,
        "quantisation": header and header.quantisation,
        "trained_context": header and header.context_length,
        "file_mib": header and header.file_bytes // _MIB,
        "need_mib": need and need.on_each(1) // _MIB,
    }
