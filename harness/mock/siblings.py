"""What a mock of several processes knows as one, from whichever of them is asked.

Each listens on a Unix socket for the others' questions: for its truth, for its counts, and for requests about
what one process keeps for all, the first: files, batches, tasks. A question is a line of JSON, and a body
where it has one; so is an answer. Positions of several logs are written with dots: `12.0.7`.
"""

from __future__ import annotations

import asyncio
import heapq
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from harness.mock import inward, metrics
from harness.mock.truth import Log

KEEPER = 0
"""The process that keeps files, batches and tasks."""
_LONGEST_LINE = 1 << 20
_UNANSWERED = "a process of this mock has ended"


class Page(NamedTuple):
    """Entries of all logs."""

    lines: bytes
    """In order of their ends."""
    next: list[int]
    """The position after them in each log."""
    forgotten: int


class _Truth(msgspec.Struct, tag="truth"):
    """Entries from a position on."""

    since: int
    limit: int


class _Counts(msgspec.Struct, tag="counts"):
    """What `/metrics` is made of."""


class Request(msgspec.Struct, tag="request"):
    """A client's request to another process."""

    path: str
    method: str
    headers: dict[str, str]
    http_version: str
    scheme: str
    query_string: str
    authority: str | None
    size: int
    """Of its body, in bytes."""


class _Head(msgspec.Struct, omit_defaults=True):
    """What comes before an answer's bytes."""

    size: int
    next: int = 0
    forgotten: int = 0
    status: int = 0
    headers: dict[str, str] = {}


class _Ended(msgspec.Struct):
    ended_ns: int | None = None


_ended = msgspec.json.Decoder(_Ended).decode
_Question = _Truth | _Counts | Request
_read_question = msgspec.json.Decoder(_Question).decode
_read_head = msgspec.json.Decoder(_Head).decode
_read_counts = msgspec.json.Decoder(metrics.Counts).decode
_write = msgspec.json.encode


def listeners(folder: Path, workers: int) -> list[socket.socket]:
    """A listening socket for each process, made before any of them runs: so all can ask from the start."""
    made = []
    for worker in range(workers):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(_path(folder, worker)))
        listener.listen()
        made.append(listener)
    return made


class Siblings:
    """One process's view of all. Asking raises OSError or EOFError if one of them is gone.

    Args:
        folder: holds the sockets.
        listener: this process's socket.
        workers: how many there are.
        log: this process's.
        application: this process's front door.
        counts: what this process has counted.
    """

    def __init__(
        self,
        folder: Path,
        listener: socket.socket,
        *,
        workers: int,
        log: Log,
        application: inward.Application,
        counts: Callable[[], metrics.Counts],
    ) -> None:
        self._folder = folder
        self._listener = listener
        self._workers = workers
        self._log = log
        self._application = application
        self._count = counts

    async def listen(self) -> None:
        """Begin to answer the others."""
        # Kept, for a server that nobody refers to may be collected, and its socket closed.
        self._server = await asyncio.start_unix_server(self._tell, sock=self._listener, limit=_LONGEST_LINE)

    def positions(self, since: str) -> list[int] | None:
        """A position of all logs: `0`, or one of each; None if it is neither."""
        parts = since.split(".")
        if not all(part.isdecimal() for part in parts):
            return None
        if len(parts) == 1 and int(parts[0]) == 0:
            return [0] * self._workers
        return [int(part) for part in parts] if len(parts) == self._workers else None

    async def page(self, since: list[int], limit: int) -> Page:
        """Entries of all logs from these positions on, so many of each at most."""
        told = await asyncio.gather(
            *(self._ask(worker, _Truth(at, limit)) for worker, at in enumerate(since))
        )
        lines = in_order(lines.splitlines(keepends=True) for _, lines in told)
        heads = [head for head, _ in told]
        return Page(b"".join(lines), [head.next for head in heads], sum(head.forgotten for head in heads))

    async def counts(self) -> list[metrics.Counts]:
        """What each process has counted."""
        told = await asyncio.gather(*(self._ask(worker, _Counts()) for worker in range(self._workers)))
        return [_read_counts(counted) for _, counted in told]

    async def pass_on(self, request: Request, body: bytes) -> inward.Answer:
        """The answer of the process that keeps files, batches and tasks."""
        head, answer = await self._ask(KEEPER, request, body)
        return inward.Answer(head.status, head.headers, answer)

    async def _ask(self, worker: int, question: _Question, body: bytes = b"") -> tuple[_Head, bytes]:
        path = _path(self._folder, worker)
        reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST_LINE)
        try:
            writer.write(_write(question) + b"\n" + body)
            await writer.drain()
            line = await reader.readline()
            if not line:
                raise EOFError(_UNANSWERED)
            head = _read_head(line)
            return head, await reader.readexactly(head.size)
        finally:
            writer.close()

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = await reader.readline()
            if question:  # None came from who went down in the middle of asking.
                head, answer = await self._answer(_read_question(question), reader)
                writer.write(_write(head) + b"\n" + answer)
                await writer.drain()
        finally:
            writer.close()

    async def _answer(self, question: _Question, reader: asyncio.StreamReader) -> tuple[_Head, bytes]:
        match question:
            case _Truth(since=since, limit=limit):
                lines, after = self._log.page(since, limit)
                return _Head(len(lines), next=after, forgotten=self._log.forgotten), lines
            case _Counts():
                counted = _write(self._count())
                return _Head(len(counted)), counted
            case Request(size=size):
                told = await inward.ask(
                    self._application, _scope(question), await reader.readexactly(size) if size else b""
                )
                return _Head(len(told.body), status=told.status, headers=told.headers), told.body


def _scope(request: Request) -> inward.Scope:
    return inward.Scope(
        request.path,
        request.headers,
        request.http_version,
        method=request.method,
        scheme=request.scheme,
        query_string=request.query_string,
        authority=request.authority,
    )


def _path(folder: Path, worker: int) -> Path:
    return folder / f"{worker}.sock"


def in_order(logs: Iterable[Iterable[bytes]]) -> Iterable[bytes]:
    """The lines of several logs, each in order of its entries' ends, as one."""
    return heapq.merge(*logs, key=lambda line: _ended(line).ended_ns or 0)


def merge(parts: list[Path], path: Path) -> None:
    """Make one file of the processes' truth files, and remove them."""
    opened = [part.open("rb") for part in parts]
    try:
        heads = [msgspec.json.decode(file.readline()) for file in opened]
        head = heads[0] | {"forgotten": sum(each["forgotten"] for each in heads)}
        with path.open("wb") as merged:
            merged.write(msgspec.json.encode(head) + b"\n")
            merged.writelines(in_order(opened))
    finally:
        for file in opened:
            file.close()
    for part in parts:
        part.unlink()
