"""Claims about HTTP/1.1 as the mock reads and writes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.mock.http1 import BadRequestError, Reader, Request, chunk, opening, whole

POST = b"POST /v1/x%20y?a=b HTTP/1.1\r\nHost: mock\r\nContent-Length: 5\r\nX-A:  1 \r\nx-a: 2\r\n\r\nhello"
CHUNKED = (
    b"POST /x HTTP/1.1\r\nhost: mock\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n2;extension=1\r\nlo\r\n0\r\ntrailer: 1\r\n\r\n"
)
GET = b"GET /health HTTP/1.1\r\nhost: mock\r\n\r\n"
LONG = b"PUT /x HTTP/1.0\r\ncontent-length: 3000\r\n\r\n" + b"y" * 3000
SECOND = 1_790_000_000
DATE = b"date: Mon, 21 Sep 2026 14:13:20 GMT\r\n"


def read_all(*pieces: bytes) -> list[Request]:
    reader, found = Reader(), list[Request]()
    for stamp_ns, piece in enumerate(pieces):
        reader.feed(piece, stamp_ns)
        while (request := reader.next()) is not None:
            found.append(request)
    return found


def only(piece: bytes) -> Request:
    (found,) = read_all(piece)
    return found


def test_a_request_is_read_with_its_path_decoded_and_its_fields_joined():
    request = only(POST)
    assert (request.method, request.path, request.query_string) == ("POST", "/v1/x y", "a=b")
    assert request.headers == {"host": "mock", "content-length": "5", "x-a": "1, 2"}
    assert (request.body, request.keep_alive, request.http_version) == (b"hello", True, "1.1")


def test_a_body_in_chunks_is_put_together_without_its_trailers():
    assert only(CHUNKED).body == b"hello"


@given(st.data())
def test_any_split_of_the_bytes_yields_the_same_requests(data: st.DataObject):
    stream = b"".join((POST, CHUNKED, b"\r\n", GET, LONG, CHUNKED))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=40)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    found = read_all(*pieces)
    assert [request.body for request in found] == [b"hello", b"hello", b"", b"y" * 3000, b"hello"]
    assert [request.method for request in found] == ["POST", "POST", "GET", "PUT", "POST"]


def test_a_request_bears_the_stamp_of_the_read_that_brought_its_first_byte():
    first, second, third = read_all(POST[:1], POST[1:], GET + POST[:9], POST[9:])
    assert [first.first_byte_ns, second.first_byte_ns, third.first_byte_ns] == [0, 2, 2]


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "close", False),
        ("1.1", "TE, Close", False),
        ("1.0", "", False),
        ("1.0", "keep-alive", True),
    ],
)
def test_a_connection_stays_as_its_version_and_its_client_say(version: str, connection: str, stays: bool):
    field = f"connection: {connection}\r\n" if connection else ""
    assert only(f"GET / HTTP/{version}\r\nhost: m\r\n{field}\r\n".encode()).keep_alive is stays


def test_a_whole_url_is_a_path():
    request = only(b"GET http://mock:1/a?b HTTP/1.1\r\nhost: mock:1\r\n\r\n")
    assert (request.path, request.query_string) == ("/a", "b")
    assert only(b"GET http://mock:1 HTTP/1.1\r\nhost: mock:1\r\n\r\n").path == "/"
    assert only(b"GET http://mock?b HTTP/1.1\r\nhost: mock\r\n\r\n").path == "/"
    assert only(b"GET http://[/a HTTP/1.1\r\nhost: mock\r\n\r\n").path == "/a"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01 is no line\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nhost: m\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nhost: m\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: m\r\n folded: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: m\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : m\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nhost: m\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: m\r\ncontent-length: -1\r\n\r\n", 400),
        (b"CONNECT mock:443 HTTP/1.1\r\nhost: m\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: m\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: m\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: m\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: " + b"m" * 70_000, 431),
    ],
)
def test_what_is_no_request_is_refused(raw: bytes, status: int):
    reader = Reader()
    reader.feed(raw, 0)
    with pytest.raises(BadRequestError) as caught:
        reader.next()
    assert caught.value.status == status


@pytest.mark.parametrize(
    "first",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/realtime HTTP/1.1\r\nhost: m\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\nmore",
    ],
)
def test_http2_and_websockets_are_left_to_others_whole(first: bytes):
    reader = Reader()
    for at in range(len(first)):
        reader.feed(first[at : at + 1], at)
        assert reader.next() is None
    assert reader.foreign
    assert reader.unread == first


def test_a_client_that_waits_for_leave_to_send_its_body_is_given_it_once():
    reader = Reader()
    reader.feed(b"POST / HTTP/1.1\r\nhost: m\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n", 0)
    assert reader.next() is None
    assert reader.awaits_continue
    assert not reader.awaits_continue
    reader.feed(b"ok", 1)
    request = reader.next()
    assert request is not None
    assert request.body == b"ok"


def test_a_whole_answer_has_its_length_and_its_date():
    answer = whole(200, [("x-a", "1")], b"hello", to=only(GET), second=SECOND)
    assert answer == b"HTTP/1.1 200 OK\r\nx-a: 1\r\ncontent-length: 5\r\n" + DATE + b"\r\nhello"


def test_a_status_without_a_name_is_sent_without_one():
    assert whole(520, [], b"", to=only(GET), second=SECOND).startswith(b"HTTP/1.1 520 \r\n")


def test_a_length_that_is_given_is_left_as_it_is():
    answer = whole(200, [("content-length", "9")], b"hello", to=only(GET), second=SECOND)
    assert answer.count(b"content-length") == 1
    assert b"content-length: 9\r\n" in answer


def test_an_answer_to_head_and_one_of_204_have_no_body():
    head = only(GET.replace(b"GET", b"HEAD"))
    assert whole(200, [], b"hello", to=head, second=SECOND).endswith(
        b"content-length: 5\r\n" + DATE + b"\r\n"
    )
    assert whole(204, [], b"", to=only(GET), second=SECOND) == b"HTTP/1.1 204 No Content\r\n" + DATE + b"\r\n"


def test_the_last_answer_of_a_connection_says_so():
    closing = only(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert b"\r\nconnection: close\r\n" in whole(200, [], b"", to=closing, second=SECOND)
    assert b"\r\nconnection: close\r\n" in whole(400, [], b"", to=None, second=SECOND)
    assert b"connection" not in whole(200, [], b"", to=only(GET), second=SECOND)


def test_an_answer_in_pieces_is_chunked_for_who_knows_chunks():
    new = opening(200, [], to=only(GET), second=SECOND)
    assert (new.chunked, new.last) == (True, False)
    assert b"transfer-encoding: chunked\r\n" in new.head
    old = opening(200, [], to=only(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"), second=SECOND)
    assert (old.chunked, old.last) == (False, True)
    assert b"transfer-encoding" not in old.head
    assert b"connection: close\r\n" in old.head
    assert chunk(b"0123456789") == b"A\r\n0123456789\r\n"


def test_an_answer_in_pieces_of_a_known_length_is_not_chunked():
    known = opening(200, [("content-length", "3")], to=only(GET), second=SECOND)
    assert (known.chunked, known.last) == (False, False)
    assert b"transfer-encoding" not in known.head
