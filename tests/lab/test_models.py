import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.lab.models import Shape, TinyModel, Vocabulary, make_model, write_model
from tests.lab.poll import eventually
from tests.lab.processes import Program

TOOL_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


class Chat:
    """Asks a real llama-server that serves one model on a UNIX socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.UnixConnector(path=str(self.socket), force_close=True)
        async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
            yield session

    async def is_healthy(self) -> bool:
        try:
            async with self.session() as session, session.get("/health") as reply:
                return reply.status == HTTPStatus.OK
        except aiohttp.ClientConnectionError:
            return False

    async def message(self, question: str, **body: Any) -> Any:
        return await self.answer([{"role": "user", "content": question}], **body)

    async def answer(self, messages: list[Any], **body: Any) -> Any:
        body["messages"] = messages
        async with (
            self.session() as session,
            session.post("/v1/chat/completions", json=body) as reply,
        ):
            return (await reply.json())["choices"][0]["message"]


@pytest.fixture
def serve(
    llama_server: Path, short_path: Path, start_program: Callable[..., Program]
) -> Callable[[TinyModel], Chat]:
    """Serve one model."""

    def start(model: TinyModel) -> Chat:
        socket = short_path / "http.sock"
        start_program([llama_server, "-m", make_model(model), "--host", socket, "--port", "1"])
        return Chat(socket)

    return start


async def loaded(chat: Chat) -> None:
    await eventually(chat.is_healthy, what="the model is loaded", deadline_s=60)


@pytest.mark.parametrize("question", ["hello", "What is a GPU? Tell me in two words.", "12 €"])
@pytest.mark.parametrize("temperature", [0, 0.8])
async def test_every_question_is_answered_with_the_sentence(
    serve: Callable[[TinyModel], Chat], question: str, temperature: float
) -> None:
    chat = serve(TinyModel(name="tiny", says="I know what I say"))
    await loaded(chat)
    answer = await chat.message(question, temperature=temperature)
    assert answer["content"] == "I know what I say"


async def test_a_looping_model_counts_round_and_round(
    serve: Callable[[TinyModel], Chat],
) -> None:
    chat = serve(TinyModel(name="loop", says=" ".join(map(str, range(50))), loop=True))
    await loaded(chat)
    answer = await chat.message("go", max_tokens=130)
    words = answer["content"].split()
    assert words == [str(number % 50) for number in range(len(words))]
    assert len(words) > 120


async def test_a_tool_call_that_is_said_is_one(serve: Callable[[TinyModel], Chat]) -> None:
    chat = serve(TinyModel(name="tool", says=TOOL_CALL))
    await loaded(chat)
    answer = await chat.message("weather in Paris", tools=[WEATHER_TOOL])
    (call,) = answer["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


async def test_a_call_is_said_for_each_result_and_then_the_sentence(
    serve: Callable[[TinyModel], Chat],
) -> None:
    calls = tuple(TOOL_CALL.replace("Paris", city) for city in ("Paris", "Rome"))
    chat = serve(TinyModel(name="calls", says="It is warm", calls=calls))
    await loaded(chat)
    assert (await chat.message("weather?"))["content"] == "It is warm"
    messages: list[Any] = [{"role": "user", "content": "weather?"}]
    for city in ("Paris", "Rome"):
        answer = await chat.answer(messages, tools=[WEATHER_TOOL])
        (call,) = answer["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": city}
        messages += [answer, {"role": "tool", "tool_call_id": call["id"], "content": "21"}]
    answer = await chat.answer(messages, tools=[WEATHER_TOOL])
    assert answer["content"] == "It is warm"
    messages += [answer, {"role": "user", "content": "And now?"}]
    (call,) = (await chat.answer(messages, tools=[WEATHER_TOOL]))["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_a_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = make_model(TinyModel(name="once"))
    made_at = path.stat().st_mtime_ns
    assert make_model(TinyModel(name="once")).stat().st_mtime_ns == made_at
    assert make_model(TinyModel(name="once", says="else")) != path


def test_a_big_model_is_about_as_big_as_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    write_model(TinyModel(name="big", big_mib=100), path)
    assert 80 < path.stat().st_size / 2**20 < 120


def test_a_sentence_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 63 words, at most 62"):
        write_model(TinyModel(name="long", says=" ".join("x" * 63)), tmp_path / "long.gguf")


def test_the_smallest_shape_is_the_default_one() -> None:
    assert Shape.of_size(0) == Shape()
    assert Shape.of_size(400).layers == 12


def test_each_word_of_a_sentence_gets_a_token_of_its_own() -> None:
    vocabulary = Vocabulary()
    chain = vocabulary.add_sentence("to be or not to be")
    assert len(set(chain)) == len(chain) == 6
    text = "".join(list(vocabulary.ids)[token] for token in chain)
    assert re.sub("Ġ+", " ", text) == "to be or not to be "


def test_a_call_takes_no_token_that_is_taken_and_says_what_it_is() -> None:
    vocabulary = Vocabulary()
    first = vocabulary.add_call(TOOL_CALL, taken=[])
    second = vocabulary.add_call(TOOL_CALL, taken=first)
    assert len({*first, *second}) == len(first) + len(second)
    names = list(vocabulary.ids)
    for chain in (first, second):
        text = "".join(names[token] for token in chain).replace("Ġ", " ").replace("Ċ", "\n")
        assert text.rstrip() == TOOL_CALL
