"""The request path of a node."""

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rolemesh.config.settings import ClientKey, Timeouts
from rolemesh.names import ModelId
from rolemesh.runtime.keys import digest_of
from tests.agent.builders import desired, model, node_settings
from tests.agent.stage import TOKEN, AgentStage, open_agent
from tests.lab.poll import eventually

SETTINGS = node_settings(model("a", parallel=2), "b")
GPU0 = desired("gpu0")


async def ask(
    stage: AgentStage,
    name: str = "a",
    *,
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] | None = None,
    **body: Any,
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    tree = {"model": name, **body}
    async with stage.http.post(path, json=tree, headers=headers) as response:
        return response.status, await response.json(), response.headers


async def test_a_request_loads_its_model_and_is_relayed_to_its_instance(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        sent = {"X-Request-Id": "r-1"}
        status, answer, headers = await ask(stage, headers=sent, messages=[])
        assert (status, answer) == (200, {"object": "chat.completion"})
        assert headers["X-RoleMesh-Node"] == "box"
        assert headers["X-RoleMesh-Instance"] == "gpu0"
        assert headers["X-RoleMesh-Model"] == "a"
        assert headers["X-Request-Id"] == "r-1"
        ((path, seen, body),) = stage.llama.requests
        assert path == "/v1/chat/completions"
        assert seen["x-request-id"] == "r-1"
        assert body.items() >= {"model": "a", "messages": []}.items()
        assert stage.fleet.snapshot().instances[0].slots_held == 0


async def test_the_body_reaches_the_llama_server_byte_for_byte(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        text = b'{ "model":"a", "x": 1.0, "\\u00e4": [ ] }'
        async with stage.http.post("/v1/embeddings", data=text) as response:
            assert response.status == 200
        headers = stage.llama.requests[0][1]
        assert headers["content-length"] == str(len(text))


async def test_a_plain_answer_that_may_be_long_is_assembled_from_a_stream(
    short_path: Path,
) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        choices = [{"index": 0, "text": text, "finish_reason": None} for text in ("He", "llo")]
        stage.llama.events = [{"object": "text_completion", "choices": [each]} for each in choices]
        status, answer, headers = await ask(stage, path="/completions", prompt="x")
        assert (status, answer["choices"][0]["text"]) == (200, "Hello")
        assert headers["Content-Type"] == "application/json; charset=utf-8"
        assert headers["X-RoleMesh-Instance"] == "gpu0"
        ((path, _, body),) = stage.llama.requests
        assert path == "/v1/completions"
        assert body["stream"] is True


async def test_a_short_plain_answer_is_asked_for_as_it_is(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        await ask(stage, messages=[], max_tokens=16)
        ((_, _, body),) = stage.llama.requests
        assert body == {"model": "a", "messages": [], "max_tokens": 16}


async def test_an_error_in_the_middle_of_a_plain_answer_is_its_answer(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rolemesh.agent.inference")
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        error = {"error": {"code": 500, "message": "Context size has been exceeded."}}
        stage.llama.events = [{"choices": [{"index": 0, "text": "He"}]}, error]
        status, answer, _ = await ask(stage, path="/v1/completions", prompt="x")
        assert (status, answer) == (500, error)
    (record,) = (vars(record)["rolemesh_fields"] for record in caplog.records)
    assert (record["status"], record["reason"]) == (500, "llama-server's own answer")


async def test_a_full_model_answers_slots_busy_and_slots_come_back(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.llama.hold.clear()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(ask(stage, n=2))
            await eventually(lambda: stage.llama.requests, what="a request is under way")
            status, answer, headers = await ask(stage)
            assert (status, answer["error"]["code"]) == (503, "slots_busy")
            assert "Retry-After" in headers
            stage.llama.hold.set()
            assert (await running)[0] == 200
        assert (await ask(stage))[0] == 200


async def test_what_takes_no_slot_never_waits_for_one(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        # It loads a cold model like any other.
        assert (await ask(stage, path="/tokenize", content="x"))[0] == 200
        stage.llama.hold.clear()
        async with asyncio.TaskGroup() as group:
            both = group.create_task(ask(stage, n=2))
            await eventually(lambda: len(stage.llama.requests) == 2, what="all slots taken")
            counting = group.create_task(ask(stage, path="/v1/messages/count_tokens", messages=[]))
            await eventually(lambda: len(stage.llama.requests) == 3, what="the other, too")
            (instance,) = stage.fleet.snapshot().instances
            assert (instance.slots_held, instance.view.leases) == (2, 2)
            stage.llama.hold.set()
        assert (both.result()[0], counting.result()[0]) == (200, 200)


async def test_many_texts_are_embedded_a_few_at_a_time(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        one = {"index": 0, "embedding": [0.5]}
        stage.llama.answer = {"object": "list", "usage": {"total_tokens": 1}, "data": [one]}
        texts = [str(number) for number in range(20)]
        status, answer, headers = await ask(stage, path="/v1/embeddings", input=texts)
        # Two slots take eight texts at once.
        assert [body["input"] for _, _, body in stage.llama.requests] == [
            texts[:8],
            texts[8:16],
            texts[16:],
        ]
        assert (status, answer["usage"]) == (200, {"total_tokens": 3})
        assert [result["index"] for result in answer["data"]] == [0, 8, 16]
        assert headers["X-RoleMesh-Instance"] == "gpu0"


async def test_no_more_texts_are_asked_for_once_the_client_has_left(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        assert (await ask(stage, path="/tokenize"))[0] == 200
        stage.llama.hold.clear()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(ask(stage, path="/v1/embeddings", input=["x"] * 100))
            await eventually(lambda: len(stage.llama.requests) == 2, what="the first texts asked")
            asking.cancel()
        await eventually(lambda: stage.llama.left == 1, what="llama-server is left")
        (instance,) = stage.fleet.snapshot().instances
        assert (instance.slots_held, len(stage.llama.requests)) == (0, 2)


async def test_a_refusal_of_some_texts_is_that_of_all(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.llama.status, stage.llama.answer = 400, {"error": {"message": "no"}}
        status, answer, _ = await ask(stage, path="/rerank", query="q", documents=["x"] * 100)
        assert (status, answer) == (400, {"error": {"message": "no"}})
        assert len(stage.llama.requests) == 1


async def test_an_operator_s_own_path_is_asked_of_llama_server(short_path: Path) -> None:
    settings = replace(SETTINGS, paths={"/infill": 2})
    async with open_agent(short_path, settings, GPU0) as stage:
        assert (await ask(stage, path="/infill", input_prefix="x"))[0] == 200
        ((path, _, body),) = stage.llama.requests
        assert (path, body) == ("/infill", {"model": "a", "input_prefix": "x"})


async def test_a_message_is_assembled_and_its_errors_are_in_anthropic_s_shape(
    short_path: Path,
) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.llama.events = [
            {"type": "message_start", "message": {"id": "1", "usage": {"input_tokens": 3}}},
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": "Hi"},
            },
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}},
            {"type": "message_stop"},
        ]
        status, answer, _ = await ask(stage, path="/messages", messages=[])
        assert (status, answer) == (
            200,
            {
                "id": "1",
                "usage": {"input_tokens": 3, "output_tokens": 1},
                "content": [{"type": "text", "text": "Hi"}],
            },
        )
        status, answer, _ = await ask(stage, "unknown", path="/v1/messages", messages=[])
        assert (status, answer["type"], answer["error"]["type"]) == (
            404,
            "error",
            "not_found_error",
        )


async def test_the_instance_that_is_asked_for_answers_if_it_can(short_path: Path) -> None:
    both = (desired("gpu0", "a"), desired("gpu1", "a"))
    async with open_agent(short_path, SETTINGS, *both) as stage:
        stage.llama.hold.clear()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(ask(stage, headers={"X-RoleMesh-Instance": "gpu0"}))
            await eventually(lambda: stage.llama.requests, what="a request is under way")
            # More slots are free on gpu1 now.
            second = group.create_task(ask(stage, headers={"X-RoleMesh-Instance": "gpu0"}))
            await eventually(lambda: len(stage.llama.requests) == 2, what="the other, too")
            stage.llama.hold.set()
        for answered in (first, second):
            status, _, headers = await answered
            assert (status, headers["X-RoleMesh-Instance"]) == (200, "gpu0")
        status, _, headers = await ask(stage, headers={"X-RoleMesh-Instance": "no such"})
        assert (status, headers["X-RoleMesh-Instance"]) == (200, "gpu0")


async def test_a_client_that_leaves_frees_its_slot_and_ends_the_generation(
    short_path: Path,
) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.llama.hold.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(stage), timeout=0.5)
        await eventually(lambda: stage.llama.left, what="llama-server saw it leave")
        assert stage.fleet.snapshot().instances[0].slots_held == 0


async def test_the_gateway_says_how_long_to_wait_for_a_load(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.units.hold.clear()
        status, answer, _ = await ask(stage, headers={"X-RoleMesh-Load-Wait": "0.05"})
        assert (status, answer["error"]["reason"]) == (503, "loading")
        stage.units.hold.set()


@pytest.mark.parametrize("text", ["soon", "-1", "nan", ""])
def test_a_load_wait_that_is_no_time_is_refused(text: str, short_path: Path) -> None:
    async def scenario() -> None:
        async with open_agent(short_path, SETTINGS, GPU0) as stage:
            status, answer, _ = await ask(stage, headers={"X-RoleMesh-Load-Wait": text})
            assert status == 400
            assert "X-RoleMesh-Load-Wait" in answer["error"]["message"]

    asyncio.run(scenario())


async def test_a_load_wait_beyond_what_anybody_waits_is_no_mistake(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        assert (await ask(stage, headers={"X-RoleMesh-Load-Wait": "86400"}))[0] == 200


@pytest.mark.parametrize("limit", ["first_byte_s", "total_s"])
async def test_a_direct_client_is_bounded_and_a_gateway_bounds_itself(
    limit: str, short_path: Path
) -> None:
    bounds = replace(Timeouts(), **{limit: 0.2})
    async with open_agent(short_path, SETTINGS, GPU0, bounds=bounds) as stage:
        stage.llama.hold.clear()
        token = {"Authorization": f"Bearer {TOKEN}"}
        async with asyncio.TaskGroup() as group:
            by_gateway = group.create_task(ask(stage, headers=token))
            await eventually(lambda: stage.llama.requests, what="the gateway's is under way")
            status, answer, _ = await ask(stage)  # which is the later one, and over first
            assert (status, answer["error"]["timeout"]) == (504, limit)
            assert not by_gateway.done()
            stage.llama.hold.set()
            assert (await by_gateway)[0] == 200


async def test_errors_say_what_is_wrong_with_the_model(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        status, answer, _ = await ask(stage, "unheard-of")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        status, answer, _ = await ask(stage, "")
        assert (status, answer["error"]["param"]) == (400, "model")
        stage.units.failing[ModelId("b")] = "out of memory"
        status, answer, _ = await ask(stage, "b")
        assert (status, answer["error"]["reason"]) == (503, "failed")
        assert "out of memory" in answer["error"]["message"]


async def test_an_answer_of_the_llama_server_passes_even_when_it_is_an_error(
    short_path: Path,
) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        stage.llama.status = 501
        stage.llama.answer = {"error": {"message": "no embeddings here"}}
        status, answer, headers = await ask(stage, path="/v1/embeddings", input="x")
        assert (status, answer) == (501, stage.llama.answer)
        assert headers["X-RoleMesh-Instance"] == "gpu0"


async def test_an_instance_that_does_not_answer_is_a_bad_gateway(short_path: Path) -> None:
    gpu1 = desired("gpu1", "b")
    async with open_agent(short_path, SETTINGS, GPU0, gpu1) as stage:
        status, answer, _ = await ask(stage, "b")  # nobody listens at the socket of gpu1
        assert (status, answer["error"]["code"]) == (502, "connect_failed")


async def test_with_keys_the_token_and_own_keys_are_let_in(short_path: Path) -> None:
    keys = (ClientKey(name="ci", digest=digest_of("sesame")),)
    async with open_agent(short_path, replace(SETTINGS, auth=keys), GPU0) as stage:
        assert (await ask(stage))[0] == 401
        for key in ("sesame", TOKEN):
            status, _, _ = await ask(stage, headers={"Authorization": f"Bearer {key}"})
            assert status == 200


async def test_a_foreign_page_is_refused(short_path: Path) -> None:
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        status, _, _ = await ask(stage, headers={"Origin": "https://evil.example"})
        assert status == 403
        assert stage.llama.requests == []


async def test_every_request_leaves_one_record(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rolemesh.agent.inference")
    async with open_agent(short_path, SETTINGS, GPU0) as stage:
        await ask(stage, headers={"X-Request-Id": "good"}, messages=["secret"])
        await ask(stage, "unheard-of", headers={"X-Request-Id": "bad"})
        stage.llama.hold.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(stage, headers={"X-Request-Id": "gone"}), timeout=0.3)
        await eventually(lambda: len(caplog.records) >= 3, what="three records")
    records = {
        fields["request_id"]: fields
        for fields in (vars(record)["rolemesh_fields"] for record in caplog.records)
    }
    assert records["good"]["status"] == 200
    assert records["good"]["instance"] == "gpu0"
    phases = [records[each]["phase"] for each in ("good", "bad", "gone")]
    assert phases == ["done", "queue", "upstream"]
    assert records["good"]["node"] == "box"
    assert re.search(r"^\S+ on gpu0: 200 in \d+ ms$", caplog.records[0].getMessage())
    assert records["good"]["total_ms"] >= records["good"]["first_byte_ms"]
    assert (records["bad"]["status"], records["gone"]["status"]) == (404, 499)
    assert "secret" not in caplog.text
