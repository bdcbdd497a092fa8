"""The process that this one takes over from, and that lets its last requests end then."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Self

from rolemesh import __version__
from rolemesh.errors import StartError
from rolemesh.runtime.fd_store import PassedSocket
from rolemesh.runtime.handover import START_S, VARIABLE, refusal_fields
from rolemesh.runtime.message_channel import Message, MessageChannel

INHERIT_S: Final = 5.0
"""How long the sockets may be on their way; they were sent before this process was started."""

RELOAD_S: Final = 2.0
"""How long a reload waits for the other process to follow it."""

Told = Mapping[str, Any]
"""What a process says of the requests that end there, in the words of its daemon."""


class Predecessor:
    """The other process; `on_told` learns what that says of its requests, and at its end {}.

    `locks` are the descriptors of locked files by name, which both processes hold.
    """

    def __init__(
        self,
        channel: MessageChannel,
        sockets: tuple[PassedSocket, ...] = (),
        locks: Mapping[str, int] | None = None,
    ) -> None:
        self.sockets = sockets
        self.locks = locks or {}
        self.told: Told = {}
        self.on_told: Callable[[Told], None] | None = None
        self.is_gone = False
        self._reloaded = asyncio.Event()
        self._channel = channel

    @classmethod
    def found(cls, environment: MutableMapping[str, str]) -> Self | None:
        """Return it, or None: this process was started by somebody else.

        Takes the variable out of `environment`, and that process's output for its own. Raises
        StartError when there is nothing to take over.
        """
        number = environment.pop(VARIABLE, "")
        if not number.isdecimal():
            return None
        try:
            channel = MessageChannel(socket.socket(fileno=int(number)))
            inherited = channel.receive_now(INHERIT_S)
        except OSError as err:
            msg = f"nobody is there to take over from ({VARIABLE}): {err.strerror or err}"
            raise StartError(msg) from err
        if inherited is None or inherited.say != "inherit" or len(inherited.fds) < 2:
            channel.close()
            msg = f"there is nothing to take over ({VARIABLE})"
            raise StartError(msg)
        _take_output(inherited.fds[:2])
        names = [str(name) for name in inherited.fields.get("names", ())]
        first_lock = 2 + len(names)
        return cls(
            channel,
            _sockets(names, inherited.fds[2:first_lock]),
            dict(zip(inherited.fields.get("locks", ()), inherited.fds[first_lock:], strict=False)),
        )

    async def prepared(self) -> None:
        """Tell that this process can begin; return once the state files are its own."""
        self._channel.send("prepared")
        self._take(await self._expect("proceed"))

    async def accepting(self) -> None:
        """Tell that this process accepts; return once the manager knows it as the main one."""
        self._channel.send("accepting", version=__version__)
        await self._expect("yours")

    def refused(self, error: BaseException) -> None:
        """Tell why this process cannot take over."""
        self._channel.send("refused", **refusal_fields(error))

    async def reload(self) -> None:
        """Have it follow the configuration, as far as it concerns requests under way.

        Somebody has to `watch` meanwhile.
        """
        if self.is_gone:
            return
        self._reloaded.clear()
        self._channel.send("reload")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELOAD_S):
                await self._reloaded.wait()

    def stop(self, within_s: float) -> None:
        """Have it end, its requests within so long."""
        self._channel.send("stop", within_s=within_s)

    async def watch(self) -> None:
        """Return once it has ended."""
        while (message := await self._channel.receive()) is not None:
            if message.say == "told":
                self._take(message)
            elif message.say == "reloaded":
                self._reloaded.set()
        self.is_gone = True
        self._reloaded.set()
        self._channel.close()
        self._take(Message(say="told", fields={}))

    async def _expect(self, say: str) -> Message:
        try:
            async with asyncio.timeout(START_S):
                message = await self._channel.receive()
                while message is not None and message.say == "told":
                    self._take(message)
                    message = await self._channel.receive()
        except TimeoutError:
            message = None
        if message is None or message.say != say:
            self._channel.close()
            msg = "the process to take over from has gone on without this one"
            raise StartError(msg)
        return message

    def _take(self, message: Message) -> None:
        told = message.fields.get("told", {})
        self.told = told if isinstance(told, Mapping) else {}
        if self.on_told is not None:
            self.on_told(self.told)


def _take_output(fds: tuple[int, ...]) -> None:
    for number, fd in zip((1, 2), fds, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def _sockets(names: list[str], fds: tuple[int, ...]) -> tuple[PassedSocket, ...]:
    found = []
    for name, fd in zip(names, fds, strict=False):
        each = socket.socket(fileno=fd)
        each.setblocking(False)  # noqa: FBT003  # its only parameter
        found.append(PassedSocket(name=name, socket=each))
    return tuple(found)
