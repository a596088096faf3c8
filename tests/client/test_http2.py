"""Claims about the HTTP/2 wire: many streams on one connection, each with its own fate."""

from __future__ import annotations

import json

import gevent
import pytest
import trustme
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from h2_server import H2Peer, serving_h2, whole
from scripted import DONE, Peer, answers, attempt, call_to, event, http, patient, serving, unheard
from test_tls import client_context, server_context

from harness.client import target
from harness.client.answer import Stream
from harness.client.http2 import Mux
from harness.client.send import send_batch
from harness.clock import now_ns
from harness.record import Outcome, Record, Usage
from harness.workload.scenario import Retries

STREAMED = (event("a"), event("b"), event("", finish="stop"), DONE)


def batch(mux: Mux, size: int, *, rules=None, log=None, **of_request) -> list[Record]:
    calls = [call_to(mux.target.url, seq=1, index=n, id=f"r-{n}", **of_request) for n in range(size)]
    return send_batch(mux, calls, due_ns=0, origin_ns=now_ns(), policy=rules or patient(), log=log or unheard)


def streamed(peer: H2Peer, stream: int) -> None:
    peer.head(stream, **{"content-type": "text/event-stream"})
    for piece in STREAMED:
        gevent.sleep(0.002)
        peer.body(stream, piece)
    peer.body(stream, b"", end=True)


def test_a_batch_shares_one_connection_and_keeps_its_order():
    with serving_h2() as server:
        mux = Mux(target.parse(server.url, key="sk-1"))
        records = batch(mux, 20)
        mux.close()
        assert len(server.peers) == 1
        peer = server.peers[0]
    assert [r.outcome for r in records] == [Outcome.OK] * 20
    assert [r.index for r in records] == list(range(20))
    assert {r.wire for r in records} == {"h2"}
    assert all(r.usage == Usage(9, 3, 4, 1) for r in records)
    assert all(r.connected_ns <= r.sent_ns <= r.headers_ns <= r.ended_ns for r in records)
    head = peer.heads[1]
    assert (head[":method"], head[":path"], head[":scheme"]) == ("POST", "/v1/chat/completions", "http")
    assert head["x-request-id"] == "r-0"
    assert head["traceparent"] == f"00-{records[0].trace_id}-{records[0].span_id}-01"
    assert json.loads(peer.bodies[1])["messages"]


def test_streams_run_side_by_side_and_are_stamped_as_they_come():
    with serving_h2(streamed) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 10, stream=True)
        mux.close()
    assert [(r.outcome, len(r.chunk_ns)) for r in records] == [(Outcome.OK, 2)] * 10
    assert all(r.first_token_ns <= r.chunk_ns[1] <= r.ended_ns for r in records)
    assert max(r.sent_ns for r in records) < min(r.ended_ns for r in records)


def test_the_next_batch_finds_the_connection_open():
    with serving_h2() as server:
        mux = Mux(target.parse(server.url))
        first, second = batch(mux, 3), batch(mux, 3)
        mux.close()
        assert len(server.peers) == 1
    assert not any(r.reused_connection for r in first)
    assert all(r.reused_connection and r.connected_ns is None for r in second)


def test_no_more_streams_are_open_than_the_server_allows():
    with serving_h2(streamed, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 2}) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 6, stream=True)
        mux.close()
        assert server.peers[0].most_open == 2
    assert [r.outcome for r in records] == [Outcome.OK] * 6
    assert records[5].sent_ns > records[0].ended_ns


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_flow_control_holds_in_both_directions(size):
    def echo(peer: H2Peer, stream: int) -> None:
        content = json.loads(peer.bodies[stream])["messages"][0]["content"]
        answer = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
        whole(peer, stream, json.dumps(answer).encode())

    with serving_h2(echo) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 3, prompt="x" * size)
        mux.close()
    assert [r.outcome for r in records] == [Outcome.OK] * 3
    assert all(r.bytes_in > size and r.bytes_out > size for r in records)


@pytest.mark.parametrize(
    ("code", "headed", "outcome", "error"),
    [
        (ErrorCodes.REFUSED_STREAM, False, Outcome.REFUSED_BY_SERVER, "stream refused"),
        (ErrorCodes.INTERNAL_ERROR, False, Outcome.CUT, "stream reset (internal error) before the response"),
        (ErrorCodes.CANCEL, True, Outcome.CUT, "stream reset (cancel) in mid-answer"),
    ],
)
def test_a_reset_stream_leaves_the_others_alone(code, headed, outcome, error):
    def answer(peer: H2Peer, stream: int) -> None:
        if peer.heads[stream]["x-request-id"] != "r-1":
            streamed(peer, stream)
            return
        if headed:
            peer.head(stream)
            peer.body(stream, event("a"))
            gevent.sleep(0.005)
        peer.reset(stream, code)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 3, stream=True)
        mux.close()
    assert [r.outcome for r in records] == [Outcome.OK, outcome, Outcome.OK]
    assert records[1].error == error


@pytest.mark.parametrize("status", ["abc", "20", "+20", "2000", "\uff12\uff10\uff10"])
def test_a_status_that_is_no_number_ends_its_own_stream(status):
    def answer(peer: H2Peer, stream: int) -> None:
        if peer.heads[stream]["x-request-id"] == "r-1":
            peer.head(stream, status)
        else:
            streamed(peer, stream)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 3, stream=True)
        mux.close()
    assert [r.outcome for r in records] == [Outcome.OK, Outcome.MALFORMED, Outcome.OK]
    assert records[1].error == "the status is no number"


@pytest.mark.parametrize(("said", "pieces"), [("4", 2), ("4000", 1), ("4", 0)])
def test_a_wrong_length_leaves_the_others_alone(said, pieces):
    def answer(peer: H2Peer, stream: int) -> None:
        if peer.heads[stream]["x-request-id"] != "r-1":
            gevent.sleep(0.005)
            streamed(peer, stream)
            return
        peer.head(stream, **{"content-length": said})
        for _ in range(pieces):
            peer.body(stream, event("a"))
        peer.body(stream, b"", end=True)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 3, stream=True)
        again = batch(mux, 3, stream=True)
        mux.close()
        assert len(server.peers) == 1
    for each in (records, again):
        assert [r.outcome for r in each] == [Outcome.OK, Outcome.MALFORMED, Outcome.OK]
        assert each[1].error == "wrong content-length"


def test_a_long_stream_is_read_while_it_comes(monkeypatch):
    read, gathered = Stream.read, []
    monkeypatch.setattr(Stream, "read", lambda self, it: gathered.append(len(it.pieces)) or read(self, it))

    def answer(peer: H2Peer, stream: int) -> None:
        peer.head(stream, **{"content-type": "text/event-stream"})
        for _ in range(300):
            peer.body(stream, event("token"))
        peer.body(stream, event("", finish="stop") + DONE, end=True)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        (record,) = batch(mux, 1, stream=True)
        mux.close()
    assert (record.outcome, len(record.chunk_ns)) == (Outcome.OK, 300)
    assert max(gathered) < 120


def test_a_long_error_in_place_of_a_stream_keeps_its_name():
    def answer(peer: H2Peer, stream: int) -> None:
        peer.head(stream, "400")
        body = json.dumps({"error": {"code": "some_code", "message": "x" * 20_000}}).encode()
        peer.body(stream, body, end=True)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        (record,) = batch(mux, 1, stream=True)
        mux.close()
    assert (record.outcome, record.error) == (Outcome.HTTP_ERROR, "HTTP 400 some_code")


def test_data_that_contradict_their_length_are_read_all_the_same():
    def answer(peer: H2Peer, stream: int) -> None:
        peer.head(stream, "429", **{"content-length": "4000"})
        peer.h2.send_data(stream, b'{"error": {"code": "rate_limited"}}', end_stream=True)
        peer.flush()

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        (record,) = batch(mux, 1)
        mux.close()
    assert (record.outcome, record.error) == (Outcome.REFUSED_BY_SERVER, "HTTP 429 rate_limited")
    assert record.bytes_in == 35


def test_a_link_that_may_not_be_used_again_ends_with_its_last_stream():
    def answer(peer: H2Peer, stream: int) -> None:
        peer.head(stream)
        peer.go_away(stream)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        (record,) = batch(mux, 1, rules=patient(idle=0.05))
        with gevent.Timeout(5):
            while not server.peers[0].sock.closed:
                gevent.sleep(0.001)
        mux.close()
    assert record.outcome is Outcome.STALLED


def test_closing_cuts_what_is_under_way():
    with serving_h2(lambda peer, stream: peer.head(stream)) as server:
        mux = Mux(target.parse(server.url))
        asking = gevent.spawn(batch, mux, 2)
        while not server.peers or len(server.peers[0].heads) < 2:
            gevent.sleep(0.001)
        mux.close()
        records = asking.get(timeout=5)
    assert {record.outcome for record in records} == {Outcome.CUT}
    assert all(record.error.startswith("connection closed by us") for record in records)


def test_streams_under_way_outlive_goaway_and_the_next_go_elsewhere():
    def answer(peer: H2Peer, stream: int) -> None:
        if len(server.peers) == 1 and stream == 1:
            peer.go_away(1)
        streamed(peer, stream)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 2, stream=True)
        after = batch(mux, 2, stream=True)
        mux.close()
        assert len(server.peers) == 2
    assert [r.outcome for r in records] == [Outcome.OK, Outcome.REFUSED_BY_SERVER]
    assert records[1].error == "server goes away"
    assert [r.outcome for r in after] == [Outcome.OK] * 2


def test_a_lost_connection_cuts_all_its_streams():
    def answer(peer: H2Peer, stream: int) -> None:
        if len(server.peers) == 2:
            whole(peer, stream)
            return
        peer.head(stream)
        peer.body(stream, event("a"))
        if stream == 5:
            gevent.sleep(0.01)
            peer.sock.shutdown(2)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 3, stream=True)
        (again,) = batch(mux, 1)
        mux.close()
        assert len(server.peers) == 2
    assert {(r.outcome, r.error) for r in records} == {(Outcome.CUT, "connection closed in mid-answer")}
    assert (again.outcome, again.reused_connection) == (Outcome.OK, False)


def test_a_stall_ends_one_stream_and_tells_the_server():
    def answer(peer: H2Peer, stream: int) -> None:
        if stream == 1:
            peer.head(stream)
        else:
            whole(peer, stream)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 2, rules=patient(idle=0.05))
        while not server.peers[0].resets:
            gevent.sleep(0)
        mux.close()
        assert server.peers[0].resets == {1: ErrorCodes.CANCEL}
    assert [(r.outcome, r.error) for r in records] == [
        (Outcome.STALLED, "idle timeout in mid-answer"),
        (Outcome.OK, ""),
    ]


def test_a_kill_logs_every_request_and_cancels_its_stream():
    logged: list[Record] = []
    with serving_h2(lambda peer, stream: peer.head(stream)) as server:
        mux = Mux(target.parse(server.url))
        user = gevent.spawn(batch, mux, 3, log=logged.append)
        while not (server.peers and len(server.peers[0].heads) == 3):
            gevent.sleep(0)
        user.kill()
        while len(server.peers[0].resets) < 3:
            gevent.sleep(0)
        mux.close()
    assert isinstance(user.value, gevent.GreenletExit)
    assert {(r.outcome, r.error) for r in logged} == {(Outcome.CANCELLED, "cut off: the run ended first")}
    assert sorted(r.index for r in logged) == [0, 1, 2]


def test_a_server_of_http1_does_not_speak_http2():
    def script(peer: Peer) -> None:
        peer.send(http("400 Bad Request", b"no"))
        peer.until_gone()

    with serving(script) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 2)
        mux.close()
    assert {(r.outcome, r.error) for r in records} == {
        (Outcome.CONNECT_ERROR, "the server does not speak HTTP/2")
    }


def test_a_refused_connection_is_tried_once_for_the_whole_batch():
    with serving(answers(b"")) as server:
        url = server.url
    mux = Mux(target.parse(url))
    records = batch(mux, 4)
    assert {(r.outcome, r.error) for r in records} == {(Outcome.CONNECT_ERROR, "connect: connection refused")}


def test_a_server_that_never_greets_is_a_connect_timeout():
    with serving(lambda peer: peer.until_gone()) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 2, rules=patient(connect=0.05))
        mux.close()
    assert {(r.outcome, r.error) for r in records} == {(Outcome.TIMEOUT, "connect timeout")}


def test_an_early_error_to_a_long_request_is_the_answer():
    def refuse(peer: H2Peer, stream: int) -> None:
        peer.head(stream, "429", **{"retry-after": "3"})
        peer.body(stream, b"", end=True)

    with serving_h2(refuse) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 2)
        mux.close()
    assert {(r.outcome, r.retry_after_s) for r in records} == {(Outcome.REFUSED_BY_SERVER, 3.0)}


def test_requests_of_a_batch_are_tried_again_one_by_one():
    seen: list[str] = []

    def answer(peer: H2Peer, stream: int) -> None:
        seen.append(peer.heads[stream]["x-request-id"])
        if seen.count("r-1") == 1 and seen[-1] == "r-1":
            peer.head(stream, "503")
            peer.body(stream, b"", end=True)
        else:
            whole(peer, stream)

    with serving_h2(answer) as server:
        mux = Mux(target.parse(server.url))
        records = batch(mux, 3, rules=patient(retries=Retries(attempts=2)))
        mux.close()
    assert [(r.outcome, r.attempt) for r in records] == [(Outcome.OK, 0), (Outcome.OK, 1), (Outcome.OK, 0)]


def test_http2_over_tls_is_agreed_by_alpn():
    authority = trustme.CA()
    context = server_context(authority.issue_cert("127.0.0.1"), "h2")
    with serving_h2(streamed, ssl_context=context) as server:
        mux = Mux(target.parse(server.url), tls=client_context(authority, "h2"))
        records = batch(mux, 5, stream=True)
        mux.close()
    assert [(r.outcome, len(r.chunk_ns)) for r in records] == [(Outcome.OK, 2)] * 5


def test_one_request_alone_may_use_it_too():
    with serving_h2() as server:
        mux = Mux(target.parse(server.url))
        record = attempt(mux)
        mux.close()
    assert (record.outcome, record.wire) == (Outcome.OK, "h2")
