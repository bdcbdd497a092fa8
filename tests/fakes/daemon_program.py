#!/usr/bin/env python3
"""A daemon around rolemesh.runtime.daemon that does what its arguments say.

serve           serves; SIGHUP reads $RELOAD_FILE: empty is fine, "refuse" and "crash" are not
refuse          its configuration is refused at start
cannot-start    it cannot start for another reason
in-background   a background task finds out that it cannot go on
crash           it has a bug
slow-stop       serves, and takes its time to stop
"""

import asyncio
import os
import sys
from pathlib import Path

from rolemesh.errors import ConfigError, Problem, StartError
from rolemesh.runtime.daemon import Lifecycle, run_daemon
from rolemesh.runtime.tasks import TaskScope

WHAT = sys.argv[1] if __name__ == "__main__" else ""


def refused() -> ConfigError:
    problems = (
        Problem(where="a.yaml:1", key="listen", message="expected one thing"),
        Problem(where="b.yaml:2", key="models", message="expected another"),
    )
    return ConfigError(problems)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def wanted() -> str:
    return Path(os.environ["RELOAD_FILE"]).read_text()


async def reload() -> None:
    wish = wanted()
    if wish == "refuse":
        raise refused()
    if wish == "crash":
        raise ZeroDivisionError


async def give_up() -> None:
    raise StartError("the port is taken; choose another")


async def main(lifecycle: Lifecycle) -> None:
    if WHAT == "refuse":
        raise refused()
    if WHAT == "cannot-start":
        await give_up()
    if WHAT == "crash":
        raise ZeroDivisionError
    lifecycle.status = lambda: "serving well"
    async with TaskScope() as scope:
        if WHAT == "in-background":
            _ = scope.start(give_up(), name="gives up")
        say("about to serve")
        await lifecycle.serve(reload)
        say("tearing down")
        if WHAT == "slow-stop":
            await asyncio.sleep(60)


if __name__ == "__main__":
    raise SystemExit(run_daemon(main))
