"""What the client's hot paths cost: framing, HTTP parsing, JSON; on one core, without a socket."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from harness.client import target
from harness.client.answer import Stream
from harness.client.call import Call, prepare
from harness.client.dialects import DIALECTS
from harness.client.exchange import Exchange, Limits
from harness.client.http1 import Connection
from harness.client.sse import EventStream
from harness.workload.prompts import Request

CHUNKS = 256
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"token "},"finish_reason":null}]}\n\n'
)
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"All work and no play."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":16,"completion_tokens":8,"total_tokens":24}}'
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LIMITS = Limits(10**12, 10**12, 10**12)
TARGET = target.parse("http://127.0.0.1:9")


def asked(*, stream: bool = False) -> Request:
    kind = "stream" if stream else "completion"
    prompt = "word " * 64
    return Request(
        1, 0, "r-1", "", 0, kind, "chat", "m", prompt, None, 16, stream, {"temperature": 0.5}, 64, {}
    )


class _OpenTransport:
    """Stands for the socket, so that only the parsing is measured."""

    open = drained = True
    floor_ns = 0
    taker = None

    def alive(self) -> bool:
        return True

    def write(self, payload: bytes) -> bool:
        return bool(payload)

    def close(self) -> None:
        raise AssertionError("the response must leave the connection open")


@pytest.fixture
def started(monkeypatch):
    """A connection with a request under way: call it for the exchange; feed `read`."""
    connection, transport = Connection(TARGET), _OpenTransport()
    monkeypatch.setattr("harness.client.http1.connect", lambda *_, **__: transport)
    monkeypatch.setattr(Exchange, "wait", lambda _: None)

    def start(call: Call) -> Exchange:
        exchange = Exchange(LIMITS, 1, Stream(call) if call.streams else None)
        connection.exchange(exchange, call)
        return exchange

    def read(piece: bytes, stamp_ns: int) -> None:
        if transport.taker is None or not transport.taker.takes(piece, stamp_ns):
            connection.on_bytes(piece, stamp_ns)

    start.read = read
    return start


def test_bench_sse_one_event_a_piece(benchmark):
    def parse() -> int:
        parser = EventStream()
        return sum(len(parser.feed(EVENT, stamp_ns)) for stamp_ns in range(CHUNKS))

    assert benchmark(parse) == CHUNKS


def test_bench_sse_cut_anywhere(benchmark):
    stream = EVENT * CHUNKS
    cuts = [0, *sorted(random.Random(1).sample(range(len(stream)), CHUNKS)), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(cuts)]

    def parse() -> int:
        parser = EventStream()
        return sum(len(parser.feed(piece)) for piece in pieces)

    assert benchmark(parse) == CHUNKS


def test_bench_http_whole_answer(benchmark, started):
    call = prepare(asked(), TARGET)

    def answer() -> int | None:
        exchange = started(call)
        started.read(RESPONSE, 2)
        return exchange.status

    assert benchmark(answer) == 200


@pytest.mark.parametrize("alike", [True, False])
def test_bench_http_streamed_chunks(benchmark, started, alike):
    events = [EVENT if alike else EVENT.replace(b"17000", b"%d" % (17_000 + n)) for n in range(CHUNKS)]
    chunks = [b"%x\r\n%b\r\n" % (len(each), each) for each in events]
    call = prepare(asked(stream=True), TARGET)

    def answer() -> int:
        exchange = started(call)
        started.read(STREAM_HEAD, 2)
        for stamp_ns, chunk in enumerate(chunks):
            started.read(chunk, stamp_ns)
        started.read(b"0\r\n\r\n", 3)
        exchange.digest()
        return len(exchange.digester.chunk_ns)

    assert benchmark(answer) == CHUNKS


def test_bench_json_encode(benchmark):
    request = asked(stream=True)
    assert benchmark(DIALECTS["chat"].encode, request).startswith(b'{"messages"')


def test_bench_json_decode_event(benchmark):
    assert benchmark(DIALECTS["chat"].decode_event, EVENT[6:-2]).content


def test_bench_prepare(benchmark):
    assert benchmark(prepare, asked(), TARGET).trace_id
