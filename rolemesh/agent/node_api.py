"""What an agent answers besides inference: models, inventory, load, unload, what requests came to."""

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from rolemesh import __version__, jsonread
from rolemesh.agent.access import AgentAccess
from rolemesh.agent.fleet import Fleet
from rolemesh.agent.inventory import Inventory
from rolemesh.agent.loads import Loads
from rolemesh.agent.model_details import model_details
from rolemesh.agent.placement_view import is_gpu
from rolemesh.agent.report import NodeView, inventory_json, report_models, what_is_missing
from rolemesh.config.settings import Timeouts
from rolemesh.errors import BadRequest, Unavailable, UnknownAlias
from rolemesh.names import InstanceName, ModelId
from rolemesh.relay.application import (
    LINES_TYPE,
    LineStream,
    Respond,
    RespondInLines,
    lines_route,
    peer_of,
    route,
)
from rolemesh.relay.replies import Reply, json_reply
from rolemesh.runtime.request_history import RequestHistory
from rolemesh.wire import ModelReport

_DEFAULTS: Final = Timeouts()
_MODEL: Final = "/v1/node/models/{model_id:.+}"
_INSTANCE: Final = "/v1/node/instances/{instance}"

Identify = Callable[[web.Request], object]
"""Raises for those who may not ask."""


class NodeApi:
    """Handlers; `view` gives the node as it is now, `renumber` numbers the GPUs anew."""

    def __init__(
        self,
        *,
        access: AgentAccess,
        fleet: Fleet,
        view: Callable[[], NodeView],
        history: RequestHistory,
        started_at: int,
        renumber: Callable[[], Awaitable[object]],
    ) -> None:
        self._history = history
        self._access = access
        self._fleet = fleet
        self._view = view
        self._started_at = started_at
        self._renumber = renumber
        self._loads = Loads(fleet, view)

    def by_key(self) -> list[web.RouteDef]:
        """Return every path of the agent but the inference paths, for callers with a key."""
        return self._routes(
            lambda request: self._access.identify(peer_of(request), request.headers.get)
        )

    def of_operators(self) -> list[web.RouteDef]:
        """Return the same for whoever can open the control socket: they may everything."""
        return self._routes(lambda _: None)

    def _routes(self, identify: Identify) -> list[web.RouteDef]:
        def closed(method: str, path: str, respond: Respond) -> web.RouteDef:
            async def handler(request: web.Request) -> Reply:
                identify(request)
                return await respond(request)

            return route(method, path, handler)

        def closed_lines(path: str, respond: RespondInLines) -> web.RouteDef:
            async def handler(request: web.Request, lines: LineStream) -> Reply | None:
                identify(request)
                return await respond(request, lines)

            return lines_route("POST", path, handler)

        return [
            route("GET", "/health", self.get_health),
            route("GET", "/ready", self.get_ready),
            closed("GET", "/v1/models", self.get_models),
            closed("GET", "/v1/models/{model_id:.+}", self.get_model),
            closed("GET", "/v1/node", self.get_node),
            closed("GET", "/v1/node/plan", self.get_plan),
            closed("GET", "/v1/node/requests/{request_id}", self.get_request),
            closed_lines(f"{_MODEL}/load", self.post_load),
            closed("POST", f"{_MODEL}/unload", self.post_unload),
            closed_lines(f"{_INSTANCE}/switch", self.post_switch),
            closed("POST", f"{_INSTANCE}/unload", self.post_instance_unload),
            closed("POST", f"{_INSTANCE}/pin", self.post_pin),
            closed("POST", f"{_INSTANCE}/unpin", self.post_unpin),
            closed("POST", f"{_INSTANCE}/drain", self.post_drain),
            closed("POST", f"{_INSTANCE}/undrain", self.post_undrain),
            closed("POST", "/v1/node/gpus/renumber", self.post_renumber),
        ]

    # -- what there is ---------------------------------------------------------------------

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

    async def get_models(self, _request: web.Request) -> Reply:
        """List the models that can answer; the others with their reasons."""
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
        models = {model.model_id: model for model in report_models(self._view())}
        model_id = ModelId(request.match_info["model_id"])
        if model_id not in models:
            raise UnknownAlias(model_id, tuple(models))
        model = models[model_id]
        if not model.usable:
            msg = f"'{model_id}' cannot answer now: {model.reason}"
            raise Unavailable(msg, reason=model.reason, retry_after_s=2.0)
        return json_reply(self._model(model))

    async def get_node(self, _request: web.Request) -> Reply:
        """Describe the node: models, instances, GPUs, host."""
        view = self._view()
        known = view.host.model_problems
        return json_reply(
            {
                "node_id": view.settings.node_id,
                "version": __version__,
                "models": [
                    {**model.to_json(), **model_details(known, model.model_id)}
                    for model in report_models(view)
                ],
                **inventory_json(view),
                "missing": list(what_is_missing(view)),
            }
        )

    async def get_plan(self, request: web.Request) -> Reply:
        """Tell where a model would run now, or each of them, and why not elsewhere."""
        wanted = request.query.get("model")
        models = [*self._view().settings.models] if wanted is None else [ModelId(wanted)]
        return json_reply({"plans": [self._fleet.plan(model_id).to_json() for model_id in models]})

    async def get_request(self, request: web.Request) -> Reply:
        """Tell what became of the last requests with an id; none are remembered for long."""
        request_id = request.match_info["request_id"]
        records = self._history.find(request_id)
        return json_reply({"request_id": request_id, "records": records})

    # -- what is told ----------------------------------------------------------------------

    async def post_load(self, request: web.Request, lines: LineStream) -> Reply | None:
        """Load a model and answer once it is ready, or after `?wait_s=`.

        The body may name the `instance` that shall have it.
        """
        name = _field(await _body(request), "instance")
        instance = None if name is None else InstanceName(name)
        return await self._load(request, lines, _model_id(request), instance)

    async def post_switch(self, request: web.Request, lines: LineStream) -> Reply | None:
        """Have an instance run the body's `model_id`; answers as post_load."""
        model_id = _field(await _body(request), "model_id")
        if model_id is None:
            msg = "model_id: expected the model that the instance shall run, found nothing"
            raise BadRequest(msg, param="model_id")
        return await self._load(request, lines, ModelId(model_id), _instance(request))

    async def _load(
        self,
        request: web.Request,
        lines: LineStream,
        model_id: ModelId,
        instance: InstanceName | None,
    ) -> Reply | None:
        wait_s = _wait_s(request)
        if LINES_TYPE in request.headers.get("Accept", ""):
            return await self._loads.follow(lines, model_id, instance, wait_s=wait_s)
        return json_reply(await self._loads.load(model_id, instance, wait_s=wait_s))

    async def post_unload(self, request: web.Request) -> Reply:
        """Begin to unload a model: running requests finish first."""
        model_id = _model_id(request)
        instances = self._fleet.unload(model_id)
        tree = {"model_id": model_id, "state": "unloading", "instances": list(instances)}
        return json_reply(tree, HTTPStatus.ACCEPTED)

    async def post_instance_unload(self, request: web.Request) -> Reply:
        """Begin to empty an instance: running requests finish first."""
        name = _instance(request)
        instances = [name] if self._fleet.unload_instance(name) else []
        tree = {"instance": name, "state": "unloading", "instances": instances}
        return json_reply(tree, HTTPStatus.ACCEPTED)

    async def post_pin(self, request: web.Request) -> Reply:
        """Keep what an instance runs from being displaced."""
        return self._pin(request, pinned=True)

    async def post_unpin(self, request: web.Request) -> Reply:
        """Let other models take an instance."""
        return self._pin(request, pinned=False)

    def _pin(self, request: web.Request, *, pinned: bool) -> Reply:
        name = _instance(request)
        self._fleet.pin(name, pinned=pinned)
        return json_reply({"instance": name, "pinned": pinned})

    async def post_drain(self, request: web.Request) -> Reply:
        """Have an instance finish what runs there, and get nothing more."""
        return self._drain(request, drained=True)

    async def post_undrain(self, request: web.Request) -> Reply:
        """Take a drain back."""
        return self._drain(request, drained=False)

    def _drain(self, request: web.Request, *, drained: bool) -> Reply:
        name = _instance(request)
        self._fleet.drain(name, drained=drained)
        return json_reply({"instance": name, "drained": drained})

    async def post_renumber(self, _request: web.Request) -> Reply:
        """Number the GPUs that are there anew, and forget those that are gone.

        An instance is its GPU's by its number, so none may run on a GPU meanwhile.
        """
        view = self._view()
        running = [
            each.view.name
            for each in view.fleet.instances
            if is_gpu(each.view.name) and not each.view.is_empty
        ]
        if running:
            msg = f"GPUs keep their numbers while instances run on them: {', '.join(running)}"
            raise Unavailable(msg, reason="instances_running", retry_after_s=5.0)
        before = _gpu_names(view.host.inventory)
        await self._renumber()
        after = _gpu_names(self._view().host.inventory)
        changed = {
            uuid: {"was": before.get(uuid), "is": after.get(uuid)}
            for uuid in {**before, **after}
            if before.get(uuid) != after.get(uuid)
        }
        return json_reply({"renumbered": changed})

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


def _gpu_names(inventory: Inventory) -> dict[str, str]:
    """Return the names of all GPUs and slices that are or were there, by UUID."""
    return {
        **{gpu.reading.uuid: gpu.name for gpu in inventory.gpus},
        **{uuid: f"gpu{number}" for number, uuid in inventory.lost.items()},
        **{uuid: name for name, uuid in inventory.lost_slices.items()},
    }


def _model_id(request: web.Request) -> ModelId:
    return ModelId(request.match_info["model_id"])


def _instance(request: web.Request) -> InstanceName:
    return InstanceName(request.match_info["instance"])


async def _body(request: web.Request) -> Mapping[str, Any]:
    """Return the body, empty where there is none; raises BadRequest."""
    data = await request.read()
    if not data:
        return {}
    try:
        return jsonread.as_object(json.loads(data))
    except (ValueError, RecursionError) as err:
        msg = f"the body is no JSON object: {err}"
        raise BadRequest(msg) from err


def _field(tree: Mapping[str, Any], name: str) -> str | None:
    value = tree.get(name)
    if value is not None and not isinstance(value, str):
        msg = f"{name}: expected a string, found {value!r}"
        raise BadRequest(msg, param=name)
    return value
