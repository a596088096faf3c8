"""Requests that the mock puts to itself, by its own front door: lines of batches, tasks, realtime responses.

So they wait in the same queue, meet the same faults and limits and leave the same truth as a client's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

Application = Callable[[Any, Any], Awaitable[None]]
"""An RSGI application."""


class Scope(NamedTuple):
    """What an RSGI application is told of a request."""

    path: str
    headers: Mapping[str, str]
    http_version: str
    """Here what sort of request it is, for the truth log: `batch`, `task`, `realtime`."""
    method: str = "POST"
    proto: str = "http"
    rsgi_version: str = "1.6"
    server: str = "127.0.0.1:0"
    client: str = "127.0.0.1:0"
    """A port that no connection has: faults that break connections find none, and the answer just ends."""
    scheme: str = "http"
    query_string: str = ""
    authority: str | None = None


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def broken(self) -> bool:
        """Whether less came than was announced, or nothing."""
        announced = self.headers.get("content-length")
        return not self.body or (announced is not None and int(announced) != len(self.body))


class Exchange:
    """One request under way: the side of the protocol that a client's connection would be.

    Args:
        application: answers it.
        scope: the request.
        body: its body.
    """

    def __init__(self, application: Application, scope: Scope, body: bytes) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self._body = body
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._task = asyncio.ensure_future(application(scope, self))
        self._task.add_done_callback(lambda _: self._pieces.put_nowait(None))

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer's body as it is written; our own bugs come out here."""
        while (piece := await self._pieces.get()) is not None:
            yield piece
        await self._task

    async def whole(self) -> Answer:
        """The answer when it has ended."""
        body = b"".join([piece async for piece in self.pieces()])
        return Answer(self.status or 500, self.headers, body)

    def leave(self) -> None:
        """Give up, as a client that closes its connection."""
        self._gone.set()

    # -- what the application calls -----------------------------------------------------------------------

    async def __call__(self) -> bytes:
        """The request's body."""
        return self._body

    async def client_disconnect(self) -> None:
        """Return once the client is gone."""
        await self._gone.wait()

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None:
        """An answer without a body."""
        self.status, self.headers = status, dict(headers)

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """A whole answer."""
        self.response_empty(status, headers)
        self._pieces.put_nowait(body)

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Exchange:
        """An answer in pieces."""
        self.response_empty(status, headers)
        return self

    def send_bytes(self, piece: bytes) -> None:
        """One of them."""
        self._pieces.put_nowait(piece)


async def ask(application: Application, scope: Scope, body: bytes) -> Answer:
    """Put a request, and wait for its whole answer; cancelled, it leaves."""
    exchange = Exchange(application, scope, body)
    try:
        return await exchange.whole()
    finally:
        exchange.leave()
