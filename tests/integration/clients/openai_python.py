"""The openai package: chat, responses, tools, structured output, embeddings, and errors."""

import json
from typing import Any, Literal

from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.integration.clients import session

client = AsyncOpenAI(base_url=f"{session.URL}/v1", api_key=session.KEY, max_retries=0)
asked: list[Any] = [{"role": "user", "content": session.QUESTION}]
TOOL = {"name": "get_weather", "description": "Degrees in a city", "parameters": session.CITY}
CHAT_TOOLS: list[Any] = [{"type": "function", "function": TOOL}]
RESPONSE_TOOLS: list[Any] = [{"type": "function", "strict": False, **TOOL}]


class Weather(BaseModel):
    """Leaves the model no choice."""

    city: Literal["Paris"]
    degrees: Literal[21]


async def models() -> Any:
    return sorted([model.id async for model in client.models.list()])


async def chat() -> Any:
    return await client.chat.completions.create(model=session.MODEL, messages=asked)


async def chat_with_details() -> Any:
    return await client.chat.completions.create(
        model=session.MODEL,
        messages=[{"role": "system", "content": "Be brief."}, *asked],
        n=2,
        logprobs=True,
        top_logprobs=2,
        max_tokens=4,
        seed=7,
        user="me",
    )


async def chat_stream() -> Any:
    stream = await client.chat.completions.create(
        model=session.MODEL, messages=asked, stream=True, stream_options={"include_usage": True}
    )
    return [chunk async for chunk in stream]


async def chat_tools() -> Any:
    messages, answers = [*asked], []
    while True:
        answer = await client.chat.completions.create(
            model=session.MODEL, messages=messages, tools=CHAT_TOOLS
        )
        answers.append(answer)
        if not answer.choices[0].message.tool_calls:
            return answers
        messages += [answer.choices[0].message, *chat_results(answer.choices[0].message)]


async def chat_tools_stream() -> Any:
    messages = [*asked]
    answers: list[Any] = []
    while True:
        async with client.chat.completions.stream(
            model=session.MODEL, messages=messages, tools=CHAT_TOOLS
        ) as stream:
            answers.append([event.type async for event in stream])
            message = (await stream.get_final_completion()).choices[0].message
        answers.append(message)
        if not message.tool_calls:
            return answers
        messages += [message, *chat_results(message)]


def chat_results(message: Any) -> list[Any]:
    """Return the results of the tools that a message calls."""
    return [
        {"role": "tool", "tool_call_id": call.id, "content": degrees(call.function.arguments)}
        for call in message.tool_calls
    ]


def degrees(arguments: str) -> str:
    """Return what the tool answers."""
    return str(session.WEATHER[json.loads(arguments)["city"]])


async def chat_parsed() -> Any:
    answer = await client.chat.completions.parse(
        model=session.MODEL, messages=asked, response_format=Weather
    )
    return answer.choices[0].message.parsed


async def text() -> Any:
    return await client.completions.create(model=session.MODEL, prompt=["hello", "test"])


async def text_stream() -> Any:
    stream = await client.completions.create(model=session.MODEL, prompt="hello", stream=True)
    return [chunk async for chunk in stream]


async def response() -> Any:
    return await client.responses.create(model=session.MODEL, input=session.QUESTION)


async def response_stream() -> Any:
    stream = await client.responses.create(model=session.MODEL, input=session.QUESTION, stream=True)
    return [event async for event in stream]


async def response_tools() -> Any:
    said: list[Any] = [*asked]
    answers = []
    while True:
        answer = await client.responses.create(
            model=session.MODEL, input=said, tools=RESPONSE_TOOLS, store=False
        )
        answers.append(answer)
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            return answers
        said += [item.model_dump(exclude_none=True) for item in answer.output]
        said += [
            {
                "type": "function_call_output",
                "call_id": call.call_id,
                "output": degrees(call.arguments),
            }
            for call in calls
        ]


async def response_parsed() -> Any:
    answer = await client.responses.parse(
        model=session.MODEL, input=session.QUESTION, text_format=Weather
    )
    return answer.output_parsed


async def response_tokens() -> Any:
    return await client.responses.input_tokens.count(model=session.MODEL, input=session.QUESTION)


async def response_continued() -> Any:
    return await client.responses.create(
        model=session.MODEL, input="And now?", previous_response_id="resp_0"
    )


async def embeddings() -> Any:
    async with AsyncOpenAI(
        base_url=f"{session.EMBEDDINGS_URL}/v1", api_key=session.KEY
    ) as embedder:
        return await embedder.embeddings.create(
            model=session.EMBEDDINGS_MODEL, input=["hello model", "test"]
        )


async def cancelled_stream() -> Any:
    endless = client.with_options(base_url=f"{session.ENDLESS_URL}/v1")
    stream = await endless.chat.completions.create(
        model=session.ENDLESS_MODEL, messages=asked, stream=True
    )
    async with stream:
        seen = [await anext(stream) for _ in range(5)]
    return seen, await chat()


async def image() -> Any:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages: list[Any] = [{"role": "user", "content": [picture]}]
    return await client.chat.completions.create(model=session.MODEL, messages=messages)


async def too_long() -> Any:
    messages: list[Any] = [{"role": "user", "content": session.TOO_LONG}]
    return await client.chat.completions.create(model=session.MODEL, messages=messages)


async def wrong_key() -> Any:
    stranger = client.with_options(api_key="wrong")
    return await stranger.chat.completions.create(model=session.MODEL, messages=asked)


async def unknown_model() -> Any:
    return await client.chat.completions.create(model="nobody", messages=asked)


if __name__ == "__main__":
    session.run(
        models,
        chat,
        chat_with_details,
        chat_stream,
        chat_tools,
        chat_tools_stream,
        chat_parsed,
        text,
        text_stream,
        response,
        response_stream,
        response_tools,
        response_parsed,
        response_tokens,
        response_continued,
        embeddings,
        cancelled_stream,
        image,
        too_long,
        wrong_key,
        unknown_model,
    )
