"""Fixtures for tests that ask a whole gateway."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.upstream import Script, Upstream, upstream
from tests.gateway.harness import DISCOVERED, Running, running_gateway

StartGateway = Callable[..., Awaitable[Running]]
StartUpstream = Callable[..., Awaitable[Upstream]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Hold what a test starts; the last started ends first."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start_gateway(stack: AsyncExitStack, tmp_path: Path) -> StartGateway:
    """Start a gateway: await start_gateway(models=...); by default coder is discovered."""

    async def start(**configuration: Any) -> Running:
        whole: Mapping[str, Any] = {"models": {"coder": DISCOVERED}, **configuration}
        return await stack.enter_async_context(running_gateway(tmp_path, whole))

    return start


@pytest.fixture
def start_upstream(stack: AsyncExitStack) -> StartUpstream:
    """Start a scripted upstream: await start_upstream(script, ...)."""

    async def start(*scripts: Script, **options: Any) -> Upstream:
        return await stack.enter_async_context(upstream(*scripts, **options))

    return start
