"""Waiting for a model to load, with what the agent says meanwhile.

On a terminal it is one line that changes; elsewhere a line for each new state and each tenth of the
way, on stderr.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from rolemesh.ctl import output
from rolemesh.ctl.agents import Agent
from rolemesh.ctl.gateway_api import ApiError
from rolemesh.ctl.outcomes import EXIT_OK, Failed

PATIENCE_S: Final = "3600"
"""How long an agent is asked to wait for the model."""

_UNDER_WAY: Final = ("starting", "loading", "draining", "stopping")


def load(
    agent: Agent, path: tuple[str, ...], body: Mapping[str, Any], *, model_id: str, as_json: bool
) -> int:
    """Have a model loaded and wait for it; says what goes on when it is interrupted."""
    began, last = time.monotonic(), dict[str, Any]()
    told: tuple[object, ...] = ()
    try:
        with output.Progress() as progress:
            for last in agent.lines(*path, body=body, wait_s=PATIENCE_S):
                if last.get("state") == "ready":
                    continue
                text, news = _text(last, model_id), _news(last, told)
                progress.say(f"{text}, {output.duration(time.monotonic() - began)}")
                if news != told and not (as_json or progress.is_shown):
                    output.note(text)
                told = news
    except KeyboardInterrupt:
        output.note(_interrupted(last, model_id))
        raise
    if last.get("state") != "ready":
        msg = (
            f"{agent.node_id} broke off before {model_id} was ready; `rolemeshctl models` shows "
            "what became of it"
        )
        raise Failed(msg)
    if as_json:
        output.put_json(last)
    else:
        where = ", ".join(map(str, last.get("instances", [])))
        took = output.duration(time.monotonic() - began)
        output.put(output.clean(f"{model_id} is ready on {agent.node_id}, {where} ({took})"))
    return EXIT_OK


def begin(
    agent: Agent, path: tuple[str, ...], body: Mapping[str, Any], *, model_id: str, as_json: bool
) -> int:
    """Have a model loaded without waiting for it."""
    try:
        reply = agent.post(*path, body=body, wait_s="0")
    except ApiError as error:
        if error.error.get("reason") != "loading":
            raise
        reply = {"model_id": model_id, "state": "loading"}
    if as_json:
        output.put_json(reply)
    elif reply.get("state") == "ready":
        output.put(f"{model_id} is ready on {agent.node_id}")
    else:
        output.put(
            f"{model_id} is loading on {agent.node_id}; `rolemeshctl models` shows how far it is"
        )
    return EXIT_OK


def progress_text(line: Mapping[str, Any]) -> str:
    """Return how far a model is, in words: `loading 40 %`."""
    state, progress = str(line.get("state", "")), line.get("progress")
    return state if progress is None else f"{state} {progress * 100:.0f} %"


def _news(line: Mapping[str, Any], told: tuple[object, ...]) -> tuple[object, ...]:
    """Return what has to differ from what was told before to be worth a line.

    A load that does not say how far it is any more is as far as it was.
    """
    where, progress = (line.get("state"), line.get("instance")), line.get("progress")
    if progress is None and told[:2] == where:
        return told
    return (*where, int((progress or 0) * 10))


def _text(line: Mapping[str, Any], model_id: str) -> str:
    where = f" on {line['instance']}" if line.get("instance") else ""
    why = f": {line['reason']}" if line.get("reason") else ""
    return f"{model_id}{where}: {progress_text(line)}{why}"


def _interrupted(last: Mapping[str, Any], model_id: str) -> str:
    if last.get("state") in _UNDER_WAY:
        return (
            f"not waiting any more; {model_id} goes on loading: `rolemeshctl models` shows how far "
            f"it is, `rolemeshctl unload {model_id}` ends it"
        )
    return f"not waiting any more; no load of {model_id} had begun"
