"""Fixtures for flows through a whole gateway: those of the gateway's own tests."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.gateway.conftest import stack, start_gateway, start_upstream

__all__ = ["stack", "start_gateway", "start_upstream"]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run connections in TLS on both event loops, because each has TLS of its own."""
    own: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    both = {**own, "uvloop": uvloop.new_event_loop}
    return both if item.path.name == "test_tls_connections.py" else own
