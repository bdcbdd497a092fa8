"""The Pydantic AI framework, by chat completions."""

from typing import Any, Literal

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.integration.clients import session


class Weather(BaseModel):
    """Leaves the model no choice."""

    city: Literal["Paris"]
    degrees: Literal[21]


def agent(
    *,
    url: str = session.URL,
    key: str = session.KEY,
    model: str = session.MODEL,
    tools: bool = True,
    **options: Any,
) -> Any:
    """Return an agent, with a tool of its own if `tools`."""
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    chat_model = OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client))
    made = Agent(chat_model, instructions="Be brief.", **options)
    if tools:
        made.tool_plain(get_weather)
    return made


async def get_weather(city: str) -> str:
    """Degrees in a city."""
    return str(session.WEATHER[city])


async def answer() -> Any:
    return outcome(await agent().run(session.QUESTION))


async def answer_stream() -> Any:
    async with agent().run_stream(session.QUESTION) as result:
        said = [text async for text in result.stream_text(delta=True, debounce_by=None)]
    return said, outcome(result)


async def two_turns() -> Any:
    """The second question goes with all that was said and done for the first."""
    reporter = agent()
    first = await reporter.run(session.QUESTION)
    return outcome(await reporter.run("And now?", message_history=first.all_messages()))


async def structured() -> Any:
    reporter = agent(tools=False, output_type=NativeOutput(Weather))
    return (await reporter.run(session.QUESTION)).output


async def cancelled_stream() -> Any:
    talker = agent(url=session.ENDLESS_URL, model=session.ENDLESS_MODEL, tools=False)
    seen = []
    async with talker.run_stream(session.QUESTION) as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            seen.append(text)
            if len(seen) == 5:
                break
    return seen, await answer()


async def wrong_key() -> Any:
    return outcome(await agent(key="wrong").run(session.QUESTION))


async def unknown_model() -> Any:
    return outcome(await agent(model="nobody").run(session.QUESTION))


def outcome(result: Any) -> Any:
    """Return what came out of a run, what was said for it, and what it took."""
    usage = result.usage
    return {
        "messages": [
            (message.kind, [(part.part_kind, content(part)) for part in message.parts])
            for message in result.all_messages()
        ],
        "usage": [usage.requests, usage.tool_calls, usage.input_tokens, usage.output_tokens],
    }


def content(part: Any) -> Any:
    """Return what a part of a message says or calls."""
    if part.part_kind == "tool-call":
        return part.tool_name, part.args
    return part.content


if __name__ == "__main__":
    session.run(
        answer, answer_stream, two_turns, structured, cancelled_stream, wrong_key, unknown_model
    )
