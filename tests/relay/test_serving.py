import asyncio

import pytest

from tests.fakes.client import ask, connected
from tests.fakes.serving import echo, serving


async def test_after_the_block_nobody_is_accepted_but_who_is_there_stays() -> None:
    async with serving(echo) as served:
        assert (await ask(served.port, "/completions", b"a")).status == 200
        port = served.port
    with pytest.raises(ConnectionRefusedError):
        async with connected(port):
            await asyncio.sleep(0)
