"""A zero-delay, or exactly paced, chat server for measuring clients: one uvloop protocol, no framework.

    python benchmarks/reference_server.py --port 0 [--ttft-ms 200 --itl-ms 20] [--together] [--vary]
                                          [--no-truth]

Prints its URL first. A POST is answered with about 280 bytes of chat JSON; with `"stream":true` in
the body, with one SSE chunk a token, `max_tokens` of them (else --chunks), one write each, at
absolute due times. With --together, the chunks of a stream without pauses share a write, 64 at most,
and its stamp; with --vary, chunks differ in their text and in a padding, as OpenAI's do. `GET /__truth`
gives JSON lines, one a request: id, when its last byte was read, when each chunk was written; monotonic
nanoseconds, which processes of one machine share.

It shares no code with the harness, whose clients it judges. It stands in for reference_server.c where no
C compiler is: at 1,000 streams it is late itself, and without pauses uvloop joins the chunks it writes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from array import array
from typing import cast

import uvloop

now_ns = time.monotonic_ns

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-reference",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "reference",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "All work and no play."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 16, "completion_tokens": 8, "total_tokens": 24},
    }
).encode()


def _head(media_type: bytes, rest: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n\r\n" % (media_type, rest)


def _chunk(payload: bytes) -> bytes:
    event = b"data: %b\n\n" % payload
    return b"%x\r\n%b\r\n" % (len(event), event)


def _event(delta: dict[str, str], finish_reason: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {
        "id": "chatcmpl-reference",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "reference",
        "choices": [choice],
        **more,
    }
    return _chunk(json.dumps(chunk).encode())


JSON_ANSWER = _head(b"application/json", b"Content-Length: %d" % len(_ANSWER)) + _ANSWER
STREAM_HEAD = _head(b"text/event-stream", b"Transfer-Encoding: chunked")
TOKEN = _event({"content": "token "})
KINDS = 64
"""Chunks of a stream that differ before they come again."""
VARIED = [
    _event({"content": f"tok{kind:03}"}, obfuscation=f"{(kind + 1) * 2654435761 % 2**32:08x}")
    for kind in range(KINDS)
]
LAST_TOKEN = _event({"content": "token."}, "stop")
_DONE = _chunk(b"[DONE]") + b"0\r\n\r\n"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

TOGETHER = 64
"""Chunks in one write, where they may share one."""

_MAX_TOKENS = re.compile(rb'"max_tokens":\s*(\d+)')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nx-request-id:\s*([^\r]*)", re.IGNORECASE)


def _ending(tokens: int) -> bytes:
    usage = {"prompt_tokens": 16, "completion_tokens": tokens, "total_tokens": 16 + tokens}
    return _event({}, None, usage=usage) + _DONE


class Truth:
    """What was really received and sent, and when."""

    def __init__(self, *, kept: bool) -> None:
        self.kept = kept
        self.rows: list[tuple[bytes, int, array[int] | None]] = []

    def lines(self) -> bytes:
        """All rows as JSON lines; they are forgotten with that."""
        rows, self.rows = self.rows, []
        return b"".join(
            json.dumps({"id": i.decode(), "received_ns": r, "chunk_ns": list(c or ())}).encode() + b"\n"
            for i, r, c in rows
        )


class Server(asyncio.Protocol):
    """One connection; requests one after the other."""

    def __init__(self, truth: Truth, options: argparse.Namespace) -> None:
        self.truth = truth
        self.options = options
        self.each = TOGETHER if options.together and not options.itl_ms else 1
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from asyncio's

    def data_received(self, piece: bytes) -> None:
        """Gather one request."""
        buffer = self.buffer = self.buffer + piece if self.buffer else piece
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(buffer, 0, end + 2)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(buffer) < whole:
            return
        self.buffer = b""
        self.answer(buffer, end, now_ns())

    def answer(self, request: bytes, end: int, received_ns: int) -> None:
        """Answer a whole request; `end` is where its head ends."""
        if request.startswith(b"GET"):
            self.tell_truth(request)
            return
        streamed = request.find(b'"stream":true', end) >= 0 or request.find(b'"stream": true', end) >= 0
        stamps: array[int] | None = array("q") if streamed else None
        if self.truth.kept:
            found = _ID.search(request, 0, end)
            self.truth.rows.append((found[1] if found else b"", received_ns, stamps))
        if stamps is None:
            self.transport.write(JSON_ANSWER)
            return
        asked = _MAX_TOKENS.search(request, end)
        tokens = max(int(asked[1]), 1) if asked else self.options.chunks
        self.transport.write(STREAM_HEAD)
        if self.options.ttft_ms or self.options.itl_ms:
            self.pace(0, tokens, received_ns + int(self.options.ttft_ms * 1e6), stamps)
            return
        for index in range(0, tokens, self.each):
            self.write_tokens(index, tokens, stamps)

    def pace(self, index: int, tokens: int, first_ns: int, stamps: array[int]) -> None:
        """Write the tokens that are due, and come back for the next; late ones don't move the rest."""
        itl_ns = int(self.options.itl_ms * 1e6)
        while index < tokens:
            if self.transport.is_closing():
                return
            wait_ns = first_ns + index * itl_ns - now_ns()
            if wait_ns > 0:
                # uvloop's timers have a resolution of 1 ms and round down.
                delay_s = wait_ns / 1e9 if wait_ns > 1_000_000 else 0
                self.loop.call_later(delay_s, self.pace, index, tokens, first_ns, stamps)
                return
            self.write_tokens(index, tokens, stamps)
            index += self.each

    def write_tokens(self, index: int, tokens: int, stamps: array[int]) -> None:
        """One write of the next chunks; the last brings usage and the end marker with it."""
        count = min(self.each, tokens - index)
        last = index + count == tokens
        usual = range(index, index + count - last)
        pieces = b"".join(VARIED[at % KINDS] for at in usual) if self.options.vary else TOKEN * len(usual)
        if last:
            pieces += LAST_TOKEN + _ending(tokens)
        if self.truth.kept:
            stamps.extend([now_ns()] * count)
        self.transport.write(pieces)

    def tell_truth(self, request: bytes) -> None:
        """The truth log, or 404."""
        if not request.startswith(b"GET /__truth "):
            self.transport.write(_NOT_FOUND)
            return
        body = self.truth.lines()
        self.transport.write(_head(b"application/x-ndjson", b"Content-Length: %d" % len(body)) + body)


async def serve(options: argparse.Namespace) -> None:
    """Listen until killed."""
    truth = Truth(kept=options.truth)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Server(truth, options), options.host, options.port, backlog=4096
    )
    print(f"http://{options.host}:{server.sockets[0].getsockname()[1]}", flush=True)
    if options.spin:
        _spin(loop)
    async with server:
        await server.serve_forever()


def _spin(loop: asyncio.AbstractEventLoop) -> None:
    """Never sleep: else a client on this machine pays, with each send, for waking this process up."""
    loop.call_soon(_spin, loop)


def main() -> None:
    """Read the flags and serve."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=0)
    flags.add_argument("--ttft-ms", type=float, default=0)
    flags.add_argument("--itl-ms", type=float, default=0)
    flags.add_argument("--chunks", type=int, default=128, help="where the request has no max_tokens")
    flags.add_argument("--together", action="store_true", help="without pauses, many chunks a write")
    flags.add_argument("--vary", action="store_true", help="chunks differ in their text and in a padding")
    flags.add_argument("--spin", action="store_true", help="never sleep; wants a CPU of its own")
    flags.add_argument("--truth", action=argparse.BooleanOptionalAction, default=True)
    try:
        uvloop.run(serve(flags.parse_args()))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
