"""The truth of all of a mock's processes, from whichever of them is asked.

Each listens on a Unix socket of its own for one question, `since limit`, and answers with a line of JSON
and its entries. Positions of several logs are written with dots: `12.0.7`.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from harness.mock.truth import Log


class Page(NamedTuple):
    """Entries of all logs."""

    lines: bytes
    """In order of their ends."""
    next: list[int]
    """The position after them in each log."""
    forgotten: int


class _Head(msgspec.Struct):
    next: int
    forgotten: int
    size: int


class _Ended(msgspec.Struct):
    ended_ns: int | None = None


_ended = msgspec.json.Decoder(_Ended).decode


class Siblings:
    """One process's view of all.

    Args:
        folder: holds the sockets.
        log: this process's.
        worker: which of them this is, from 0.
        workers: how many there are.
    """

    def __init__(self, folder: Path, log: Log, *, worker: int, workers: int) -> None:
        self._folder = folder
        self._log = log
        self._worker = worker
        self._workers = workers

    async def listen(self) -> None:
        """Begin to answer the others."""
        # Kept, for a server that nobody refers to may be collected, and its socket closed.
        self._server = await asyncio.start_unix_server(self._tell, self._path(self._worker))

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
        told = await asyncio.gather(*(self._ask(worker, at, limit) for worker, at in enumerate(since)))
        lines = in_order(lines.splitlines(keepends=True) for _, lines in told)
        heads = [head for head, _ in told]
        return Page(b"".join(lines), [head.next for head in heads], sum(head.forgotten for head in heads))

    def _path(self, worker: int) -> Path:
        return self._folder / f"{worker}.sock"

    async def _ask(self, worker: int, since: int, limit: int) -> tuple[_Head, bytes]:
        reader, writer = await asyncio.open_unix_connection(self._path(worker))
        writer.write(f"{since} {limit}\n".encode())
        head = msgspec.json.decode(await reader.readline(), type=_Head)
        lines = await reader.readexactly(head.size)
        writer.close()
        return head, lines

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        since, limit = map(int, (await reader.readline()).split())
        lines, after = self._log.page(since, limit)
        writer.write(msgspec.json.encode(_Head(after, self._log.forgotten, len(lines))) + b"\n" + lines)
        await writer.drain()
        writer.close()


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
