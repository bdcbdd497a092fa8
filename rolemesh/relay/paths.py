"""The table of inference paths: what clients may POST, and what is sent upstream for it.

Only paths listed here are relayed; a rule like "any POST with a model" would hand clients an
upstream's administration (Ollama's /api/pull, llama-server's /slots).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePath:
    """One kind of inference request.

    `prompts_key` is the body field whose list length multiplies the slots a request takes.
    """

    upstream_path: str
    prompts_key: str | None = None


_KINDS = (
    InferencePath(upstream_path="/v1/chat/completions"),
    InferencePath(upstream_path="/v1/completions", prompts_key="prompt"),
    InferencePath(upstream_path="/v1/embeddings", prompts_key="input"),
)

INFERENCE_PATHS: Final[Mapping[str, InferencePath]] = MappingProxyType(
    {
        path: kind
        for kind in _KINDS
        for path in (kind.upstream_path, kind.upstream_path.removeprefix("/v1"))
    }
)
