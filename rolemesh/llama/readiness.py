"""Whether a llama-server answers: /health, and one real result before it counts as ready.

llama-server accepts connections long before it can answer, and /health says nothing about
whether the model can be evaluated at all; so READY=1 needs both. Nor does /health say whether what
was begun goes on: `wedge_watch` does.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NoReturn

from rolemesh.address import UpstreamAddress
from rolemesh.config.settings import ModelSettings
from rolemesh.errors import NodeError, UpstreamError, UpstreamTimeout
from rolemesh.llama.load_progress import LoadProgress
from rolemesh.llama.server import LlamaServer
from rolemesh.llama.server_process import ServerEnded
from rolemesh.llama.wedge_watch import WedgeWatch
from rolemesh.names import ModelId
from rolemesh.relay.fetch import FetchReply, fetch
from rolemesh.runtime.tasks import TaskScope

HEALTH_TIMEOUT_S: Final = 2.0
FIRST_POLL_S: Final = 0.005
LONGEST_POLL_S: Final = 0.5
POLL_EXTENSION_S: Final = 30.0
"""How long one look at a loading server keeps the service manager from giving up on the start."""

Told = Callable[[str, float], None]
"""Hears a status text and for how many seconds more the start may go on."""

_RERANK_OPTIONS: Final = frozenset({"--rerank", "--reranking"})
_EMBEDDING_OPTIONS: Final = frozenset({"--embedding", "--embeddings"})


class NotAnswering(NodeError):
    """The llama-server runs but gives no result; the text says what it gave instead."""


class Wedged(NodeError):
    """The llama-server answers /health, but what it is busy with does not go on."""


class Health(Enum):
    """What GET /health tells."""

    OK = "ok"
    LOADING = "loading"
    SILENT = "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One small real request; `results_key` is where the reply has a non-empty list."""

    path: str
    body: bytes
    results_key: str


def choose_trial(model: ModelSettings, args: Sequence[str]) -> Trial:
    """Return the request that a llama-server of this model, with these arguments, must answer."""
    given, model_id = set(args), model.model_id
    if model.rerank or given & _RERANK_OPTIONS:
        return _trial("/v1/rerank", "results", model=model_id, query="a", documents=["a"])
    if model.embeddings or given & _EMBEDDING_OPTIONS:
        return _trial("/v1/embeddings", "data", model=model_id, input="a")
    return _trial("/v1/completions", "choices", model=model_id, prompt="a", max_tokens=1)


def _trial(path: str, results_key: str, **fields: Any) -> Trial:
    return Trial(path=path, body=json.dumps(fields).encode(), results_key=results_key)


async def check_health(address: UpstreamAddress, timeout_s: float = HEALTH_TIMEOUT_S) -> Health:
    """Ask /health once."""
    try:
        reply = await fetch(address, "GET", "/health", timeout_s=timeout_s)
    except UpstreamError:
        return Health.SILENT
    return Health.OK if reply.status == 200 else Health.LOADING


async def demand_result(address: UpstreamAddress, trial: Trial, timeout_s: float) -> bool:
    """Have the llama-server do `trial`; False: it is loading again or died, ask /health again.

    Raises NotAnswering when it answers with anything else than a result, or not in time.
    """
    try:
        reply = await fetch(
            address,
            "POST",
            trial.path,
            body=trial.body,
            fields=(("Content-Type", "application/json"),),
            timeout_s=timeout_s,
        )
    except UpstreamTimeout as err:
        msg = (
            f"llama-server is up, but gave no result of POST {trial.path} within {timeout_s:g} s; "
            "policy.load_timeout_s says how long to wait"
        )
        raise NotAnswering(msg) from err
    except UpstreamError:
        return False
    if reply.status == 503:
        return False
    if reply.status != 200 or not _has_results(reply, trial.results_key):
        excerpt = " ".join(reply.body[:300].decode("utf-8", "replace").split())
        msg = f"llama-server is up, but POST {trial.path} gave status {reply.status}: {excerpt}"
        raise NotAnswering(msg)
    return True


def _has_results(reply: FetchReply, key: str) -> bool:
    try:
        tree = json.loads(reply.body)
    except ValueError:
        return False
    return isinstance(tree, dict) and bool(tree.get(key))


class Loading:
    """One load of one model, followed until the llama-server has really answered."""

    def __init__(
        self,
        *,
        server: LlamaServer,
        address: UpstreamAddress,
        trial: Trial,
        model_id: ModelId,
        model_bytes: int,
        timeout_s: float,
        told: Told,
    ) -> None:
        self._server = server
        self._address = address
        self._trial = trial
        self._model_id = model_id
        self._progress = LoadProgress(server.pid, model_bytes)
        self._timeout_s = timeout_s
        self._told = told
        self._started = self._moved_at = time.monotonic()
        self._seen = (0, 0)
        self.first_token_s = 0.0
        """How long its first result took, once there is one."""

    async def finish(self) -> None:
        """Return once the llama-server has answered; `told` hears the progress.

        Raises ServerEnded when it ends, NotAnswering when it makes no progress for `timeout_s` or
        cannot give a result.
        """
        pause_s, text = FIRST_POLL_S, ""
        while not await self._answers():
            self._check_progress()
            if text != self._text():  # at least each second: it says how many they are
                text = self._text()
                self._told(text, POLL_EXTENSION_S)
            await self._server.pass_time(FIRST_POLL_S)
            # llama-server logs the steps of a load, and right before it answers that it listens.
            heard = await self._server.hears_within(pause_s)
            pause_s = FIRST_POLL_S if heard else min(pause_s * 1.5, LONGEST_POLL_S)
        # What was said on the way to here explains no later end.
        self._server.log.forget()

    async def _answers(self) -> bool:
        if await check_health(self._address) is not Health.OK:
            return False
        # The first token of a large model on a slow machine may take minutes, without a sign.
        text = f"{self._model_id} is loaded; waiting for its first token"
        self._told(text, self._timeout_s + POLL_EXTENSION_S)
        begun = time.monotonic()
        answered = await demand_result(self._address, self._trial, self._timeout_s)
        self.first_token_s = time.monotonic() - begun
        return answered

    def _check_progress(self) -> None:
        self._progress.sample()
        seen = (self._progress.loaded_bytes, self._server.log.line_count)
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        if now - self._moved_at >= self._timeout_s:
            msg = (
                f"llama-server makes no progress with {self._model_id} since {self._timeout_s:g} s "
                f"({self._text()}); policy.load_timeout_s says how long to wait"
            )
            raise NotAnswering(msg)

    def _text(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"loading {self._model_id}: {self._progress.fraction:.0%} ({seconds} s)"


async def keep_watch(
    *,
    server: LlamaServer,
    address: UpstreamAddress,
    wedges: WedgeWatch,
    interval_s: float,
    alive: Callable[[], None],
    silent: Callable[[str], None],
) -> NoReturn:
    """Look after a ready llama-server until it ends (ServerEnded) or is wedged (Wedged).

    `interval_s` is how often `alive` is due: it is called after each fresh answer to /health and
    at no other time. `silent` hears when there was none.
    """
    async with TaskScope() as scope:
        wedged = scope.start(wedges.wedged(), name="slots of the llama-server")
        health = _HealthWatch(server, address, interval_s, alive=alive, silent=silent)
        end: NodeError | None = None
        while end is None:
            end = await health.pass_time()
            if end is None and wedged.done():
                end = Wedged(f"llama-server (pid {server.pid}) is wedged: {wedged.result()}")
    raise end


class _HealthWatch:
    """Asks /health for as long as the llama-server lives."""

    def __init__(
        self,
        server: LlamaServer,
        address: UpstreamAddress,
        interval_s: float,
        *,
        alive: Callable[[], None],
        silent: Callable[[str], None],
    ) -> None:
        self._server = server
        self._address = address
        self._interval_s = interval_s
        self._alive = alive
        self._silent = silent
        self._answered_at = time.monotonic()

    async def pass_time(self) -> ServerEnded | None:
        """Wait and ask once; return how the llama-server ended, if it did."""
        try:
            # Twice as often as due, so that one slow answer is no missed one.
            await self._server.pass_time(self._interval_s / 2)
        except ServerEnded as err:
            return err
        if await check_health(self._address, self._interval_s) is Health.OK:
            self._answered_at = time.monotonic()
            self._alive()
        else:
            seconds = round(time.monotonic() - self._answered_at)
            pid = self._server.pid
            self._silent(f"llama-server (pid {pid}) does not answer /health since {seconds} s")
        return None
