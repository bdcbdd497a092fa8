"""OpenAI's agents framework, by the responses API (its default) and by chat completions."""

from typing import Any, Literal

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.integration.clients import session

client = AsyncOpenAI(base_url=f"{session.URL}/v1", api_key=session.KEY, max_retries=0)
set_tracing_disabled(True)  # traces would go to OpenAI


class Weather(BaseModel):
    """Leaves the model no choice."""

    city: Literal["Paris"]
    degrees: Literal[21]


def get_weather(city: str) -> str:
    """Degrees in a city."""
    return str(session.WEATHER[city])


def agent(
    kind: type[Any], *, model: str = session.MODEL, tools: bool = True, **options: Any
) -> Any:
    """Return an agent that asks by the responses API or by chat completions."""
    return Agent(
        name="reporter",
        instructions="Be brief.",
        model=kind(model=model, openai_client=client),
        tools=[function_tool(get_weather)] if tools else [],
        **options,
    )


async def by_responses() -> Any:
    return outcome(await Runner.run(agent(OpenAIResponsesModel), session.QUESTION))


async def by_responses_stream() -> Any:
    return await streamed(Runner.run_streamed(agent(OpenAIResponsesModel), session.QUESTION))


async def by_chat() -> Any:
    return outcome(await Runner.run(agent(OpenAIChatCompletionsModel), session.QUESTION))


async def by_chat_stream() -> Any:
    return await streamed(Runner.run_streamed(agent(OpenAIChatCompletionsModel), session.QUESTION))


async def two_turns() -> Any:
    """The second question goes with all that was said and done for the first."""
    reporter = agent(OpenAIChatCompletionsModel)
    first = await Runner.run(reporter, session.QUESTION)
    again = [*first.to_input_list(), {"role": "user", "content": "And now?"}]
    return outcome(first), outcome(await Runner.run(reporter, again))


async def structured() -> Any:
    reporter = agent(OpenAIChatCompletionsModel, tools=False, output_type=Weather)
    return (await Runner.run(reporter, session.QUESTION)).final_output


async def cancelled_stream() -> Any:
    endless = OpenAIChatCompletionsModel(
        model=session.ENDLESS_MODEL,
        openai_client=client.with_options(base_url=f"{session.ENDLESS_URL}/v1"),
    )
    result = Runner.run_streamed(Agent(name="talker", model=endless), session.QUESTION)
    seen = []
    async for event in result.stream_events():
        seen.append(event.type)
        if len(seen) == 5:
            result.cancel()
            break
    return seen, await by_chat()


async def wrong_key() -> Any:
    stranger = OpenAIChatCompletionsModel(
        model=session.MODEL, openai_client=client.with_options(api_key="wrong")
    )
    return outcome(await Runner.run(Agent(name="stranger", model=stranger), session.QUESTION))


async def unknown_model() -> Any:
    return outcome(await Runner.run(agent(OpenAIResponsesModel, model="nobody"), session.QUESTION))


def outcome(result: Any) -> Any:
    """Return what came out of a run, and what it took."""
    usage = result.context_wrapper.usage
    return {
        "final_output": result.final_output,
        "items": [(item.type, item.raw_item) for item in result.new_items],
        "usage": [usage.requests, usage.input_tokens, usage.output_tokens],
    }


async def streamed(result: Any) -> Any:
    """Return all events of a run, and what came out of it."""
    events = [
        event.data if event.type == "raw_response_event" else event.type
        async for event in result.stream_events()
    ]
    return events, outcome(result)


if __name__ == "__main__":
    session.run(
        by_responses,
        by_responses_stream,
        by_chat,
        by_chat_stream,
        two_turns,
        structured,
        cancelled_stream,
        wrong_key,
        unknown_model,
    )
