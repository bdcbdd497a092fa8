"""What servers of other kinds say when a static upstream is looked at; pure.

Every kind lists its models at GET /v1/models, and only some refuse a model that is not on the list:

llama-server   answers whatever model is asked for, and 503 "Loading model" until it can; so does
               llamafile. Its router mode lists models with a `status` and refuses others; whether it
               loads one on demand stands in GET /props (llama.cpp, tools/server/README.md).
Ollama         lists pulled models with their tags (`llama3:latest` answers for `llama3`), null where
               there is none, and refuses others.
vLLM           refuses others; the list is there also after its engine died, which GET /health tells.
RoleMesh       lists aliases that can answer; the others, with their reasons, beside them.
others         LiteLLM (wildcards), LM Studio, TGI, ...: what is not listed may be answered all the same.

GET /health is asked only where it is known to cost nothing: LiteLLM answers it by asking its models.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from rolemesh.wire import ModelState

MODELS_PATH: Final = "/v1/models"
HEALTH_PATH: Final = "/health"
PROPS_PATH: Final = "/props"

MAX_NAMES: Final = 8
"""How many of its models a message names."""

_ROUTER_STATES: Final = {
    "loaded": ModelState.READY,
    "loading": ModelState.LOADING,
    "downloading": ModelState.LOADING,
    "sleeping": ModelState.READY,  # the next request wakes it up
    "unloaded": ModelState.COLD,
}

_UNLOADED: Final = frozenset({ModelState.COLD, ModelState.FAILED})


class Kind(Enum):
    """What a server is, as far as that matters."""

    ROUTER = "llama-server in router mode"
    OLLAMA = "Ollama"
    VLLM = "vLLM"
    ROLEMESH = "RoleMesh"
    OTHER = "another server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer to one question; `location` is where it redirects to."""

    status: int
    body: bytes
    location: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the upstream `name` said of itself.

    `down` says why it can answer for no model at all, "" when that is not so. `states` are those of
    its models, by every name they answer to, `refused` why others cannot answer. `models` are they
    as it lists them.
    """

    name: str
    kind: Kind = Kind.OTHER
    down: str = ""
    is_loading: bool = False
    states: Mapping[str, ModelState] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether a static upstream can answer for one model: `down` says why not, "" when it can."""

    down: str = ""
    state: ModelState = ModelState.READY


def next_question(models: Answer) -> str | None:
    """Return the path to ask next, once MODELS_PATH was answered; None when all is known."""
    if models.status in (404, 405):
        return HEALTH_PATH
    listing = _read_listing("", models)
    if listing.kind is Kind.VLLM:
        return HEALTH_PATH
    if listing.kind is Kind.ROUTER and not _UNLOADED.isdisjoint(listing.states.values()):
        return PROPS_PATH
    return None


def read_answers(name: str, models: Answer, second: Answer | None, *, has_key: bool) -> Sight:
    """Return what an upstream answered at MODELS_PATH and to `next_question`.

    `has_key`: it was shown one.
    """
    listing = _read_listing(name, models)
    if second is not None and listing.kind is Kind.ROUTER:
        return _without_autoload(listing) if _loads_nothing(second) else listing
    decisive = second or models
    if _is_loading(decisive):
        return replace(listing, is_loading=True)
    refusal = _refusal(decisive, has_key=has_key)
    return replace(listing, down=refusal and f"{name} {refusal}")


def health_of(sight: Sight, model: str) -> Health:
    """Return whether an upstream can answer for a model."""
    if sight.down:
        return Health(down=sight.down)
    if sight.is_loading:
        return Health(state=ModelState.LOADING)
    if sight.kind is Kind.OTHER or (sight.kind is Kind.OLLAMA and _is_remote(model)):
        return Health()
    name = _normal(model, sight.kind)
    if name in sight.refused:
        return Health(down=f"{sight.name} {sight.refused[name]}")
    if name in sight.states:
        return Health(state=sight.states[name])
    listed = ", ".join(sight.models[:MAX_NAMES]) or "none at all"
    more = len(sight.models) - MAX_NAMES
    and_more = f" and {more} more" if more > 0 else ""
    return Health(down=f"{sight.name} has no model {model} (it has {listed}{and_more})")


# --- the list of models -----------------------------------------------------------------------


def _read_listing(name: str, answer: Answer) -> Sight:
    """Return what a list of models says; nothing where it is none."""
    tree = _tree(answer.body)
    if answer.status != 200 or not isinstance(tree.get("data", ""), list | None):
        return Sight(name=name)
    models = [each for each in _objects(tree["data"]) if _name(each)]
    kind = _kind(tree, models)
    return Sight(
        name=name,
        kind=kind,
        states={_normal(each, kind): _state(model) for model in models for each in _names(model)},
        refused=dict(_refused(tree)) if kind is Kind.ROLEMESH else {},
        models=tuple(map(_name, models)),
    )


def _kind(tree: Mapping[str, Any], models: list[dict[str, Any]]) -> Kind:
    owners = [model.get("owned_by") for model in models]
    if isinstance(tree.get("rolemesh"), dict):
        return Kind.ROLEMESH
    if any(isinstance(model.get("status"), dict) for model in models):
        return Kind.ROUTER
    if tree["data"] is None or "library" in owners:
        return Kind.OLLAMA
    return Kind.VLLM if "vllm" in owners else Kind.OTHER


def _objects(values: Any) -> list[dict[str, Any]]:
    """Return the objects in a list; of anything else, none."""
    return [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []


def _name(model: Mapping[str, Any]) -> str:
    name = model.get("id")
    return name if isinstance(name, str) else ""


def _names(model: Mapping[str, Any]) -> Iterator[str]:
    yield _name(model)
    aliases = model.get("aliases")
    yield from (
        (each for each in aliases if isinstance(each, str)) if isinstance(aliases, list) else ()
    )


def _state(model: Mapping[str, Any]) -> ModelState:
    status = model.get("status")
    if not isinstance(status, dict):
        return ModelState.READY
    if status.get("failed"):
        return ModelState.FAILED  # the next request has it tried again
    return _ROUTER_STATES.get(str(status.get("value")), ModelState.READY)


def _refused(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for each in _objects(tree["rolemesh"].get("unavailable_models")):
        if _name(each):
            yield _name(each), f"says of {_name(each)}: {each.get('reason') or 'unavailable'}"


def _normal(name: str, kind: Kind) -> str:
    """Return a model's name as its kind of server compares it."""
    if kind is not Kind.OLLAMA:
        return name
    name = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _is_remote(model: str) -> bool:
    """Tell whether Ollama serves a model from elsewhere: that needs no pull."""
    return model.endswith(("-cloud", ":cloud"))


# --- the router of llama-server ---------------------------------------------------------------


def _loads_nothing(props: Answer) -> bool:
    return _tree(props.body).get("models_autoload") is False


def _without_autoload(listing: Sight) -> Sight:
    refused = {
        name: f"has not loaded {name}, and loads no model by itself (--no-models-autoload)"
        for name, state in listing.states.items()
        if state in _UNLOADED
    }
    return replace(listing, refused=refused)


# --- any answer -------------------------------------------------------------------------------


def _refusal(answer: Answer, *, has_key: bool) -> str:
    """Return why an upstream that answers so cannot be used, "" when it can."""
    said = _message(answer)
    if answer.status == 401:
        what = "does not accept our key" if has_key else "wants a key, and none is set"
        return f"{what} (api_key, api_key_file): 401{said}"
    if 300 <= answer.status < 400:
        where = f" to {answer.location}" if answer.location else ""
        return f"redirects{where} ({answer.status}); correct proxy_url"
    if answer.status == 400 or answer.status >= 500:  # 400: LiteLLM without a database, to a key
        return f"answers its health check with {answer.status}{said}"
    return ""


def _message(answer: Answer) -> str:
    """Return ` (what the server says)`, "" where it says nothing that can be shown."""
    tree = _tree(answer.body)
    error = tree.get("error")
    text = error.get("message") if isinstance(error, dict) else error
    if not isinstance(text, str) or not text:
        return ""
    line = " ".join(text.split())
    return f" ({line if len(line) <= 120 else line[:120] + '...'})"


def _is_loading(answer: Answer) -> bool:
    """Tell whether a llama-server says that it still loads its model."""
    error = _tree(answer.body).get("error")
    is_it = isinstance(error, dict) and error.get("message") == "Loading model"
    return answer.status == 503 and is_it


def _tree(body: bytes) -> Mapping[str, Any]:
    """Return a JSON object; of anything else, an empty one."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
