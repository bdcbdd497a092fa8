"""What an agent answers besides inference: models, inventory, load, unload, what requests came to."""

import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from rolemesh import __version__
from rolemesh.agent.access import AgentAccess
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.report import NodeView, inventory_json, report_models, what_is_missing
from rolemesh.config.settings import Timeouts
from rolemesh.errors import BadRequest, Unavailable, UnknownAlias
from rolemesh.names import ModelId
from rolemesh.relay.application import peer_of, route
from rolemesh.relay.replies import Reply, json_reply
from rolemesh.runtime.request_history import RequestHistory
from rolemesh.wire import ModelReport

_DEFAULTS: Final = Timeouts()
_MODEL: Final = "/v1/node/models/{model_id:.+}"


class NodeApi:
    """Handlers; `view` gives the node as it is now."""

    def __init__(
        self,
        *,
        access: AgentAccess,
        fleet: Fleet,
        view: Callable[[], NodeView],
        history: RequestHistory,
        started_at: int,
    ) -> None:
        self._history = history
        self._access = access
        self._fleet = fleet
        self._view = view
        self._started_at = started_at

    def routes(self) -> list[web.RouteDef]:
        """Return every path of the agent but the inference paths."""
        return [
            route("GET", "/health", self.get_health),
            route("GET", "/ready", self.get_ready),
            route("GET", "/v1/models", self.get_models),
            route("GET", "/v1/models/{model_id:.+}", self.get_model),
            route("GET", "/v1/node", self.get_node),
            route("GET", "/v1/node/requests/{request_id}", self.get_request),
            route("POST", f"{_MODEL}/load", self.post_load),
            route("POST", f"{_MODEL}/unload", self.post_unload),
        ]

    async def get_health(self, _request: web.Request) -> Reply:
        """Tell that this process answers; looks at nothing else."""
        return json_reply({"status": "ok", "version": __version__})

    async def get_ready(self, _request: web.Request) -> Reply:
        """Tell whether any model can answer or be loaded, and what is missing."""
        view = self._view()
        missing = list(what_is_missing(view))
        usable = [model.model_id for model in report_models(view) if model.usable]
        if usable:
            return json_reply({"status": "ready", "models": usable, "missing": missing})
        tree = {"status": "unavailable", "reason": "no usable model", "missing": missing}
        return json_reply(tree, HTTPStatus.SERVICE_UNAVAILABLE)

    async def get_models(self, request: web.Request) -> Reply:
        """List the models that can answer; the others with their reasons."""
        self._identify(request)
        models = report_models(self._view())
        unavailable = [
            {"id": model.model_id, "reason": model.reason} for model in models if not model.usable
        ]
        return json_reply(
            {
                "object": "list",
                "data": [self._model(model) for model in models if model.usable],
                "rolemesh": {"unavailable_models": unavailable},
            }
        )

    async def get_model(self, request: web.Request) -> Reply:
        """Describe one model that can answer."""
        self._identify(request)
        models = {model.model_id: model for model in report_models(self._view())}
        model_id = ModelId(request.match_info["model_id"])
        if model_id not in models:
            raise UnknownAlias(model_id, tuple(models))
        model = models[model_id]
        if not model.usable:
            msg = f"'{model_id}' cannot answer now: {model.reason}"
            raise Unavailable(msg, reason=model.reason, retry_after_s=2.0)
        return json_reply(self._model(model))

    async def get_node(self, request: web.Request) -> Reply:
        """Describe the node: models, instances, GPUs, host."""
        self._identify(request)
        view = self._view()
        return json_reply(
            {
                "node_id": view.settings.node_id,
                "version": __version__,
                "models": [model.to_json() for model in report_models(view)],
                **inventory_json(view),
                "missing": list(what_is_missing(view)),
            }
        )

    async def get_request(self, request: web.Request) -> Reply:
        """Tell what became of the last requests with an id; none are remembered for long."""
        self._identify(request)
        request_id = request.match_info["request_id"]
        records = self._history.find(request_id)
        return json_reply({"request_id": request_id, "records": records})

    async def post_load(self, request: web.Request) -> Reply:
        """Load a model and answer once it is ready, or after `?wait_s=`."""
        self._identify(request)
        model_id = ModelId(request.match_info["model_id"])
        instances = await self._fleet.ensure_ready(model_id, wait_s=_wait_s(request))
        return json_reply({"model_id": model_id, "state": "ready", "instances": list(instances)})

    async def post_unload(self, request: web.Request) -> Reply:
        """Begin to unload a model: running requests finish first."""
        self._identify(request)
        model_id = ModelId(request.match_info["model_id"])
        instances = self._fleet.unload(model_id)
        tree = {"model_id": model_id, "state": "unloading", "instances": list(instances)}
        return json_reply(tree, HTTPStatus.ACCEPTED)

    def _identify(self, request: web.Request) -> None:
        self._access.identify(peer_of(request), request.headers.get)

    def _model(self, model: ModelReport) -> dict[str, Any]:
        return {
            "id": model.model_id,
            "object": "model",
            "created": self._started_at,
            "owned_by": "rolemesh",
        }


def _wait_s(request: web.Request) -> float:
    text = request.query.get("wait_s")
    if text is None:
        return _DEFAULTS.load_wait_s
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = math.nan
    if not 0 <= wait_s <= _DEFAULTS.total_s:
        msg = f"wait_s: expected seconds up to {_DEFAULTS.total_s:g}, found {text!r}"
        raise BadRequest(msg, param="wait_s")
    return wait_s
