"""Claims about TLS on both wires: names and authorities are verified, stamps stay those of the socket."""

from __future__ import annotations

import socket as plain
import ssl
from datetime import UTC, datetime

import gevent
import pytest
import trustme
from gevent import socket
from gevent import ssl as cooperative
from scripted import CHAT_BODY, DONE, Peer, answers, attempt, chunk, chunked, event, http, serving
from test_transport import BUSY_NS, answer_time_of_a_busy_client

from harness.client import target
from harness.client.http1 import Connection
from harness.client.http2 import Mux
from harness.client.transport import STAMPS, Transport
from harness.record import Outcome

OK = http("200 OK", CHAT_BODY)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def server_context(certificate, *protocols: str) -> ssl.SSLContext:
    context = cooperative.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def client_context(authority, protocol: str = "http/1.1") -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols([protocol])
    return context


def over_tls(certificate, trusted, *scripts, times: int = 1, stream: bool = False, stamps: str = STAMPS):
    with serving(*scripts, ssl_context=server_context(certificate, "http/1.1")) as server:
        connection = Connection(target.parse(server.url), tls=client_context(trusted), stamps=stamps)
        records = [attempt(connection, stream=stream) for _ in range(times)]
        connection.close()
    return records


@pytest.mark.parametrize("stamps", sorted({"user", STAMPS}))
def test_a_trusted_server_answers(authority, stamps):
    stream = chunked(event("a"), event("b", finish="stop"), DONE)
    certificate = authority.issue_cert("127.0.0.1")
    records = over_tls(certificate, authority, answers(stream), times=3, stream=True, stamps=stamps)
    assert [r.outcome for r in records] == [Outcome.OK] * 3
    assert [r.reused_connection for r in records] == [False, True, True]
    assert all(len(r.chunk_ns) == 2 for r in records)
    assert all(r.sent_ns <= r.headers_ns <= r.chunk_ns[0] <= r.ended_ns for r in records)


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_reads_of_a_stream_in_its_stride_pass_the_parser_by(authority, monkeypatch, encrypted):
    parse, parsed = Connection.on_bytes, []

    def on_bytes(self, piece: bytes, stamp_ns: int) -> None:
        parsed.append(piece)
        parse(self, piece, stamp_ns)

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(chunked(event("a"), end=False))
        for _ in range(100):
            gevent.idle()  # the client reads
            peer.send(chunk(event("token")))
        gevent.idle()
        peer.send(chunk(event("b", finish="stop")) + chunk(DONE) + b"0\r\n\r\n")
        peer.until_gone()

    monkeypatch.setattr(Connection, "on_bytes", on_bytes)
    context = server_context(authority.issue_cert("127.0.0.1"), "http/1.1") if encrypted else None
    with serving(script, ssl_context=context) as server:
        tls = client_context(authority) if encrypted else None
        connection = Connection(target.parse(server.url), tls=tls)
        record = attempt(connection, stream=True)
        connection.close()
    assert (record.outcome, len(record.chunk_ns)) == (Outcome.OK, 102)
    assert len(parsed) < 50


@pytest.mark.parametrize("stamps", sorted({"user", STAMPS}))
def test_only_user_stamps_show_the_clients_own_business(authority, stamps):
    trusting = server_context(authority.issue_cert("127.0.0.1"), "http/1.1"), client_context(authority)
    seen_ns = answer_time_of_a_busy_client(stamps, *trusting)
    assert seen_ns < BUSY_NS / 2 if stamps == "kernel" else seen_ns >= BUSY_NS


def test_an_untrusted_authority_is_a_connect_error(authority):
    certificate = trustme.CA().issue_cert("127.0.0.1")
    (record,) = over_tls(certificate, authority, answers(OK))
    assert record.outcome == Outcome.CONNECT_ERROR
    assert record.error == "TLS: unable to get local issuer certificate"


def test_another_hosts_certificate_is_a_connect_error(authority):
    (record,) = over_tls(authority.issue_cert("other.example"), authority, answers(OK))
    assert record.outcome == Outcome.CONNECT_ERROR
    assert record.error.startswith("TLS: ip address mismatch")


def test_an_expired_certificate_is_a_connect_error(authority):
    expired = authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    (record,) = over_tls(expired, authority, answers(OK))
    assert (record.outcome, record.error) == (Outcome.CONNECT_ERROR, "TLS: certificate has expired")


def test_plain_http_where_tls_is_spoken_to_is_a_connect_error(authority):
    with serving(lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        url = server.url.replace("http:", "https:")
        connection = Connection(target.parse(url), tls=client_context(authority))
        record = attempt(connection)
        connection.close()
    assert record.outcome == Outcome.CONNECT_ERROR
    assert record.error.startswith("TLS: ")


def test_a_server_that_hangs_up_in_the_handshake_is_a_connect_error(authority):
    with serving(lambda peer: peer.sock.recv(10)) as server:
        url = server.url.replace("http:", "https:")
        connection = Connection(target.parse(url), tls=client_context(authority))
        record = attempt(connection)
        connection.close()
    assert record.outcome == Outcome.CONNECT_ERROR


def test_a_connection_cut_under_tls_is_a_cut(authority):
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(chunked(event("a"), end=False))

    (record,) = over_tls(authority.issue_cert("127.0.0.1"), authority, script, stream=True)
    assert (record.outcome, len(record.chunk_ns)) == (Outcome.CUT, 1)


def test_a_long_request_is_sealed_and_sent(authority):
    certificate = authority.issue_cert("127.0.0.1")
    with serving(answers(OK), ssl_context=server_context(certificate)) as server:
        connection = Connection(target.parse(server.url), tls=client_context(authority))
        record = attempt(connection, prompt="x" * 4_000_000)
        connection.close()
        assert len(server.peers[0].requests[0]) == record.bytes_out
    assert record.outcome == Outcome.OK


def test_a_server_without_http2_is_a_connect_error(authority):
    certificate = authority.issue_cert("127.0.0.1")
    with serving(answers(OK), ssl_context=server_context(certificate, "http/1.1")) as server:
        mux = Mux(target.parse(server.url), tls=client_context(authority, "h2"))
        record = attempt(mux)
        mux.close()
    assert record.outcome == Outcome.CONNECT_ERROR
    assert record.error.startswith("TLS: ")


class Chatty:
    """TLS that answers all that the peer says, as if it were a renewal of the keys; it encrypts nothing."""

    def __init__(self) -> None:
        self._out = b""

    @property
    def pending(self) -> int:
        return len(self._out)

    def take(self, ciphertext: bytes) -> None:
        self._out += b"<" + ciphertext + b">"

    def seal(self, plaintext: bytes) -> bytes:
        out, self._out = self._out, b""
        return out + plaintext

    def unseal(self) -> None:
        """No plaintext came."""


class Drained:
    def __init__(self) -> None:
        self.times = 0

    def on_bytes(self, *_: object) -> None:
        raise AssertionError("nothing was said to us")

    def on_drained(self) -> None:
        self.times += 1


def test_what_tls_itself_has_to_say_goes_out_unasked_and_after_what_was_written_before():
    ours, theirs = plain.socketpair()
    ours.setblocking(False)
    with socket.socket(fileno=theirs.detach()) as peer:
        listener = Drained()
        transport = Transport(ours, Chatty(), listener, stamps="user")
        peer.sendall(b"a")
        assert peer.recv(9) == b"<a>"
        body = bytes(4 << 20)
        assert not transport.write(body)
        peer.sendall(b"b")
        gevent.idle()
        received = b""
        while len(received) < len(body) + 3:
            received += peer.recv(1 << 20)
        assert received == body + b"<b>"
        gevent.idle()
        assert listener.times == 1
        transport.close()
