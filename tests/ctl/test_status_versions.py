"""`status --versions`, for people and for programs."""

import json

from tests.ctl.conftest import Ctl, Host
from tests.ctl.test_versions import instance, node
from tests.fakes.operator_api import OperatorApi

BUSY = instance(version="0.1.0", requests=2, instance="gpu1", build="0.7.0", program_changed=True)
OLDER = {"node_id": "oldbox", "version": "0.1.0", "host": {}, "instances": []}
STATUS = {
    "version": "0.1.0",
    "installed_version": "0.2.0",
    "nodes": [node(instance(), BUSY), OLDER],
}


def test_people_see_who_runs_what_and_how_it_gets_restarted(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = STATUS
    done = ask("status", "--versions")
    assert done.lines == [
        "NODE    PART                  RUNS                 INSTALLED            IS       RESTART",
        "-       rolemesh-gateway      0.1.0                0.2.0                old      now",
        "box     rolemesh-node-agent   0.2.0                0.2.0                current  -",
        "box     rolemesh-llama@gpu0   0.2.0                0.2.0                current  -",
        "box     llama-server of gpu0  0.8.0 (build 12001)  0.8.0 (build 12001)  current  -",
        "box     rolemesh-llama@gpu1   0.1.0                0.2.0                old      after its 2 requests",
        "box     llama-server of gpu1  0.7.0                0.8.0 (build 12001)  old      after its 2 requests",
        "oldbox  rolemesh-node-agent   0.1.0                -                    unknown  -",
        "",
        "systemctl reload rolemesh-gateway  # on the gateway's host",
        "rolemeshctl drain box/gpu1 --wait && rolemeshctl undrain box/gpu1",
    ]
    assert done.err == (
        "this mesh is of several versions, which work together: "
        "0.1.0 on the gateway, oldbox; 0.2.0 on box\n"
        "oldbox: rolemesh-node-agent unknown: 0.1.0 does not tell what is installed\n"
    )


def test_programs_get_every_part(ask: Ctl, gateway: OperatorApi) -> None:
    gateway.replies["GET status"] = STATUS
    parts = json.loads(ask("status", "--versions", "--json").out)["parts"]
    assert len(parts) == 7
    assert parts[5] == {
        "node_id": "box",
        "instance": "gpu1",
        "part": "llama-server",
        "runs": "0.7.0",
        "installed": "0.8.0 (build 12001)",
        "is_old": True,
        "why_unknown": "",
        "requests": 2,
        "when": "after its 2 requests",
        "how": "rolemeshctl drain box/gpu1 --wait && rolemeshctl undrain box/gpu1",
    }


def test_where_there_is_no_gateway_this_hosts_agents_tell(ctl: Ctl, host: Host) -> None:
    host.agent("node", {**node(instance()), "models": []})
    done = ctl("status", "--versions")
    assert done.status == 0
    assert [line.split()[1] for line in done.lines[1:]] == [
        "rolemesh-node-agent",
        "rolemesh-llama@gpu0",
        "llama-server",
    ]
    assert done.err.startswith("only this host's: ")


def test_a_gateway_that_was_named_and_is_not_there_is_an_error(ctl: Ctl, host: Host) -> None:
    host.agent("node", {**node(), "models": []})
    assert ctl("status", "--versions", "--url", "http://127.0.0.1:9").status == 3
