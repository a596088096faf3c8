"""What was really sent, and when: one entry a request, the newest kept in memory.

All stamps are `time.monotonic_ns()` of the mock's process, which on Linux is the clock of every process
of the same boot. A stamp is taken immediately before the bytes are handed to the transport, so that no
client can have seen them earlier.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec


class Entry(msgspec.Struct, gc=False):
    """The truth about one request."""

    request_id: str
    """The client's `x-request-id`, or the one minted for it."""
    number: int
    """Requests are counted from 1 in order of arrival."""
    path: str
    protocol: str
    """`1.1` or `2`."""
    arrived_ns: int
    """When the request was complete, body included."""
    first_byte_ns: int = 0
    """When its first byte was read; inside TLS and on HTTP/2, when the library had read its head."""
    traceparent: str = ""
    """As the client sent it."""
    queued_ns: int | None = None
    """When it began to wait for the engine; None without an engine."""
    dequeued_ns: int | None = None
    """When the engine took it up; None if it never came so far."""
    prefill_end_ns: int | None = None
    """When the prompt was computed; without an engine, when the first token was due."""
    model: str = ""
    stream: bool = False
    status: int | None = None
    """None: no head was sent."""
    headers_ns: int | None = None
    chunk_ns: array[int] = msgspec.field(default_factory=lambda: array("q"))
    """When each token of a stream was handed over."""
    ended_ns: int | None = None
    """When the last byte was handed over, the connection broken, or the client found to be gone."""
    end: str = ""
    """`complete`, `reset`, `close`, `client_gone` or `shutdown`."""
    fault: str = ""
    """The injected fault as it is spelled, or empty."""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    """Tokens handed over."""
    lateness_max_ns: int = 0
    """The longest time by which the mock itself missed a due time of this answer."""


class Clock(msgspec.Struct, frozen=True):
    """What the stamps mean: one instant on both clocks, and the boot that the monotonic one belongs to."""

    wall_ns: int
    monotonic_ns: int
    boot_id: str


def read_clock() -> Clock:
    """Read both clocks, the wall between two monotonic reads."""
    before = time.monotonic_ns()
    wall_ns = time.time_ns()
    middle = (before + time.monotonic_ns()) // 2
    boot = Path("/proc/sys/kernel/random/boot_id")
    return Clock(wall_ns, middle, boot.read_text().strip() if boot.exists() else "")


class Log:
    """The finished requests in order of their ends; the oldest are forgotten first.

    Args:
        requests: how many are kept.
        stamps: how many chunk stamps are kept in all (8 bytes each).
    """

    def __init__(self, *, requests: int = 200_000, stamps: int = 16_000_000) -> None:
        self.clock = read_clock()
        self.forgotten = 0
        self._requests = requests
        self._stamps = stamps
        self._entries: deque[Entry] = deque()
        self._held = 0
        self._taken = 0
        self._follower: Callable[[Entry], None] | None = None
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode

    @property
    def next(self) -> int:
        """The position after the newest entry: what to ask for next."""
        return self.forgotten + len(self._entries)

    def append(self, entry: Entry) -> None:
        """Take a finished request."""
        if self._follower is not None:
            self._follower(entry)
        self._entries.append(entry)
        self._held += len(entry.chunk_ns)
        while len(self._entries) > self._requests or self._held > self._stamps:
            self._held -= len(self._entries.popleft().chunk_ns)
            self.forgotten += 1

    def follow(self, follower: Callable[[Entry], None]) -> None:
        """Call this with each entry that is kept, and from now on with each that comes."""
        for entry in self._entries:
            follower(entry)
        self._follower = follower

    def take_new(self) -> list[Entry]:
        """Those that have ended since this was last asked, but for the forgotten."""
        start = max(0, self._taken - self.forgotten)
        self._taken = self.next
        return list(islice(self._entries, start, None))

    def page(self, since: int, limit: int) -> tuple[bytes, int]:
        """Entries from position `since` on, as JSON lines, and the position after them."""
        start = max(0, since - self.forgotten)
        entries = list(islice(self._entries, start, start + limit))
        lines = b"".join(self._encode(entry) + b"\n" for entry in entries)
        return lines, self.forgotten + start + len(entries)

    def write(self, path: Path) -> None:
        """Write all that is kept: a line with the clock and the count of the forgotten, then the entries."""
        aside = path.with_name(path.name + ".part")
        with aside.open("wb") as file:
            head = {"clock": self.clock, "pid": os.getpid(), "forgotten": self.forgotten}
            file.write(self._encode(head) + b"\n")
            file.writelines(self._encode(entry) + b"\n" for entry in self._entries)
        aside.replace(path)


def _plain(value: object) -> Any:
    if isinstance(value, array):
        return value.tolist()
    raise NotImplementedError(type(value))
