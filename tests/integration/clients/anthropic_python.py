"""The anthropic package: messages, streams, tools (its own tool runner too), and errors."""

from typing import Any

from anthropic import AsyncAnthropic, beta_async_tool

from tests.integration.clients import session

client = AsyncAnthropic(base_url=session.URL, api_key=session.KEY, max_retries=0)
asked: list[Any] = [{"role": "user", "content": session.QUESTION}]
common: dict[str, Any] = {"model": session.MODEL, "max_tokens": 200}
TOOLS: list[Any] = [
    {"name": "get_weather", "description": "Degrees in a city", "input_schema": session.CITY}
]


async def models() -> Any:
    return sorted([model.id async for model in client.models.list()])


async def message() -> Any:
    return await client.messages.create(messages=asked, **common)


async def message_with_details() -> Any:
    return await client.messages.create(
        messages=[
            *asked,
            {"role": "assistant", "content": "It is warm."},
            {"role": "user", "content": [{"type": "text", "text": "How warm?"}]},
        ],
        system=[
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        stop_sequences=["degrees"],
        **common,
    )


async def message_stream() -> Any:
    async with client.messages.stream(messages=asked, **common) as stream:
        events = [event async for event in stream]
        return events, await stream.get_final_message()


async def message_tools() -> Any:
    messages, answers = [*asked], []
    while True:
        answer = await client.messages.create(messages=messages, tools=TOOLS, **common)
        answers.append(answer)
        if answer.stop_reason != "tool_use":
            return answers
        messages += tool_turn(answer)


async def message_tools_stream() -> Any:
    messages, answers = [*asked], []
    while True:
        async with client.messages.stream(messages=messages, tools=TOOLS, **common) as stream:
            answer = await stream.get_final_message()
        answers.append(answer)
        if answer.stop_reason != "tool_use":
            return answers
        messages += tool_turn(answer)


def tool_turn(answer: Any) -> list[Any]:
    """Return the messages that follow a message with calls: itself, and the results."""
    results = [
        {
            "type": "tool_result",
            "tool_use_id": block.id,
            "content": str(session.WEATHER[block.input["city"]]),
        }
        for block in answer.content
        if block.type == "tool_use"
    ]
    return [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": results},
    ]


async def tool_runner() -> Any:
    """The package's own loop; it asks for /v1/messages?beta=true.

    Unless told not to, it leaves it to the server to remember what was said before; llama-server
    does not.
    """
    runner = client.beta.messages.tool_runner(
        messages=asked, tools=[beta_async_tool(get_weather)], thread=False, **common
    )
    return [message async for message in runner]


async def get_weather(city: str) -> str:
    """Degrees in a city."""
    return str(session.WEATHER[city])


async def count_tokens() -> Any:
    return await client.messages.count_tokens(model=session.MODEL, messages=asked)


async def cancelled_stream() -> Any:
    endless = client.with_options(base_url=session.ENDLESS_URL)
    stream = await endless.messages.create(
        model=session.ENDLESS_MODEL, messages=asked, max_tokens=4000, stream=True
    )
    async with stream:
        seen = [await anext(stream) for _ in range(5)]
    return seen, await message()


async def too_long() -> Any:
    messages: list[Any] = [{"role": "user", "content": session.TOO_LONG}]
    return await client.messages.create(messages=messages, **common)


async def wrong_key() -> Any:
    stranger = client.with_options(api_key="wrong")
    return await stranger.messages.create(messages=asked, **common)


async def bearer_key() -> Any:
    async with AsyncAnthropic(base_url=session.URL, auth_token=session.KEY) as bearer:
        return await bearer.messages.create(messages=asked, **common)


async def unknown_model() -> Any:
    return await client.messages.create(messages=asked, **{**common, "model": "nobody"})


if __name__ == "__main__":
    session.run(
        models,
        message,
        message_with_details,
        message_stream,
        message_tools,
        message_tools_stream,
        tool_runner,
        count_tokens,
        cancelled_stream,
        too_long,
        wrong_key,
        bearer_key,
        unknown_model,
    )
