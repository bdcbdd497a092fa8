"""Which parts are old, and how they are restarted."""

from typing import Any

import pytest

from rolemesh.ctl.versions import Part, parts_of

HOST = {"installed_version": "0.2.0", "installed_build": "0.8.0 (build 12001)"}


def instance(**fields: Any) -> dict[str, Any]:
    return {
        "instance": "gpu0",
        "state": "ready",
        "model_id": "coder",
        "assigned_model_id": None,
        "pinned": False,
        "version": "0.2.0",
        "version_problem": None,
        "build": "0.8.0 (build 12001)",
        "program_changed": False,
        "requests": 0,
        **fields,
    }


def node(*instances: dict[str, Any], **fields: Any) -> dict[str, Any]:
    its = {"node_id": "box", "version": "0.2.0", "host": HOST, "instances": list(instances)}
    return {**its, **fields}


def parts(*instances: dict[str, Any], **fields: Any) -> list[Part]:
    """Return the agent's part, then those of its instances."""
    return list(parts_of({"nodes": [node(*instances, **fields)]}))


def test_every_part_of_the_mesh_is_listed() -> None:
    status = {"version": "0.2.0", "installed_version": "0.2.0", "nodes": [node(instance())]}
    found = [(part.node_id, part.part, part.instance, part.is_old) for part in parts_of(status)]
    assert found == [
        (None, "rolemesh-gateway", None, False),
        ("box", "rolemesh-node-agent", None, False),
        ("box", "rolemesh-llama", "gpu0", False),
        ("box", "llama-server", "gpu0", False),
    ]
    assert {part.how for part in parts_of(status)} == {""}


def test_a_daemon_that_is_not_what_is_installed_is_old() -> None:
    (gateway,) = parts_of({"version": "0.1.0", "installed_version": "0.2.0"})
    assert (gateway.is_old, gateway.when) == (True, "now")
    assert gateway.how == "systemctl reload rolemesh-gateway"
    (rebuilt,) = parts(host={**HOST, "program_replaced": True})
    assert (rebuilt.runs, rebuilt.installed, rebuilt.is_old) == ("0.2.0", "0.2.0", True)
    (agent,) = parts(version="0.3.0")  # what is installed was rolled back
    assert (agent.is_old, agent.how) == (True, "systemctl restart rolemesh-node-agent")


@pytest.mark.parametrize(
    ("fields", "when", "more"),
    [
        ({}, "now: idle", ""),
        ({"requests": 1}, "after its 1 request", ""),
        ({"requests": 3, "pinned": True, "assigned_model_id": "coder"}, "after its 3 requests, pinned", ""),
        ({"pinned": True}, "now: idle, pinned", " && rolemeshctl load coder --on gpu0 --node box"),
    ],
)  # fmt: skip
def test_an_old_instance_is_restarted_when_it_is_idle(
    fields: dict[str, Any], when: str, more: str
) -> None:
    _, llama, server = parts(instance(version="0.1.0", **fields))
    assert (llama.is_old, llama.when) == (True, when)
    assert llama.how == "rolemeshctl drain box/gpu0 --wait && rolemeshctl undrain box/gpu0" + more
    assert (server.is_old, server.how) == (False, "")


def test_a_replaced_llama_server_makes_its_instance_old() -> None:
    _, llama, server = parts(instance(build="0.7.0 (build 11669)", program_changed=True))
    assert (llama.is_old, llama.how) == (False, "")
    assert (server.is_old, server.runs, server.installed) == (
        *(True, "0.7.0 (build 11669)"),
        "0.8.0 (build 12001)",
    )
    assert server.how.startswith("rolemeshctl drain box/gpu0 --wait")


def test_what_is_about_to_go_needs_nobody() -> None:
    _, llama, _ = parts(instance(version="0.1.0", state="draining"))
    assert (llama.when, llama.how) == ("at its next load, which comes by itself", "")


def test_what_does_not_run_is_no_part() -> None:
    assert len(parts(instance(state="stopped"), instance(state="failed"))) == 1


def test_what_older_daemons_do_not_tell_is_unknown() -> None:
    old = instance(version="0.1.0")
    del old["program_changed"]
    status = {"version": "0.1.0", "nodes": [node(old, version="0.1.0", host={})]}
    gateway, agent, llama, server = parts_of(status)
    assert {each.is_old for each in (gateway, agent, llama, server)} == {None}
    assert gateway.why_unknown == "0.1.0 does not tell what is installed"
    assert server.why_unknown == "the agent, 0.1.0, does not tell"


def test_files_that_are_gone_are_said_to_be() -> None:
    (agent,) = parts(host={"installed_version": None})
    assert agent.why_unknown == "its files are gone: it was removed, or Python is another one now"
    (nameless,) = parts(version="", host={})
    assert nameless.why_unknown == "it does not tell its version"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"version_problem": "/run/x has format 2"}, "/run/x has format 2"),
        ({"state": "loading"}, "it is loading"),
        ({}, "it cannot be told from what is installed"),
    ],
)
def test_what_is_not_known_has_a_reason(fields: dict[str, Any], why: str) -> None:
    _, llama, server = parts(instance(version=None, program_changed=None, **fields))
    assert (llama.is_old, llama.why_unknown) == (None, why)
    assert (server.is_old, server.why_unknown) == (None, why)
