"""Claims about requests from start to end: each fault becomes its outcome, each attempt its record."""

from __future__ import annotations

import gzip
import random
import zlib
from datetime import UTC, datetime

import gevent
import msgspec
import pytest
from scripted import (
    CHAT_BODY,
    DONE,
    Peer,
    answers,
    attempt,
    call_to,
    chunk,
    chunked,
    event,
    http,
    patient,
    request,
    serving,
    unheard,
)

from harness.client import target
from harness.client.answer import retry_after_s
from harness.client.call import prepare
from harness.client.exchange import Exchange, Limits, is_noise
from harness.client.http1 import Connection
from harness.client.send import sender
from harness.clock import now_ns
from harness.errors import ConfigError
from harness.record import Outcome, Record, Usage
from harness.workload.scenario import Retries, Seconds

OK = http("200 OK", CHAT_BODY, b"Content-Type: application/json")
END = event("", finish="stop")
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'


def judged(response: bytes, *, hang: bool = False, reset: bool = False, **changes) -> Record:
    """The record of one request that is answered with these bytes, and then with silence, RST or FIN."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(response)
        if hang:
            peer.until_gone()
        elif reset:
            gevent.sleep(0.005)  # RST would throw away what the client has not read yet
            peer.reset()

    rules = patient(idle=0.05) if hang else None
    with serving(script) as server:
        return attempt(server.url, rules=rules, **changes)


def test_a_whole_answer_is_ok_with_usage_and_finish_reason():
    record = judged(OK)
    assert (record.outcome, record.error, record.status) == (Outcome.OK, "", 200)
    assert record.finish_reason == "stop"
    assert record.usage == Usage(prompt=9, completion=3, cached=4, reasoning=1)
    assert record.chunk_ns == ()
    assert record.first_event_ns is None


def test_a_record_says_which_request_it_stands_for():
    with serving(answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        asked = request(seq=5, index=2, session="s9", turn=3)
        call = prepare(asked, connection.target)
        origin = now_ns() - 1_000
        rules = patient()
        record = sender(rules)(connection, call, 77, origin, rules, unheard)
        connection.close()
    expected = {
        "seq": 5,
        "index": 2,
        "attempt": 0,
        "final": True,
        "request_id": "r-5",
        "kind": "completion",
        "dialect": "chat",
        "model": "m",
        "session": "s9",
        "turn": 3,
        "trace_id": call.trace_id,
        "due_ns": 77,
        "held_ns": 0,
        "retry_after_s": None,
        "wire": "http/1.1",
        "bytes_in": len(OK),
        "bytes_out": len(call.http1),
        "tags": {"a": "b"},
    }
    assert {name: getattr(record, name) for name in expected} == expected
    assert record.span_id == call.span_id
    assert 1_000 <= record.started_ns < record.connected_ns < record.sent_ns < record.ended_ns < 10**10


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("400 Bad Request", Outcome.HTTP_ERROR),
        ("401 Unauthorized", Outcome.HTTP_ERROR),
        ("402 Payment Required", Outcome.HTTP_ERROR),
        ("422 Unprocessable Content", Outcome.HTTP_ERROR),
        ("429 Too Many Requests", Outcome.REFUSED_BY_SERVER),
        ("500 Internal Server Error", Outcome.HTTP_ERROR),
        ("503 Service Unavailable", Outcome.HTTP_ERROR),
        ("504 Gateway Timeout", Outcome.HTTP_ERROR),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_status_is_its_outcome(status, outcome, stream):
    body = b'{"error":{"message":"secret words","code":"some_code"}}'
    record = judged(http(status, body), stream=stream)
    assert (record.outcome, record.status) == (outcome, int(status[:3]))
    assert record.error == f"HTTP {status[:3]} some_code"


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_in_another_encoding_is_its_status(stream):
    record = judged(http("500 X", '{"error":{"message":"café","code":"x"}}'.encode("latin-1")), stream=stream)
    assert (record.outcome, record.error) == (Outcome.HTTP_ERROR, "HTTP 500")


@pytest.mark.parametrize(
    "told", [b'{"error":{"message":"caf\xc3"}}', b'{"zzz":' + b"[" * 200_000], ids=["cut", "lists in lists"]
)
def test_an_event_that_cannot_be_read_is_malformed(told):
    record = judged(chunked(b"data: %b\n\n" % told, DONE), stream=True)
    assert (record.outcome, record.error) == (Outcome.MALFORMED, "event is not the dialect's JSON")


def test_an_error_page_of_a_proxy_is_only_its_status():
    assert judged(http("502 Bad Gateway", b"<html>secret</html>")).error == "HTTP 502"


def test_an_error_whose_body_is_cut_is_still_its_status():
    record = judged(b"HTTP/1.1 500 X\r\nContent-Length: 99\r\n\r\nabc")
    assert (record.outcome, record.error) == (Outcome.HTTP_ERROR, "HTTP 500")


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (http("307 Temporary Redirect", b"", b"Location: /x"), "HTTP 307: redirects are not followed"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "HTTP 204: no answer"),
        (http("200 OK", b'{"choices":[]}'), "no choices"),
        (http("200 OK", b"{}"), "no choices"),
        (
            http("200 OK", b"{", b"Content-Type: application/json"),
            "not the dialect's JSON but application/json",
        ),
        (http("200 OK", b"<html>", b"Content-Type: text/html"), "not the dialect's JSON but text/html"),
        (http("200 OK", b'"\xff"'), "not the dialect's JSON but something else"),
        (http("200 OK", b'{"choices":' + b"[" * 200_000), "not the dialect's JSON but something else"),
        (http("200 OK", CHAT_BODY, b"Content-Encoding: br"), "unknown content-encoding"),
        (http("200 OK", CHAT_BODY, b"Content-Encoding: gzip"), "broken compression"),
    ],
)
def test_an_answer_that_is_none_is_malformed(response, error):
    record = judged(response)
    assert (record.outcome, record.error) == (Outcome.MALFORMED, error)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error":{"type":"overloaded_error"}}', "error body: overloaded_error"),
        (
            CHAT_BODY.replace(b'"stop"', b'"insufficient_system_resource"'),
            "finish reason insufficient_system_resource",
        ),
        (CHAT_BODY.replace(b'"stop"', b'"aborted"'), "finish reason aborted"),
    ],
)
def test_a_failure_under_status_200_is_an_in_band_error(body, error):
    record = judged(http("200 OK", body))
    assert (record.outcome, record.error) == (Outcome.IN_BAND_ERROR, error)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_compressed_answer_is_read_though_not_asked_for(encoding, stream):
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    header = f"Content-Encoding: {encoding}".encode()
    if stream:
        parts = [event("a"), END, DONE]
        packed = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts]
        response = chunked(*packed).replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n\r\n", 1)
    else:
        response = http("200 OK", packer.compress(CHAT_BODY) + packer.flush(), header)
    record = judged(response, stream=stream)
    assert (record.outcome, record.error, record.finish_reason) == (Outcome.OK, "", "stop")


def test_a_compressed_error_body_is_no_reason_to_fail():
    body = gzip.compress(b'{"error":{"code":"some_code"}}')
    record = judged(http("500 Internal Server Error", body, b"Content-Encoding: gzip"))
    assert (record.outcome, record.error) == (Outcome.HTTP_ERROR, "HTTP 500")


# -- streams


def test_a_stream_tells_first_event_first_token_and_first_content_apart():
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(chunked(event("", reasoning=""), end=False))
        for piece in (event("", reasoning="hm"), event("a"), event("b"), END, USAGE, DONE):
            gevent.sleep(0.002)
            peer.send(chunk(piece))
        peer.send(b"0\r\n\r\n")
        peer.until_gone()

    with serving(script) as server:
        record = attempt(server.url, stream=True)
    assert record.outcome == Outcome.OK
    assert record.first_event_ns < record.first_token_ns < record.first_content_ns
    assert record.chunk_ns[0] == record.first_token_ns
    assert record.chunk_ns[1] == record.first_content_ns
    assert len(record.chunk_ns) == 3
    assert record.usage == Usage(9, 2)
    assert record.held_ns == 0


def test_events_of_one_read_share_a_stamp():
    record = judged(chunked(event("a") + event("b"), END, DONE), stream=True)
    assert len(record.chunk_ns) == 2
    assert len(set(record.chunk_ns)) == 1


def test_without_the_servers_usage_a_stream_is_estimated_and_says_so():
    record = judged(chunked(event("a"), event("b"), END, DONE), stream=True)
    assert record.usage == Usage(prompt=2, completion=2, source="estimate")


@pytest.mark.parametrize(
    ("pieces", "outcome", "error"),
    [
        ([event("a"), END], Outcome.CUT, "stream ended without [DONE]"),
        ([event("a"), DONE], Outcome.CUT, "stream ended without a finish reason"),
        ([DONE], Outcome.MALFORMED, "no choices"),
        ([USAGE, DONE], Outcome.MALFORMED, "no choices"),
        ([], Outcome.MALFORMED, "no stream but text/event-stream"),
        ([CHAT_BODY], Outcome.MALFORMED, "no stream but text/event-stream"),
        ([b": keep-alive\n\n", b"\n\n"], Outcome.CUT, "stream ended before its first event"),
        ([b'{"error":\n\n', b'{"code":"overloaded"}}'], Outcome.IN_BAND_ERROR, "error body: overloaded"),
        ([b"<html>\n\n</html>"], Outcome.MALFORMED, "no stream but text/event-stream"),
        ([event("a"), b"data: {broken\n\n", END, DONE], Outcome.MALFORMED, "event is not the dialect's JSON"),
        (
            [event("a"), b'data: {"error":{"code":"server_error"}}\n\n'],
            Outcome.IN_BAND_ERROR,
            "error event: server_error",
        ),
        (
            [b'event: error\ndata: {"message":"x"}\n\n', DONE],
            Outcome.IN_BAND_ERROR,
            "error event: unnamed",
        ),
        (
            [b'data: {"choices":[{}],"error":{"message":"x"}}\n\n', DONE],
            Outcome.IN_BAND_ERROR,
            "error event: unnamed",
        ),
        ([event("a"), event("", finish="aborted"), DONE], Outcome.IN_BAND_ERROR, "finish reason aborted"),
    ],
)
def test_a_stream_that_fails_says_how(pieces, outcome, error):
    record = judged(chunked(*pieces), stream=True)
    assert (record.outcome, record.error) == (outcome, error)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("response", "where"),
    [
        (b"", "before the response"),
        (b"HTTP/1.1 200 OK\r\nContent-", "in the response head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc", "in mid-answer"),
        (chunked(event("a"), end=False), "in mid-answer"),
        (chunked(event("a"), end=False) + b"ff\r\ndata: ", "in mid-answer"),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_lost_connection_is_a_cut(stream, response, where, reset):
    record = judged(response, stream=stream, reset=reset)
    assert (record.outcome, record.error) == (
        Outcome.CUT,
        f"connection {'reset' if reset else 'closed'} {where}",
    )


def test_a_cut_stream_keeps_what_came_before():
    record = judged(chunked(event("a"), event("b"), end=False), stream=True)
    assert (record.outcome, len(record.chunk_ns)) == (Outcome.CUT, 2)
    assert record.usage is None


def test_an_error_named_before_the_cut_is_the_outcome():
    error = b'data: {"error":{"code":"server_error"}}\n\n'
    assert judged(chunked(error, end=False), stream=True).outcome == Outcome.IN_BAND_ERROR


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"", "idle timeout before the response"),
        (chunked(event("a"), end=False), "idle timeout in mid-answer"),
    ],
)
def test_silence_is_a_stall(response, error):
    record = judged(response, stream=True, hang=True)
    assert (record.outcome, record.error) == (Outcome.STALLED, error)
    assert record.ended_ns - record.sent_ns >= 50_000_000


def chatter(piece: bytes):
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(chunked(end=False))
        while True:
            peer.send(chunk(piece))
            gevent.sleep(0.01)

    return script


def test_keep_alives_are_no_progress():
    with serving(chatter(b": keep-alive\n\n")) as server:
        record = attempt(server.url, stream=True, rules=patient(idle=0.08))
    assert record.outcome == Outcome.STALLED
    assert record.held_ns == record.ended_ns - record.headers_ns > 0


def test_the_total_timeout_waits_for_nobody():
    with serving(chatter(event("a"))) as server:
        record = attempt(server.url, stream=True, rules=patient(idle=5, total=0.1))
    assert (record.outcome, record.error) == (Outcome.TIMEOUT, "total timeout")
    assert len(record.chunk_ns) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_servers_queue_is_told_from_its_work(stream):
    first, noise = (event("a"), b": keep-alive\n\n") if stream else (CHAT_BODY, b"\n")

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(chunked(end=False) + chunk(noise))
        gevent.sleep(0.005)
        peer.send(chunk(noise))
        gevent.sleep(0.005)
        peer.send(chunk(first) + (chunk(END) + chunk(DONE) if stream else b"") + b"0\r\n\r\n")
        peer.until_gone()

    with serving(script) as server:
        record = attempt(server.url, stream=stream)
    assert record.outcome == Outcome.OK
    assert record.held_ns >= 10_000_000
    if stream:
        assert record.held_ns == record.first_event_ns - record.headers_ns


@pytest.mark.parametrize(
    ("lines", "outcome", "error", "chunks"),
    [
        ([b'{"choices":[{"text":"a"}]}', b'{"choices":[{"text":"","finish_reason":"stop"}]}'], "ok", "", 1),
        ([b'{"choices":[{"text":"a","finish_reason":"length"}]}'], "ok", "", 1),
        ([b'{"choices":[{"text":"a"}]}'], "cut", "stream ended without a finish reason", 1),
        ([b'{"choices":[{"text":"a"}]}', b'{"error":{"code":"x"}}'], "in_band_error", "error event: x", 1),
        ([b'{"choices":[{"te'], "malformed", "event is not the dialect's JSON", 0),
    ],
)
@pytest.mark.parametrize("last", [b"", b"\n"])
def test_lines_of_json_are_read_as_a_stream(lines, outcome, error, chunks, last):
    body = b"\n".join(lines) + last
    record = judged(http("200 OK", body), dialect="completions-lines")
    assert (record.outcome, record.error, len(record.chunk_ns)) == (outcome, error, chunks)


def test_a_completion_is_read_whole():
    usage = b'{"prompt_tokens":1,"completion_tokens":1}'
    body = b'{"choices":[{"text":"a","finish_reason":"length"}],"usage":' + usage + b"}"
    record = judged(http("200 OK", body), dialect="completions")
    assert (record.outcome, record.finish_reason, record.usage) == (Outcome.OK, "length", Usage(1, 1))


# -- the end of the run


def test_a_kill_leaves_a_record_and_goes_on():
    logged: list[Record] = []
    with serving(lambda peer: (peer.read_request(), peer.until_gone())) as server:
        user = gevent.spawn(attempt, server.url, log=logged.append)
        while not (server.peers and server.peers[0].requests):
            gevent.sleep(0)
        user.kill()
    assert isinstance(user.value, gevent.GreenletExit)
    assert [(r.outcome, r.error, r.final) for r in logged] == [
        (Outcome.CANCELLED, "cut off: the run ended first", True)
    ]
    assert logged[0].ended_ns > logged[0].sent_ns


def test_after_a_kill_the_connection_starts_afresh():
    with serving(lambda peer: (peer.read_request(), peer.until_gone()), answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        user = gevent.spawn(attempt, connection)
        while not (server.peers and server.peers[0].requests):
            gevent.sleep(0)
        user.kill()
        record = attempt(connection)
        connection.close()
    assert (record.outcome, record.reused_connection) == (Outcome.OK, False)


def test_a_kill_while_waiting_to_retry_makes_the_last_attempt_final():
    logged: list[Record] = []
    retries = Retries(attempts=3, backoff_s=Seconds(60))
    with serving(answers(http("500 X", b""))) as server:
        rules = patient(retries=retries, sleep=gevent.sleep)
        user = gevent.spawn(attempt, server.url, rules=rules, log=logged.append)
        while not (server.peers and server.peers[0].requests):
            gevent.sleep(0)
        gevent.sleep(0.02)
        assert logged == []
        user.kill()
    assert [(r.attempt, r.final, r.status) for r in logged] == [(0, True, 500)]


# -- retries


def flaky(*responses: bytes):
    def script(peer: Peer) -> None:
        for response in responses:
            peer.read_request()
            peer.send(response)
        peer.until_gone()

    return script


def retried(*responses: bytes, **changes) -> tuple[list[Record], list[float], list[bytes]]:
    logged: list[Record] = []
    slept: list[float] = []
    retries = Retries(**{"attempts": 3, "backoff_s": Seconds(1), "backoff_max_s": Seconds(4), **changes})
    with serving(flaky(*responses)) as server:
        record = attempt(server.url, rules=patient(retries=retries, sleep=slept.append), log=logged.append)
        requests = server.peers[0].requests
    assert record == logged[-1]
    return logged, slept, requests


def test_each_attempt_is_a_record_and_only_the_last_is_final():
    logged, slept, requests = retried(http("503 X", b""), http("500 X", b""), OK)
    assert [(r.attempt, r.final, r.status) for r in logged] == [
        (0, False, 503),
        (1, False, 500),
        (2, True, 200),
    ]
    assert len(slept) == 2
    assert len({r.trace_id for r in logged}) == 1
    assert len({r.span_id for r in logged}) == 3
    for record, sent in zip(logged, requests, strict=True):
        assert f"traceparent: 00-{record.trace_id}-{record.span_id}-01".encode() in sent


def test_backoff_doubles_and_its_jitter_is_seeded():
    _, slept, _ = retried(*[http("503 X", b"")] * 4, attempts=4)
    jitter = random.Random(7)
    assert slept == [jitter.uniform(0, ceiling) for ceiling in (1, 2, 4)]


def test_attempts_run_out():
    logged, slept, _ = retried(*[http("503 X", b"")] * 3)
    assert [r.final for r in logged] == [False, False, True]
    assert len(slept) == 2


def test_retry_after_is_honoured_unless_told_not_to():
    busy = http("429 X", b"", b"Retry-After: 9")
    logged, slept, _ = retried(busy, OK)
    assert slept == [9.0]
    assert (logged[0].outcome, logged[0].retry_after_s) == (Outcome.REFUSED_BY_SERVER, 9.0)
    _, slept, _ = retried(busy, OK, honour_retry_after=False)
    assert slept[0] <= 1


@pytest.mark.parametrize("status", ["400 X", "401 X", "402 X", "422 X"])
def test_what_will_not_get_better_is_not_tried_again(status):
    logged, slept, _ = retried(http(status, b""))
    assert (len(logged), slept) == (1, [])


@pytest.mark.parametrize(("outcomes", "attempts"), [(("connect_error",), 1), (("cut",), 2)])
def test_a_cut_is_tried_again_only_if_the_scenario_says_so(outcomes, attempts):
    logged: list[Record] = []
    retries = Retries(attempts=2, outcomes=outcomes)
    with serving(lambda peer: peer.read_request()) as server:
        attempt(server.url, rules=patient(retries=retries), log=logged.append)
    assert [r.outcome for r in logged] == [Outcome.CUT] * attempts


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (b"", None),
        (b"0", 0.0),
        (b"7", 7.0),
        (b" 1.5 ", 1.5),
        (b"-1", None),
        (b"soon", None),
        (b"Mon, 23 Nov 2026 10:00:30 GMT", 30.0),
        (b"Mon, 23 Nov 2026 09:00:00 GMT", 0.0),
        (b"86400", 86_400.0),
        (b"86401", None),
        (b"9" * 400, None),
        (b"Mon, 31 Dec 9999 23:59:59 -2300", None),
        (b"Fri, 01 Jan 2100 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert retry_after_s(value, datetime(2026, 11, 23, 10, 0, 0, tzinfo=UTC)) == seconds


# -- values


def test_prepared_calls_of_one_request_differ_only_in_their_trace():
    first, second = (call_to("http://host", seq=1) for _ in range(2))
    assert first.trace_id != second.trace_id
    assert anonymous(first) == anonymous(second)
    assert first.body == second.body


def anonymous(call):
    """Its bytes without its ids, which it must bear once each."""
    for each in (call.trace_id, call.span_id):
        assert call.http1.count(each.encode()) == 1
    return call.http1.replace(call.trace_id.encode(), b"").replace(call.span_id.encode(), b"")


def test_the_next_attempt_differs_only_in_its_span():
    first = call_to("http://host", seq=1, messages=({"role": "user", "content": "-01\r\n\r\n"},))
    second = first.again()
    third = second.again()
    assert len({first.span_id, second.span_id, third.span_id}) == 3
    assert first.trace_id == second.trace_id == third.trace_id
    assert anonymous(first) == anonymous(second) == anonymous(third)
    assert dict(second.fields())["traceparent"] == f"00-{first.trace_id}-{second.span_id}-01"


def test_an_unknown_dialect_is_the_users_mistake():
    with pytest.raises(ConfigError):
        call_to("http://host", dialect="morse")


def test_a_record_is_a_row_like_any_other():
    record = judged(chunked(event("a"), END, DONE), stream=True)
    assert msgspec.json.decode(msgspec.json.encode(record), type=dict)["chunk_ns"] == list(record.chunk_ns)


@pytest.mark.parametrize(
    ("piece", "noise"),
    [
        (b"", True),
        (b"\n\n", True),
        (b" \r\n", True),
        (b": keep-alive\n\n", True),
        (b": a\n\n: b\n\n", True),
        (b"data: a\n\n", False),
        (b": a\n\ndata: b\n\n", False),
        (b'{"a":1}', False),
    ],
)
def test_noise_is_told_from_an_answer(piece, noise):
    assert is_noise(piece) is noise


def test_deadlines_are_decided_by_stamps_alone():
    exchange = Exchange(Limits(connect_ns=10, idle_ns=100, total_ns=1_000), started_ns=0)
    assert (exchange.overdue(149), exchange.check_ns) == (None, 249)
    exchange.sent_ns = 50
    assert (exchange.overdue(149), exchange.check_ns) == (None, 150)
    exchange.pieces, exchange.stamps = [b"data: a\n\n", b": ka\n\n"], [120, 200]
    assert (exchange.overdue(210), exchange.check_ns) == (None, 220)
    assert exchange.overdue(220) == (Outcome.STALLED, "idle timeout before the response")
    exchange.headers_ns = 120
    assert exchange.overdue(220) == (Outcome.STALLED, "idle timeout in mid-answer")
    assert exchange.overdue(1_000) == (Outcome.TIMEOUT, "total timeout")
