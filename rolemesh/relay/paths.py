"""The table of inference paths: what clients may POST, and what is sent upstream for it.

Only paths listed here, or added by an operator, are relayed; a rule like "any POST with a model"
would hand clients an upstream's administration (Ollama's /api/pull, llama-server's /slots).

The paths are those of OpenAI's and Anthropic's APIs and of llama-server's own (0.7.0). Their slots
were read off llama-server: it makes a task, which takes a slot, of each prompt, document and
choice, and answers what only counts or templates tokens without any.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from rolemesh.errors import UnknownPath
from rolemesh.relay.edit import RequestBody
from rolemesh.relay.replies import Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePath:
    """One kind of inference request.

    `slots` is what one prompt with one choice takes, `prompts_keys` are the body fields whose list
    length multiplies that, `choices_keys` those whose number does. `dialect` is the shape of errors.
    """

    upstream_path: str
    slots: int = 1
    prompts_keys: tuple[str, ...] = ()
    choices_keys: tuple[str, ...] = ()
    dialect: Dialect = Dialect.OPENAI
    counted_keys: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counted_keys", frozenset(self.prompts_keys + self.choices_keys))

    def cost(self, body: RequestBody) -> int:
        """Return how many slots a request takes; raises BadRequest when they are too many."""
        if not self.slots:
            return 0
        if body.members.keys().isdisjoint(self.counted_keys):
            return self.slots
        return self.slots * body.completions(self.prompts_keys, self.choices_keys)


# `n_cmpl` is llama-server's own name for `n`; of both it takes one.
_CHOICES: Final = ("n", "n_cmpl")

_TABLE: Final[tuple[tuple[InferencePath, tuple[str, ...]], ...]] = (
    (
        InferencePath(upstream_path="/v1/chat/completions", choices_keys=_CHOICES),
        ("/v1/chat/completions", "/chat/completions"),
    ),
    (
        InferencePath(
            upstream_path="/v1/completions", prompts_keys=("prompt",), choices_keys=_CHOICES
        ),
        ("/v1/completions", "/completions"),
    ),
    (
        InferencePath(upstream_path="/v1/embeddings", prompts_keys=("input", "content")),
        ("/v1/embeddings", "/embeddings"),
    ),
    (
        InferencePath(upstream_path="/v1/rerank", prompts_keys=("documents", "texts")),
        ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking"),
    ),
    (
        InferencePath(upstream_path="/v1/responses", choices_keys=_CHOICES),
        ("/v1/responses", "/responses"),
    ),
    (
        InferencePath(upstream_path="/v1/messages", dialect=Dialect.ANTHROPIC),
        ("/v1/messages", "/messages"),
    ),
    (
        InferencePath(
            upstream_path="/v1/messages/count_tokens", slots=0, dialect=Dialect.ANTHROPIC
        ),
        ("/v1/messages/count_tokens", "/messages/count_tokens"),
    ),
    (
        InferencePath(upstream_path="/v1/responses/input_tokens", slots=0),
        ("/v1/responses/input_tokens", "/responses/input_tokens"),
    ),
    # Of these llama-server has no form with the version.
    (InferencePath(upstream_path="/tokenize", slots=0), ("/tokenize", "/v1/tokenize")),
    (InferencePath(upstream_path="/detokenize", slots=0), ("/detokenize", "/v1/detokenize")),
    (
        InferencePath(upstream_path="/apply-template", slots=0),
        ("/apply-template", "/v1/apply-template"),
    ),
)

INFERENCE_PATHS: Final[Mapping[str, InferencePath]] = MappingProxyType(
    {path: kind for kind, paths in _TABLE for path in paths}
)
"""The paths that every gateway and every agent has."""


def path_at(paths: Mapping[str, InferencePath], path: str) -> InferencePath:
    """Return what is asked for; raises UnknownPath: a reload may have taken it away meanwhile."""
    found = paths.get(path)
    if found is None:
        raise unknown_path(path)
    return found


def unknown_path(path: str) -> UnknownPath:
    """Return the error for a path that carries no inference requests."""
    return UnknownPath(f"there is no POST {path} here")


def inference_paths(extra: Mapping[str, int]) -> Mapping[str, InferencePath]:
    """Return all inference paths; `extra` are an operator's own, with the slots each takes.

    Those are asked for upstream as they are.
    """
    added = {path: InferencePath(upstream_path=path, slots=slots) for path, slots in extra.items()}
    return MappingProxyType({**added, **INFERENCE_PATHS})
