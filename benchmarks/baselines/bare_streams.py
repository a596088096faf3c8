"""Streams read by next to nothing: one thread, epoll and recv, each read stamped and its events counted.

No HTTP is parsed, nothing is checked and no record is kept: what this costs, the kernel and Python cost.
The BASELINE_ variables are those of fasthttp_streams.py; the URL is the only argument.
"""

import json
import os
import select
import socket
import sys
from collections import deque
from pathlib import Path
from time import monotonic_ns
from urllib.parse import urlsplit

BODY = os.environ["BASELINE_BODY"].encode()
STREAMS = int(os.environ["BASELINE_STREAMS"])
RAMP_S = float(os.environ["BASELINE_RAMP_S"])
ADDRESS = urlsplit(sys.argv[1])
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    "x-request-id: bare-{number}\r\ncontent-length: {length}\r\n\r\n"
)
LAST = b"data: [DONE]"


def begin(number: int) -> tuple[socket.socket, int]:
    """Connect and send one request; the socket, and when it began."""
    started_ns = monotonic_ns()
    connection = socket.create_connection((str(ADDRESS.hostname), ADDRESS.port or 80), timeout=10)
    connection.setblocking(False)
    head = HEAD.format(host=ADDRESS.netloc, number=number, length=len(BODY))
    connection.send(head.encode() + BODY)
    return connection, started_ns


def main() -> None:
    """Begin each stream in its turn, and read them all to their ends."""
    poll, begun_ns = select.epoll(), monotonic_ns()
    waiting = deque(begun_ns + round(RAMP_S * 1e9 * number / STREAMS) for number in range(STREAMS))
    started: list[int] = []
    reading: dict[int, tuple[socket.socket, list[int]]] = {}
    stamps: list[list[int]] = []
    ended = 0
    while ended < STREAMS:
        while waiting and waiting[0] <= monotonic_ns():
            waiting.popleft()
            connection, started_ns = begin(len(started))
            started.append(started_ns)
            stamps.append([])
            reading[connection.fileno()] = connection, stamps[-1]
            poll.register(connection, select.EPOLLIN)
        for descriptor, _ in poll.poll(max(0.0, (waiting[0] - monotonic_ns()) / 1e9) if waiting else None):
            connection, seen_ns = reading[descriptor]
            data = connection.recv(65536)
            seen_ns += [monotonic_ns()] * data.count(b'"content"')
            if not data or LAST in data:
                ended += 1
                poll.unregister(descriptor)
                connection.close()
    rows = (
        json.dumps({"id": f"bare-{number}", "started_ns": started_ns, "chunk_ns": seen_ns})
        for number, (started_ns, seen_ns) in enumerate(zip(started, stamps, strict=True))
    )
    Path(os.environ["BASELINE_OUT"]).write_text("\n".join(rows))


if __name__ == "__main__":
    main()
