"""The agent as a program."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rolemesh.agent.instance_files import MAX_SOCKET_PATH_BYTES
from tests.fakes.gateway import FakeGateway, fake_gateway
from tests.fakes.unix_http import ask_at
from tests.lab import mesh
from tests.lab.mesh import running_daemon
from tests.lab.notify import NotifySocket
from tests.lab.poll import eventually
from tests.lab.processes import Finished, free_port, run_to_end

AGENT = "rolemesh-node-agent"


def node(folder: Path, **others: Any) -> dict[str, Any]:
    absent = {"path": str(folder / "no-llama-server")}
    return {"node_id": "box", "llama_server": absent, **others}


def model(path: Path, model_id: str) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "path": str(path),
        "roles": ["planner"],
        "context_size": 512,
        "args": ["-t", "1"],
    }


async def test_with_nothing_at_all_it_runs_and_says_what_is_missing(
    short_path: Path, notify_socket: NotifySocket
) -> None:
    async with running_daemon(
        AGENT, short_path, node(short_path), environment=notify_socket.environment
    ) as agent:
        status, answer = await mesh.get_json(f"{agent.url}/ready")
        assert (status, answer["missing"]) == (503, ["no model is configured (models:)"])
        ready = await notify_socket.ready()
        assert "missing: no model is configured (models:)" in ready.fields["STATUS"]
        assert "1 instance (cpu0 cold)" in ready.fields["STATUS"]
    assert notify_socket.values("STOPPING") == ["1"]


async def test_without_a_llama_server_and_a_model_file_it_names_both(short_path: Path) -> None:
    models = [model(short_path / "gone.gguf", "a")]
    async with running_daemon(AGENT, short_path, node(short_path, models=models)) as agent:
        _, answer = await mesh.get_json(f"{agent.url}/ready")
        said = "\n".join(answer["missing"])
        assert "no-llama-server does not exist" in said
        assert "gone.gguf does not exist" in said
        status, answer = await mesh.post_json(
            f"{agent.url}/v1/chat/completions", {"model": "a", "messages": []}
        )
        assert (status, answer["error"]["reason"]) == (503, "unusable")


async def test_it_registers_and_leaves(short_path: Path) -> None:
    async with fake_gateway(FakeGateway()) as gateway:
        tree = node(short_path, gateways=[{"url": gateway.url}])
        async with running_daemon(AGENT, short_path, tree) as agent:
            await eventually(lambda: gateway.reports, what="the node registered")
            assert gateway.reports[0].base_url == agent.url
        assert gateway.removed == ["box"]


async def test_its_token_opens_it_where_it_has_keys(short_path: Path) -> None:
    async with fake_gateway(FakeGateway()) as gateway:
        tree = node(short_path, gateways=[{"url": gateway.url}], auth={"api_keys": ["sesame"]})
        async with running_daemon(AGENT, short_path, tree) as agent:
            await eventually(lambda: gateway.reports, what="the node registered")
            token = gateway.reports[0].api_key
            assert (await mesh.get_json(f"{agent.url}/v1/models"))[0] == 401
            for key in ("sesame", token):
                assert (await mesh.get_json(f"{agent.url}/v1/models", key=key))[0] == 200


async def test_a_reload_is_followed_and_a_bad_one_refused(short_path: Path) -> None:
    async with running_daemon(AGENT, short_path, node(short_path)) as agent:
        agent.drop_in("60-model.yaml", {"models": [model(short_path / "gone.gguf", "a")]})
        agent.program.send(signal.SIGHUP)
        await agent.program.line("reloaded: 1 model")
        agent.drop_in("70-bad.yaml", "models: 5\n")
        agent.program.send(signal.SIGHUP)
        await agent.program.line("reload refused")
        _, listing = await mesh.get_json(f"{agent.url}/v1/models")
        assert [each["id"] for each in listing["rolemesh"]["unavailable_models"]] == ["a"]


async def test_a_real_model_is_loaded_answers_and_goes_with_the_agent(
    short_path: Path, llama_server: Path, make_model: Callable[..., Path]
) -> None:
    tree = node(
        short_path,
        llama_server={"path": str(llama_server)},
        models=[model(make_model("tiny-a"), "tiny-a")],
        instances={"cpu0": {"model": "tiny-a"}},
    )
    async with running_daemon(AGENT, short_path, tree) as agent:
        status, answer = await mesh.post_json(
            f"{agent.url}/v1/chat/completions",
            {"model": "tiny-a", "messages": [{"role": "user", "content": "hi"}]},
        )
        assert status == 200
        assert "tiny-a" in answer["choices"][0]["message"]["content"]
        assert (await mesh.instances(agent))["cpu0"]["state"] == "ready"
    assert not agent.program.processes()


async def start_another(folder: Path, *, state: Path, **environment: str) -> Finished:
    """Start an agent of another node_id at another port, which is expected to end at once."""
    (folder / "other.d").mkdir()
    mesh.write_drop_in(folder / "other.d", "50-test.yaml", node(folder) | {"node_id": "other"})
    return await run_to_end(
        [
            *(str(mesh.PROGRAMS / AGENT), f"--config-dir={folder / 'other.d'}"),
            *(f"--state-dir={state}", f"--port={free_port()}"),
        ],
        environment=environment,
    )


async def test_a_second_agent_in_a_state_directory_ends_and_leaves_the_first_alone(
    short_path: Path,
) -> None:
    async with running_daemon(AGENT, short_path, node(short_path)) as agent:
        sockets = set((agent.state / "run-box").iterdir())
        done = await start_another(short_path, state=agent.state)
        assert done.status == 1
        said = f"the agent with pid {agent.program.pid} uses {agent.state} already"
        assert said in done.stderr
        assert "--state-dir" in done.stderr
        assert set((agent.state / "run-box").iterdir()) == sockets
        assert not (agent.state / "run-other").exists()
        assert await mesh.answers(agent)


async def test_a_second_agent_in_a_runtime_directory_ends_too(short_path: Path) -> None:
    shared = {"ROLEMESH_RUNTIME_DIRECTORY": str(short_path / "run")}
    async with running_daemon(AGENT, short_path, node(short_path), environment=shared) as agent:
        done = await start_another(short_path, state=short_path / "other", **shared)
        assert done.status == 1
        said = f"the agent with pid {agent.program.pid} uses {short_path / 'run'} already"
        assert said in done.stderr
        assert "ROLEMESH_RUNTIME_DIRECTORY" in done.stderr


async def test_a_runtime_directory_that_is_too_long_ends_the_start(short_path: Path) -> None:
    long = short_path / ("x" * MAX_SOCKET_PATH_BYTES)
    (short_path / "conf.d").mkdir()
    mesh.write_drop_in(short_path / "conf.d", "50-test.yaml", node(short_path))
    done = await run_to_end(
        [
            *(str(mesh.PROGRAMS / AGENT), f"--config-dir={short_path / 'conf.d'}"),
            *(f"--state-dir={short_path / 'state'}", f"--port={free_port()}"),
        ],
        environment={"ROLEMESH_UNIT_CONTROL": "child", "ROLEMESH_RUNTIME_DIRECTORY": str(long)},
    )
    assert done.status == 1
    assert "too long a path for UNIX sockets" in done.stderr


async def test_operators_of_this_machine_reach_it_by_its_control_socket(short_path: Path) -> None:
    control = short_path / "rolemesh" / "node" / "control.sock"
    tree = node(short_path, auth={"api_keys": ["sesame"]})
    environment = {"XDG_RUNTIME_DIR": str(short_path)}
    async with running_daemon(AGENT, short_path / "agent", tree, environment=environment):
        status, answer = await ask_at(control, "GET", "/v1/node")
        assert (status, answer["node_id"]) == (200, "box")
        status, answer = await ask_at(control, "POST", "/v1/node/gpus/renumber")
        assert (status, answer) == (200, {"renumbered": {}})
    assert not control.exists()


async def test_a_reload_by_the_control_socket_says_what_came_of_it(short_path: Path) -> None:
    control = short_path / "rolemesh" / "node" / "control.sock"
    environment = {"XDG_RUNTIME_DIR": str(short_path)}
    async with running_daemon(
        AGENT, short_path / "agent", node(short_path), environment=environment
    ) as agent:
        status, answer = await ask_at(control, "POST", "/v1/rolemesh/reload")
        assert (status, answer["status"], answer["generation"]) == (200, "reloaded", 2)
        bad = agent.drop_in("70-bad.yaml", "listen: {prt: 1}\n")
        status, answer = await ask_at(control, "POST", "/v1/rolemesh/reload")
        assert status == 422
        (problem,) = answer["error"]["problems"]
        assert (problem["where"], problem["key"]) == (f"{bad}:1", "listen.prt")
        assert (await mesh.post_json(f"{agent.url}/v1/rolemesh/reload", {}))[0] == 404
