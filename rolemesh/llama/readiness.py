"""Whether a llama-server answers: /health, and one real result before it counts as ready.

llama-server accepts connections long before it can answer, and /health says nothing about
whether the model can be evaluated at all; so READY=1 needs both.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NoReturn

from rolemesh.address import UpstreamAddress
from rolemesh.errors import NodeError, UpstreamError
from rolemesh.llama.load_progress import LoadProgress
from rolemesh.llama.server import LlamaServer
from rolemesh.names import ModelId
from rolemesh.relay.fetch import FetchReply, fetch

HEALTH_TIMEOUT_S: Final = 2.0
FIRST_POLL_S: Final = 0.02
LONGEST_POLL_S: Final = 0.5
POLL_EXTENSION_S: Final = 30.0
"""How long one look at a loading server keeps the service manager from giving up on the start."""

Told = Callable[[str, float], None]
"""Hears a status text and for how many seconds more the start may go on."""

_RERANK_OPTIONS: Final = frozenset({"--rerank", "--reranking"})
_EMBEDDING_OPTIONS: Final = frozenset({"--embedding", "--embeddings"})


class NotAnswering(NodeError):
    """The llama-server runs but gives no result; the text says what it gave instead."""


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


def choose_trial(model_id: ModelId, args: Sequence[str]) -> Trial:
    """Return the request that a llama-server with these arguments must be able to answer."""
    given = set(args)
    if given & _RERANK_OPTIONS:
        return _trial("/v1/rerank", "results", model=model_id, query="a", documents=["a"])
    if given & _EMBEDDING_OPTIONS:
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

    Raises NotAnswering when it answers with anything else than a result.
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

    async def finish(self) -> None:
        """Return once the llama-server has answered; `told` hears the progress.

        Raises ServerEnded when it ends, NotAnswering when it makes no progress for `timeout_s` or
        cannot give a result.
        """
        pause_s = FIRST_POLL_S
        while not await self._answers():
            self._check_progress()
            self._told(self._text(), POLL_EXTENSION_S)
            await self._server.pass_time(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_POLL_S)

    async def _answers(self) -> bool:
        if await check_health(self._address) is not Health.OK:
            return False
        # The first token of a large model on a slow machine may take minutes, without a sign.
        text = f"{self._model_id} is loaded; waiting for its first token"
        self._told(text, self._timeout_s + POLL_EXTENSION_S)
        return await demand_result(self._address, self._trial, self._timeout_s)

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
    interval_s: float,
    alive: Callable[[], None],
    silent: Callable[[str], None],
) -> NoReturn:
    """Look after a ready llama-server until it ends (ServerEnded).

    `interval_s` is how often `alive` is due: it is called after each fresh answer to /health and
    at no other time. `silent` hears when there was none.
    """
    answered_at = time.monotonic()
    while True:
        # Twice as often as due, so that one slow answer is no missed one.
        await server.pass_time(interval_s / 2)
        if await check_health(address, interval_s) is Health.OK:
            answered_at = time.monotonic()
            alive()
        else:
            seconds = round(time.monotonic() - answered_at)
            silent(f"llama-server (pid {server.pid}) does not answer /health since {seconds} s")
