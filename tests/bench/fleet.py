"""Nodes that exist only in a gateway's registry: registered, and kept alive by heartbeats."""

import contextlib
import http.client
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from tests.bench.host import BenchError
from tests.bench.rolemesh import ALIAS, Daemons, until_ready
from tests.bench.workshop import Target

INSTANCES = 8
SLOTS = 64
BEAT_S = 5.0


@contextlib.contextmanager
def gateway_with_nodes(daemons: Daemons, count: int, backend_port: int) -> Iterator[Target]:
    """Run a gateway with `count` nodes of 8 instances each, all at the fake llama-server.

    Each node sends a heartbeat every 5 s in which a count of free slots has changed.
    """
    with daemons.empty_gateway(f"nodes-{count}") as gateway:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        for number in range(count):
            _post(connection, "/v1/nodes/register", node_report(number, backend_port))
        until_ready(gateway.port)
        with _heartbeats(connection, count):
            yield gateway


def node_report(number: int, backend_port: int, *, free: int = SLOTS) -> Mapping[str, Any]:
    """Return what a node registers with: 8 GPUs, each with a model of its own, all of one role."""
    names = [f"gpu{index}" for index in range(INSTANCES)]
    return {
        "node_id": f"node-{number}",
        "base_url": f"http://127.0.0.1:{backend_port}",
        "boot_id": f"boot-{number}",
        "models": [
            {
                "model_id": f"model-{name}",
                "roles": [ALIAS],
                "state": "ready",
                "usable": True,
                "context_size": 8192,
                "slots": SLOTS,
                "slots_free": free,
            }
            for name in names
        ],
        "instances": [
            {"instance": name, "state": "ready", "model_id": f"model-{name}"} for name in names
        ],
        "gpus": [{"index": index, "name": "bench"} for index in range(INSTANCES)],
    }


@contextlib.contextmanager
def _heartbeats(connection: http.client.HTTPConnection, count: int) -> Iterator[None]:
    """Send the nodes' heartbeats, evenly over the interval, for the length of the block."""
    ended = threading.Event()
    failures: list[Exception] = []

    def beat() -> None:
        try:
            for turn in itertools.count():
                for number in range(count):
                    if ended.wait(BEAT_S / count):
                        return
                    report = node_report(number, 0, free=SLOTS - turn % 2)
                    _post(connection, f"/v1/nodes/node-{number}/heartbeat", report)
        except (OSError, http.client.HTTPException, BenchError) as err:
            failures.append(err)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        connection.close()
    if failures:
        msg = f"a heartbeat failed: {failures[0]}"
        raise BenchError(msg)


def _post(connection: http.client.HTTPConnection, path: str, tree: Mapping[str, Any]) -> None:
    connection.request("POST", path, json.dumps(tree), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != 200:
        msg = f"POST {path} gave {reply.status}: {text[:200]!r}"
        raise BenchError(msg)
