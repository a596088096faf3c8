"""Claims about the HTTP/1.1 wire, against scripted servers."""

from __future__ import annotations

import gzip
import json
import socket as names
from itertools import pairwise

import gevent
import pytest
from gevent.event import Event
from httptools import HttpResponseParser
from hypothesis import given, settings
from hypothesis import strategies as st
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
    serving,
)

from harness.client import http1, target
from harness.client.exchange import Exchange, Limits
from harness.client.http1 import Connection
from harness.client.transport import STAMPS
from harness.clock import now_ns
from harness.record import Outcome

OK = http("200 OK", CHAT_BODY, b"Content-Type: application/json")
STREAM = chunked(event("", reasoning=""), event("a"), event("b", finish="stop"), DONE)


def test_the_request_is_what_the_server_reads():
    with serving(answers(OK)) as server:
        connection = Connection(target.parse(server.url + "/base/v1", key="sk-1"))
        exchange = Exchange(Limits(10**10, 10**10, 10**10), now_ns())
        call = call_to(server.url + "/base/v1", key="sk-1", seq=3)
        connection.exchange(exchange, call)
        connection.close()
        head, _, body = server.peers[0].requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /base/v1/chat/completions HTTP/1.1"
    fields = dict(line.split(": ", 1) for line in lines[1:])
    assert fields["host"] == server.url.removeprefix("http://")
    assert fields["authorization"] == "Bearer sk-1"
    assert fields["accept-encoding"] == "identity"
    assert fields["x-request-id"] == "r-3"
    assert fields["traceparent"] == f"00-{call.trace_id}-{call.span_id}-01"
    assert fields["content-length"] == str(len(body))
    assert body == call.body
    assert exchange.bytes_out == len(head) + 4 + len(body)


def test_bytes_in_and_out_are_all_bytes_of_http():
    with serving(answers(OK)) as server:
        assert attempt(server.url).bytes_in == len(OK)


@pytest.mark.parametrize("stamps", sorted({"user", STAMPS}))
def test_stamps_follow_each_other(stamps):
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(STREAM[:-24])
        gevent.sleep(0.002)
        peer.send(STREAM[-24:])
        peer.until_gone()

    with serving(script) as server:
        connection = Connection(target.parse(server.url), stamps=stamps)
        record = attempt(connection, stream=True)
        connection.close()
    assert record.outcome == Outcome.OK
    assert (
        record.started_ns
        <= record.connected_ns
        <= record.sent_ns
        <= record.headers_ns
        <= record.first_event_ns
        <= record.first_token_ns
        <= record.chunk_ns[0]
        <= record.chunk_ns[1]
        < record.ended_ns
    )


def test_a_connection_is_kept_for_the_next_request():
    with serving(answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        first, second = attempt(connection), attempt(connection)
        connection.close()
        assert len(server.peers) == 1
    assert (first.reused_connection, second.reused_connection) == (False, True)
    assert first.connected_ns is not None
    assert second.connected_ns is None


def test_connection_close_is_obeyed():
    with serving(answers(http("200 OK", CHAT_BODY, b"Connection: close"))) as server:
        connection = Connection(target.parse(server.url))
        records = [attempt(connection), attempt(connection)]
        connection.close()
        assert len(server.peers) == 2
    assert [r.outcome for r in records] == [Outcome.OK, Outcome.OK]
    assert not records[1].reused_connection


def once(peer: Peer) -> None:
    """Answer one request and hang up unannounced."""
    peer.read_request()
    peer.send(OK)


def test_a_server_that_closes_an_idle_connection_costs_a_reconnect_and_no_error():
    with serving(once) as server:
        connection = Connection(target.parse(server.url))
        records = []
        for _ in range(3):
            records.append(attempt(connection))
            gevent.sleep(0)  # the server's side hangs up
        connection.close()
    assert [r.outcome for r in records] == [Outcome.OK] * 3
    assert not any(r.reused_connection for r in records)


def dies_on_second(peer: Peer) -> None:
    once(peer)
    peer.read_request()
    peer.reset()


def test_a_connection_lost_after_a_rest_is_replaced_and_the_request_sent_again():
    with serving(dies_on_second, answers(OK)) as server:
        connection = Connection(target.parse(server.url), stale_after_ns=0)
        attempt(connection)
        record = attempt(connection)
        connection.close()
        assert len(server.peers[0].requests) == 2
        assert len(server.peers[1].requests) == 1
    assert record.outcome == Outcome.OK
    assert connection.stale_retries == 1
    assert not record.reused_connection
    assert record.started_ns <= record.connected_ns <= record.sent_ns
    assert record.bytes_out == 2 * len(server.peers[1].requests[0])


def test_a_connection_lost_in_steady_use_is_the_servers_fault():
    with serving(dies_on_second, answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        attempt(connection)
        record = attempt(connection)
        connection.close()
    assert (record.outcome, record.error) == (Outcome.CUT, "connection reset before the response")
    assert connection.stale_retries == 0


def twice(peer: Peer) -> None:
    once(peer)
    once(peer)


@pytest.mark.parametrize("hang_up", [Peer.reset, lambda _: None], ids=["reset", "closed"])
def test_a_connection_ended_without_a_word_in_steady_use_is_replaced_and_the_request_sent_again(hang_up):
    with serving(lambda peer: (twice(peer), hang_up(peer)), answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        records = [attempt(connection) for _ in range(3)]
        connection.close()
        assert [len(peer.requests) for peer in server.peers] == [2, 1]
    assert connection.stale_retries == 1
    assert [r.outcome for r in records] == [Outcome.OK] * 3
    assert [r.reused_connection for r in records] == [False, True, False]


@pytest.mark.parametrize(("hang_up", "how"), [(Peer.reset, "reset"), (lambda _: None, "closed")])
def test_a_connection_lost_by_a_request_in_steady_use_is_the_servers_fault(hang_up, how):
    def script(peer: Peer) -> None:
        twice(peer)
        peer.read_request()
        hang_up(peer)

    with serving(script, answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        records = [attempt(connection) for _ in range(3)]
        connection.close()
    assert (records[2].outcome, records[2].error) == (Outcome.CUT, f"connection {how} before the response")
    assert connection.stale_retries == 0


@pytest.mark.parametrize(
    "refuse", [Peer.reset, lambda peer: peer.sock.shutdown(names.SHUT_WR)], ids=["reset", "closed"]
)
def test_a_long_request_refused_midway_in_steady_use_is_not_sent_again(refuse):
    told = Event()

    def script(peer: Peer) -> None:
        twice(peer)
        peer.sock.recv(1000)
        refuse(peer)
        told.wait(5)

    with serving(script, answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        for _ in range(2):
            attempt(connection)
        record = attempt(connection, prompt="x" * 20_000_000)
        told.set()
        connection.close()
    assert record.outcome == Outcome.CUT
    assert connection.stale_retries == 0


def test_a_lost_connection_is_replaced_only_once():
    with serving(dies_on_second, lambda peer: (peer.read_request(), peer.reset())) as server:
        connection = Connection(target.parse(server.url), stale_after_ns=0)
        attempt(connection)
        record = attempt(connection)
        connection.close()
        assert len(server.peers) == 2
    assert record.outcome == Outcome.CUT


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\n\r\n" + CHAT_BODY,
        b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + CHAT_BODY,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(CHAT_BODY[:9])
        + chunk(CHAT_BODY[9:])
        + b"0\r\nTrailer: x\r\n\r\n",
        OK + b"surplus",
        OK + OK,
    ],
    ids=["100", "103", "until-eof", "http/1.0", "chunked+trailer", "surplus", "two answers"],
)
def test_every_way_to_delimit_an_answer_is_understood(response):
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(response)

    with serving(script) as server:
        record = attempt(server.url)
    assert (record.outcome, record.status, record.finish_reason) == (Outcome.OK, 200, "stop")


def test_a_connection_with_surplus_bytes_is_not_used_again():
    with serving(answers(OK + b"surplus")) as server:
        connection = Connection(target.parse(server.url))
        attempt(connection)
        record = attempt(connection)
        connection.close()
    assert (record.outcome, record.reused_connection) == (Outcome.OK, False)


def test_an_answer_with_a_head_seen_before_is_read_like_the_first():
    longer = CHAT_BODY.replace(b"Hi", b"Hi there")
    # Heads alike, then another one, then one alike whose body comes later; last, surplus bytes.
    replies = [(OK,), (OK,), (http("200 OK", longer),), (OK,), (OK[:-9], OK[-9:]), (OK,), (OK + b"x",)]

    def script(peer: Peer) -> None:
        for pieces in replies:
            peer.read_request()
            for piece in pieces:
                peer.send(piece)
                gevent.sleep(0.005)

    with serving(script, answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        records = [attempt(connection) for _ in (*replies, OK)]
        connection.close()
    assert {(r.outcome, r.status, r.finish_reason, r.usage) for r in records} == {
        (Outcome.OK, 200, "stop", records[0].usage)
    }
    assert [r.bytes_in for r in records[:-1]] == [sum(map(len, pieces)) for pieces in replies]
    assert [r.reused_connection for r in records] == [False, *[True] * 6, False]
    assert all(r.sent_ns < r.headers_ns <= r.ended_ns for r in records)
    assert records[4].headers_ns < records[4].ended_ns


def test_a_head_seen_before_is_not_parsed_again(monkeypatch):
    parsed = []

    class Counting(HttpResponseParser):
        def feed_data(self, piece: bytes) -> None:
            parsed.append(piece)
            super().feed_data(piece)

    monkeypatch.setattr(http1, "HttpResponseParser", Counting)
    with serving(answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        records = [attempt(connection) for _ in range(5)]
        connection.close()
    assert {r.outcome for r in records} == {Outcome.OK}
    assert parsed == [OK]


def test_line_ends_after_a_body_are_no_part_of_the_next():
    with serving(answers(OK + b"\r\n")) as server:
        connection = Connection(target.parse(server.url))
        records = [attempt(connection) for _ in range(4)]
        connection.close()
    assert [(r.outcome, r.usage) for r in records] == [(Outcome.OK, records[0].usage)] * 4


def test_a_whole_answer_within_a_body_is_data():
    """The second read of the second answer's body looks like the first answer."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 + len(OK))

    def script(peer: Peer) -> None:
        for pieces in ((OK,), (head + b" ", OK)):
            peer.read_request()
            for piece in pieces:
                peer.send(piece)
                gevent.sleep(0.005)
        peer.until_gone()

    with serving(script) as server:
        connection = Connection(target.parse(server.url))
        _, record = attempt(connection), attempt(connection)
        connection.close()
    assert (record.outcome, record.bytes_in) == (Outcome.MALFORMED, len(head) + 1 + len(OK))


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"garbage", "not HTTP/1.1"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 70_000, "response head too long"),
    ],
)
def test_what_is_not_http_is_malformed(response, error):
    with serving(answers(response)) as server:
        record = attempt(server.url)
    assert (record.outcome, record.error) == (Outcome.MALFORMED, error)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=6, unique=True))
def test_any_split_of_the_response_yields_the_same_record(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]

    def script(peer: Peer) -> None:
        peer.read_request()
        for start, end in pairwise(edges):
            peer.send(STREAM[start:end])
            gevent.idle()  # polls the sockets, as sleep(0) does not: each piece is a read of its own
        peer.until_gone()

    with serving(script) as server:
        record = attempt(server.url, stream=True)
    assert (record.outcome, len(record.chunk_ns), record.finish_reason) == (Outcome.OK, 2, "stop")
    assert record.bytes_in == len(STREAM)


def test_a_long_request_is_written_while_the_server_reads_slowly():
    prompt = "x" * 8_000_000

    with serving(answers(OK)) as server:
        record = attempt(server.url, prompt=prompt)
        assert len(server.peers[0].requests[0]) > len(prompt)
    assert record.outcome == Outcome.OK
    assert record.sent_ns is not None


def test_an_early_answer_to_a_long_request_is_the_answer():
    def script(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.send(http("413 Content Too Large", b"{}"))
        peer.until_gone()

    with serving(script) as server:
        record = attempt(server.url, prompt="x" * 8_000_000)
    assert (record.outcome, record.status, record.sent_ns) == (Outcome.HTTP_ERROR, 413, None)


def test_many_small_chunks_leave_nothing_behind_but_their_stamps():
    response = chunked(*[event("token")] * 3_000, event("end", finish="stop"), DONE)
    with serving(answers(response)) as server:
        record = attempt(server.url, stream=True)
    assert record.outcome == Outcome.OK
    assert len(record.chunk_ns) == 3_001
    assert list(record.chunk_ns) == sorted(record.chunk_ns)


def test_a_long_error_in_place_of_a_stream_keeps_its_name():
    body = json.dumps({"error": {"code": "some_code", "message": "x" * 20_000}}).encode()

    def script(peer: Peer) -> None:
        peer.read_request()
        response = http("400 Bad Request", body)
        peer.send(response[:2_000])
        gevent.idle()  # the client reads
        peer.send(response[2_000:])
        peer.until_gone()

    with serving(script) as server:
        record = attempt(server.url, stream=True)
    assert (record.outcome, record.error) == (Outcome.HTTP_ERROR, "HTTP 400 some_code")
    assert record.first_event_ns is None


def test_a_head_that_comes_in_pieces_is_read_as_one():
    packed = gzip.compress(event("a") + event("b", finish="stop") + DONE)
    fields = b"X-Padding: %b\r\nContent-Encoding: gzip" % (b"x" * 1_500)
    response = chunked(packed).replace(b"\r\n\r\n", b"\r\n" + fields + b"\r\n\r\n", 1)

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(response[:1_200])
        gevent.idle()  # the client reads
        peer.send(response[1_200:])
        peer.until_gone()

    with serving(script) as server:
        record = attempt(server.url, stream=True)
    assert (record.outcome, record.error) == (Outcome.OK, "")
    assert len(record.chunk_ns) == 2


def test_each_user_has_a_connection_of_its_own():
    with serving(answers(OK)) as server:
        users = [gevent.spawn(attempt, server.url, seq=n) for n in range(20)]
        gevent.joinall(users)
        assert {user.value.request_id for user in users} == {f"r-{n}" for n in range(20)}
        assert all(user.value.outcome == Outcome.OK for user in users)


def test_our_own_bug_reaches_the_one_who_waits(monkeypatch):
    with serving(answers(OK)) as server:
        connection = Connection(target.parse(server.url))
        monkeypatch.setattr(Connection, "_end", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            attempt(connection)


def test_nothing_listens_where_the_connection_is_refused():
    with names.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        record = attempt(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert (record.outcome, record.error) == (Outcome.CONNECT_ERROR, "connect: connection refused")
    assert record.trace_id == ""
    assert record.sent_ns is None


def test_an_unknown_name_is_a_connect_error():
    record = attempt("http://name.invalid")
    assert (record.outcome, record.error) == (Outcome.CONNECT_ERROR, "name not found")


def test_names_are_resolved():
    with serving(answers(OK)) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert attempt(url).outcome == Outcome.OK


def test_a_connect_that_never_answers_ends_at_its_timeout():
    with names.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [names.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        record = attempt(f"http://127.0.0.1:{port}", rules=patient(connect=0.05))
        for filler in fillers:
            filler.close()
    assert (record.outcome, record.error) == (Outcome.TIMEOUT, "connect timeout")
