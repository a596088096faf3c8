"""A remote worker's log reaches the master in numbered, acknowledged pieces.

    worker: Outbox.put ── piece(n) ──► master: Inbox.take, in order ── ack(n) ──► Outbox.acknowledge

The pieces are the bytes that the worker also writes to its own folder, so the master's copy is the same
file. A piece that was not acknowledged in time is sent again; one that came twice is acknowledged again
and thrown away; one that came too early waits for those before it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

RESEND_S = 2.0
_FILE = re.compile(r"(records|samples|ledger)-\d+\.(arrows|jsonl|json)")


class Outbox:
    """The worker's side: keeps each piece until the master has it.

    Args:
        send: hands one message to the transport, which may lose it.
        now_s: a monotonic clock, in seconds.
    """

    def __init__(
        self, send: Callable[[dict[str, Any]], None], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._now_s = now_s
        self._number = 0
        self._unacknowledged: dict[int, tuple[float, dict[str, Any]]] = {}

    def put(self, file: str, piece: bytes) -> None:
        """Send the next piece of a file."""
        message = {"n": self._number, "file": file, "piece": piece}
        self._number += 1
        self._post(message)

    def acknowledge(self, number: int) -> None:
        """The master has this piece."""
        self._unacknowledged.pop(number, None)

    def resend(self) -> None:
        """Send again what was not acknowledged in time."""
        overdue = [m for sent_s, m in self._unacknowledged.values() if self._now_s() - sent_s >= RESEND_S]
        for message in overdue:
            self._post(message)

    @property
    def empty(self) -> bool:
        """The master has everything."""
        return not self._unacknowledged

    def flush(self, patience_s: float) -> bool:
        """Wait until the master has everything; False if the patience ended first."""
        end_s = self._now_s() + patience_s
        while not self.empty and self._now_s() < end_s:
            gevent.sleep(0.02)
            self.resend()
        return self.empty

    def _post(self, message: dict[str, Any]) -> None:
        self._unacknowledged[message["n"]] = (self._now_s(), message)
        self._send(message)


class Inbox:
    """The master's side, for one worker: appends the pieces in order.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun: set[str] = set()
        """Files of this worker's; what a start that was called off has left of them goes."""
        self._next = 0
        self._early: dict[int, dict[str, Any]] = {}

    def take(self, message: dict[str, Any]) -> int:
        """Keep one piece; the number to acknowledge."""
        number: int = message["n"]
        if number >= self._next:
            self._early[number] = message
        while self._next in self._early:
            self._append(self._early.pop(self._next))
            self._next += 1
        return number

    def _append(self, message: dict[str, Any]) -> None:
        name: str = message["file"]
        if _FILE.fullmatch(name) is None:
            return  # a worker may write its log here, and nothing else
        with (self._folder / name).open("ab" if name in self._begun else "wb") as file:
            file.write(message["piece"])
        self._begun.add(name)
