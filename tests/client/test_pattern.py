"""A pattern may only ever save work: with it and without it, an answer reads the same."""

from __future__ import annotations

import json
from itertools import pairwise

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import DONE, Peer, attempt, chunk, serving
from scripted import event as told

from harness.client import answer as answers
from harness.client import pattern as patterns
from harness.client.answer import Stream
from harness.client.call import prepare
from harness.client.dialects import DIALECTS
from harness.client.dialects.chat import CHAT, decode
from harness.client.exchange import Exchange, Limits, limits
from harness.client.http1 import Connection
from harness.client.pattern import Stride, pattern_of
from harness.client.sse import Event
from harness.client.target import parse
from harness.record import Outcome
from harness.workload.prompts import Request
from harness.workload.scenario import Timeouts

REQUEST = Request(
    seq=0, index=0, id="r", session="r", turn=0, kind="stream", dialect="chat", model="m", prompt=None,
    messages=({"role": "user", "content": "hi"},), max_tokens=8, stream=True, parameters={}, prompt_tokens=1,
    tags={},
)  # fmt: skip
CALL = prepare(REQUEST, parse("http://127.0.0.1:1"))
HEAD = b'data: {"choices":[{"index":0,"delta":{"content":"'
TAIL = b'"},"finish_reason":null}]}\n\n'


def learned(piece=HEAD + b"token" + TAIL):
    payload = piece.removeprefix(b"data: ").removesuffix(b"\n\n")
    for _ in range(2):  # no shape is made of what was seen once
        pattern = pattern_of(piece, Event(payload, 0), decode(payload), CHAT.reads)
    return pattern


@pytest.mark.parametrize("text", [b"x", b" longer than before ", b"{}[]:,", "数".encode(), b"'"])
def test_another_plain_text_matches(text):
    assert learned().matches(HEAD + text + TAIL)


@pytest.mark.parametrize(
    "piece",
    [
        HEAD + TAIL,
        HEAD + b'a"},"x":{"y":"b' + TAIL,
        HEAD + b"a\\n" + TAIL,
        HEAD + b"a\x01" + TAIL,
        HEAD + b"a\nb" + TAIL,
        HEAD + b"\xff" + TAIL,
        HEAD + b"a" + TAIL + HEAD + b"b" + TAIL,
        HEAD + b"a" + TAIL.replace(b"null", b'"stop"'),
        HEAD[:-1] + TAIL[1:],
        b"event: error\n" + HEAD + b"a" + TAIL,
    ],
    ids=["empty", "members", "escape", "control", "line end", "not utf-8", "two", "end", "overlap", "named"],
)
def test_what_is_more_than_another_text_does_not_match(piece):
    assert not learned().matches(piece)


PADDED = (
    b'data: {"id":"chatcmpl-1","created":1762336862,"choices":[{"index":0,"delta":{"content":"token"},'
    b'"logprobs":{"content":[{"token":"token","logprob":-0.25,"bytes":[116,111],"top_logprobs":[]}]},'
    b'"finish_reason":null}],"usage":null,"obfuscation":"x7Kq"}\n\n'
)
"""As OpenAI's, with probabilities asked for."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"x7Kq", b""),
        (b"x7Kq", b"A much, longer {padding}: [1]"),
        (b"chatcmpl-1", b"chatcmpl-2"),
        (b"1762336862", b"1762336863"),
        (b"-0.25", b"-1.5e-07"),
        (b"[116,111]", b"[32]"),
        (b'"content":"token"', '"content":"数"'.encode()),
        (b'"index":0', b'"index":1'),
    ],
)
def test_what_nobody_reads_may_differ(before, after):
    pattern, piece = learned(PADDED), PADDED.replace(before, after)
    assert pattern.matches(piece)
    stride = Stride(pattern, [])
    assert stride.takes(chunk(piece), 7)
    assert stride.takes(b"%X\r\n%b\r\n" % (len(piece), piece), 8)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"finish_reason":null', b'"finish_reason":"stop"'),
        (b'"usage":null', b'"usage":{"prompt_tokens":1,"completion_tokens":1}'),
        (b'"usage":null', b'"usage":null,"error":{"code":"x"}'),
        (b'"content":"token"', b'"content":""'),
        (b'"content":"token"', b'"content":"a\\n"'),
        (b'"content":"token"', b'"content":"\xff"'),
        (b'"content":"token"', b'"content":"a","reasoning":"b"'),
        (b'"index":0', b'"index":00'),
        (b'"index":0', b'"index":"0"'),
        (b'"index":0', b'"index":[{}]'),
        (b"-0.25", b"-.25"),
        (b"-0.25", b"-"),
        (b"x7Kq", b"a\\n"),
        (b"x7Kq", b"\xff"),
        (b"x7Kq", b'a","error":{"code":"b"},"c":"'),
        (b'{"id"', b'{"error":"x","id"'),
        (b"[116,111]", b"[116,]"),
    ],
)
def test_what_is_read_or_no_json_may_not_differ(before, after):
    pattern, piece = learned(PADDED), PADDED.replace(before, after)
    assert piece != PADDED
    assert not pattern.matches(piece)
    assert not Stride(pattern, []).takes(chunk(piece), 7)


def test_the_members_that_make_a_difference_are_all_that_the_decoders_know():
    assert {b"choices", b"delta", b"content", b"refusal", b"finish_reason", b"usage", b"error"} <= CHAT.reads
    assert {b"prompt_cache_hit_tokens", b"cached_tokens", b"x_groq", b"thinking", b"code"} <= CHAT.reads
    assert {b"text", b"reasoning_content"} <= DIALECTS["completions"].reads
    assert not {b"id", b"created", b"obfuscation", b"logprob", b"index"} & CHAT.reads


def test_a_shape_is_made_of_what_comes_again_and_of_no_more_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(patterns, "_SHAPES", {})
    payload = PADDED[6:-2]
    first, again = (pattern_of(PADDED, Event(payload, 0), decode(payload), CHAT.reads) for _ in range(2))
    assert (first.shape is None, again.shape is None) == (True, False)
    for number in range(300):
        learned(PADDED.replace(b"obfuscation", b"padding%d" % number))
    assert len(patterns._SHAPES) == patterns._SHAPES_MOST


def test_a_text_in_a_member_that_nobody_reads_is_not_taken_out_twice(monkeypatch):
    monkeypatch.setattr(patterns, "_SHAPES", {})
    piece = b'data: {"choices":[{"text":"\\n","content":"foo"}]}\n\n'
    completions = DIALECTS["completions"]
    payload = piece[6:-2]
    for _ in range(2):
        pattern = pattern_of(piece, Event(payload, 0), completions.decode_event(payload), completions.reads)
    assert pattern.shape(piece, 0, len(piece)) is not None


def test_a_stream_that_never_looks_alike_teaches_no_end_of_shapes(monkeypatch):
    made = []
    make = patterns._expression
    monkeypatch.setattr(patterns, "_expression", lambda *piece: made.append(piece) or make(*piece))
    pieces = [PADDED.replace(b"obfuscation", b"padding%d" % number) for number in range(100)]
    assert read(pieces)["chunk_ns"] == list(range(10, 110))
    assert len(made) == answers._LESSONS


def test_short_texts_are_remembered_and_not_too_many(monkeypatch):
    monkeypatch.setattr(patterns, "_KNOWN", set())
    for number in range(6_000):
        assert learned().matches(HEAD + b"t%d" % number + TAIL)
    assert len(patterns._KNOWN) == patterns._KNOWN_MOST


def test_known_texts_are_told_together_up_to_the_first_that_is_not(monkeypatch):
    monkeypatch.setattr(patterns, "_KNOWN", {b"a", b"bc"})
    pattern, pieces = learned(), [HEAD + text + TAIL for text in (b"a", b"bc", b"a", b"new", b"a")]
    assert pattern.leads(pieces) == 3
    assert pattern.leads(pieces[3:]) == 0
    assert pattern.leads([]) == 0


@pytest.mark.parametrize(
    "piece",
    [
        HEAD.replace(b'"index":0', b'"index":1') + b"a" + TAIL,
        HEAD + b"a" + TAIL.replace(b"null", b'"en"'),
        HEAD[1:] + b"xa" + TAIL,
        HEAD + b"a" + TAIL[:-1],
        HEAD[:-1] + TAIL,
        b"",
    ],
)
def test_no_piece_among_many_passes_for_what_it_is_not(piece, monkeypatch):
    monkeypatch.setattr(patterns, "_KNOWN", {b"a", b"xa", b'"', b"a" + TAIL[:1]})
    usual = HEAD + b"a" + TAIL
    assert learned().leads([usual, piece, usual]) < 2
    assert learned().leads([piece, HEAD[1:] + b"a" + TAIL]) == 0


def test_a_new_text_among_known_ones_keeps_every_stamp(monkeypatch):
    monkeypatch.setattr(patterns, "_KNOWN", {b"a"})
    texts = [b"new" if number in {5, 6, 29} else b"a" for number in range(40)]
    exchange, answer = Exchange(limits(Timeouts()), 0), Stream(CALL)
    exchange.pieces += [HEAD + text + TAIL for text in texts]
    exchange.stamps += range(40)
    answer.read(exchange)
    assert answer.chunk_ns == list(range(40))


def test_expressions_that_never_came_again_make_room(monkeypatch):
    monkeypatch.setattr(patterns, "_SHAPES", {})
    assert learned(PADDED).shape is not None
    for number in range(patterns._SHAPES_MOST):
        payload = PADDED.replace(b"obfuscation", b"padding%d" % number)[6:-2]
        pattern_of(PADDED, Event(payload, 0), decode(payload), CHAT.reads)
    assert learned(PADDED.replace(b"obfuscation", b"late")).shape is not None
    assert patterns._SHAPES[next(iter(patterns._SHAPES))] is not None  # a shape that helped is kept


def test_a_shape_outlives_a_piece_that_has_none(monkeypatch):
    monkeypatch.setattr(patterns, "_SHAPES", {})
    monkeypatch.setattr(answers, "_LESSONS", 2)
    decoded, answer, exchange = [], Stream(CALL), Exchange(limits(Timeouts()), 0)
    answer._decode = lambda payload, real=answer._decode: decoded.append(payload) or real(payload)
    odd = PADDED.replace(b"x7Kq", "é".encode())
    varied = [PADDED.replace(b"x7Kq", b"pad%d" % number) for number in range(40)]
    exchange.pieces += [*varied[:20], odd, *varied[20:]]
    exchange.stamps += range(41)
    answer.read(exchange)
    assert answer.chunk_ns == list(range(41))
    assert len(decoded) == 5  # the first, one that teaches the text, two the shape, and the odd one


def test_where_shapes_help_the_first_lesson_asks_for_one(monkeypatch):
    monkeypatch.setattr(patterns, "_SHAPES", {})
    learned(PADDED)
    decoded, answer, exchange = [], Stream(CALL), Exchange(limits(Timeouts()), 0)
    answer._decode = lambda payload, real=answer._decode: decoded.append(payload) or real(payload)
    exchange.pieces += [PADDED.replace(b"x7Kq", b"pad%d" % number) for number in range(20)]
    exchange.stamps += range(20)
    answer.read(exchange)
    assert len(decoded) == 2


@pytest.mark.parametrize("order", ["aba", "abab", "aabba"])
def test_usage_in_each_chunk_is_that_of_the_last(order):
    counted = {
        name: PADDED.replace(b'"usage":null', b'"usage":{"prompt_tokens":9,"completion_tokens":%d}' % number)
        for number, name in enumerate("ab", 1)
    }
    exchange, answer = Exchange(limits(Timeouts()), 0), Stream(CALL)
    exchange.pieces += [counted[name] for name in order * 10]
    exchange.stamps += range(len(exchange.pieces))
    answer.read(exchange)
    assert answer.usage.completion == " ab".index(order[-1])


@pytest.mark.parametrize(
    "delta",
    [
        {"content": ""},
        {"role": "assistant"},
        {"content": "a", "reasoning_content": "b"},
        {"content": 'said "a"'},
    ],
    ids=["empty", "no text", "two texts", "escaped"],
)
def test_what_has_no_single_plain_text_teaches_nothing(delta):
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    assert learned(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n") is None


def test_an_end_and_an_error_teach_nothing():
    assert learned(HEAD + b"a" + TAIL.replace(b"null", b'"stop"')) is None
    assert learned(HEAD + b"a" + TAIL.replace(b"]}\n", b'],"error":{"code":"x"}}\n')) is None


texts = st.one_of(st.text(max_size=6), st.sampled_from(["a", " the", "数", "\U0001f642", '"', "\\", "\n"]))
members = st.sampled_from(["content", "reasoning_content", "role", "text"])
extras = st.dictionaries(
    st.sampled_from(["obfuscation", "obfuscation", "created", "usage", "error", "type"]),
    st.one_of(texts, st.integers(), st.floats(allow_nan=False), st.lists(st.integers(0, 255), max_size=3)),
    max_size=2,
)
events = st.one_of(
    st.tuples(members, texts, st.sampled_from([None, None, None, "stop"]), st.booleans(), extras),
    st.sampled_from([": keep-alive\n\n", "\n", "data: [DONE]\n\n", "data: {broken\n\n", "id: 7\n", "\r\n"]),
)


def spelled(event):
    if isinstance(event, str):
        return event.encode()
    member, text, finish, ascii_only, extra = event
    choice = {"index": 0, "delta": {member: text}, "finish_reason": finish}
    whole = {"id": "x", "choices": [choice], **extra}
    body = json.dumps(whole, ensure_ascii=ascii_only, separators=(",", ":"))
    return b"data: %b\n\n" % body.encode("utf-8", "surrogatepass")


def read(pieces):
    exchange = Exchange(limits(Timeouts()), 0)
    exchange.headers_ns, answer = 1, Stream(CALL)
    for number, piece in enumerate(pieces):
        exchange.pieces.append(piece)
        exchange.stamps.append(10 + number)
        if number % 5 == 4:  # as if digested in between
            answer.read(exchange)
            exchange.pieces.clear()
            exchange.stamps.clear()
    answer.read(exchange)
    exchange.ended_ns = 10_000
    answer.end(exchange)
    return {
        name: getattr(answer, name)
        for name in ("chunk_ns", "first_event_ns", "first_token_ns", "first_content_ns", "kept_alive", "done",
                     "finish_reason", "outcome", "error", "choices", "usage")
    }  # fmt: skip


@given(st.lists(events, max_size=14), st.lists(st.integers(0, 400), max_size=4))
def test_an_answer_reads_the_same_without_patterns(told, cuts):
    whole = [spelled(event) for event in told]
    joined = b"".join(whole)
    edges = sorted({0, len(joined), *(cut % (len(joined) + 1) for cut in cuts)})
    pieces = [joined[a:b] for a, b in pairwise(edges)] if cuts else whole
    quick = read(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "pattern_of", lambda *_: None)
        assert read(pieces) == quick


def test_the_usual_piece_is_told_by_its_pattern_alone():
    usual = HEAD + b"token" + TAIL
    decoded = []
    answer, exchange = Stream(CALL), Exchange(limits(Timeouts()), 0)
    counting = answer._decode
    answer._decode = lambda payload: decoded.append(payload) or counting(payload)
    exchange.pieces += [usual] * 50
    exchange.stamps += range(50)
    answer.read(exchange)
    assert answer.chunk_ns == list(range(50))
    assert len(decoded) == 2  # the first is not known to be whole, the second teaches the pattern


# -- a stream in its stride: whole chunks of HTTP/1.1 -----------------------------------------------------


def sized(size, form=b"%x"):
    """A chunk whose data is so long."""
    data = HEAD + b"x" * (size - len(HEAD + TAIL)) + TAIL
    return (form + b"\r\n%b\r\n") % (size, data)


@pytest.mark.parametrize("form", [b"%x", b"%X"])
@pytest.mark.parametrize("size", [0x60, 0x9F, 0xA0, 0xFE, 0xFF, 0x100, 0x101, 0x300, 0x7F8])
def test_a_stride_takes_a_chunk_of_any_size(size, form):
    stamps = []
    stride, read = Stride(learned(), stamps), sized(size, form)
    assert stride.takes(read, 7)
    assert stride.takes(read, 8)
    assert (stamps, stride.bytes_in) == ([7, 8], 2 * len(read))


USUAL = chunk(HEAD + b"a" + TAIL)


@pytest.mark.parametrize(
    "read",
    [
        b"",
        USUAL + b"0\r\n\r\n",
        USUAL + USUAL[:-1],
        USUAL + USUAL[:2],
        USUAL + USUAL[:4],
        USUAL + USUAL[2:],
        USUAL + chunk(HEAD + b"a\\n" + TAIL),
        USUAL + chunk(HEAD + TAIL),
        USUAL + chunk(HEAD) + chunk(b"a" + TAIL),
        USUAL + chunk(b": still here\n\n") + USUAL,
        chunk(USUAL),
        USUAL[:-1],
        USUAL[1:],
        USUAL[:-2],
        b"0" + USUAL,
        USUAL.replace(b"\r\n", b";x\r\n", 1),
        USUAL.replace(b"\r\n", b"\n", 1),
        sized(0xAB).replace(b"ab", b"aB", 1),
        b"\r\n%b\r\n" % (HEAD + b"x" * (258 - len(HEAD + TAIL)) + TAIL),
        b"\r\n" * 10,
        b"x" * 262,
        chunk(HEAD + b"a\\n" + TAIL),
        chunk(HEAD + b"\xff" + TAIL),
        chunk(HEAD + TAIL),
        chunk(HEAD[:-1] + TAIL[1:]),
        chunk(b"data: [DONE]\n\n"),
        chunk(HEAD + b"x" * 2_000 + TAIL),
        b"0\r\n\r\n",
    ],
    ids=["nothing", "the last too", "two and less", "half a size", "a size", "no size", "two and an escape",
         "two and empty", "two halves", "a comment", "in a chunk",
         "less", "begun", "no end", "zero", "extension", "line feed",
         "both cases", "no size", "line ends", "nonsense", "escape", "not utf-8", "empty", "overlap", "done",
         "long", "end"],
)  # fmt: skip
def test_a_stride_takes_nothing_else(read):
    stamps = []
    stride = Stride(learned(), stamps)
    assert not stride.takes(read, 7)
    assert (stamps, stride.bytes_in) == ([], 0)


@pytest.mark.parametrize("form", [b"%x\r\n%b\r\n", b"%X\r\n%b\r\n"])
@pytest.mark.parametrize("count", [2, 3, 60])
def test_a_stride_takes_a_read_of_several_chunks(count, form):
    stamps = []
    stride = Stride(learned(), stamps)
    data = [HEAD + b"x" * (1 + number % 99) + TAIL for number in range(count)]
    read = b"".join(form % (len(each), each) for each in data)
    assert stride.takes(read, 7)
    assert stride.takes(USUAL, 8)
    assert (stamps, stride.bytes_in) == ([7] * count + [8], len(read) + len(USUAL))


class Wire:
    """Stands for the socket: a read goes to the taker, and then to the connection, as `Transport` has it."""

    def __init__(self, monkeypatch):
        self.open = self.drained = True
        self.floor_ns, self.unheard_bytes, self.taker = 0, 0, None
        self.connection = Connection(parse("http://127.0.0.1:1"))
        monkeypatch.setattr("harness.client.http1.connect", lambda *_, **__: self)
        monkeypatch.setattr(Exchange, "wait", lambda _: None)
        self.exchange = Exchange(Limits(10**12, 10**6, 10**12), 1, Stream(CALL))
        self.connection.exchange(self.exchange, CALL)
        self.exchange.sent_ns = 2

    def write(self, payload):
        return bool(payload)

    def alive(self):
        return self.open

    def close(self):
        self.open = False

    def read(self, piece, stamp_ns):
        if self.open and not (self.taker and self.taker.takes(piece, stamp_ns)):
            self.connection.on_bytes(piece, stamp_ns)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def seen(reads):
    """What the wire and the answer know after these reads."""
    with pytest.MonkeyPatch.context() as patch:
        wire = Wire(patch)
        for stamp_ns, read in enumerate(reads, 10):
            wire.read(read, stamp_ns)
        exchange, answer = wire.exchange, wire.exchange.digester
        if exchange.ended_ns is None:
            wire.connection.on_end(None, 9_999)
        exchange.digest()
        answer.end(exchange)
        return (
            (exchange.bytes_in, exchange.status, exchange.headers_ns, exchange.ended_ns, exchange.outcome),
            (answer.chunk_ns, answer.first_event_ns, answer.first_token_ns, answer.first_content_ns),
            (answer.said, answer.choices, answer.done, answer.kept_alive),
            exchange.error,
        )


learning = [spelled(("content", "token", None, False, {}))] * 16
usual = st.tuples(
    st.sampled_from(["a", " the", "数", "token", "x" * 90]),
    st.sampled_from([{}, {"obfuscation": "a"}, {"obfuscation": "xyz"}, {"created": 1.5}, {"created": -20}]),
).map(lambda varied: spelled(("content", varied[0], None, False, varied[1])))
several = st.lists(st.one_of(usual, usual, usual, events.map(spelled)), max_size=40)
cuts = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), max_size=6)


@given(several, cuts, st.booleans(), st.sampled_from([b"%x\r\n%b\r\n", b"%X\r\n%b\r\n"]))
def test_an_answer_reads_the_same_without_strides(whole, cuts, ended, form):
    reads = [STREAM_HEAD, *(form % (len(event), event) for event in [*learning, *whole] if event)]
    reads += [chunk(b"data: [DONE]\n\n"), b"0\r\nX-Trailer: 1\r\n\r\n"] if ended else []
    for at, place in cuts:  # some reads end in mid-chunk; some hold more than one
        number = at % len(reads)
        first, rest = reads[number][:place], reads[number][place:]
        following = reads[number + 1] if number + 1 < len(reads) else b""
        reads[number : number + 2] = [each for each in (first, rest + following) if each]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.client.http1._SHORT_STRIDE_BYTES", 0)  # as many strides as can be
        quick = seen(reads)
        patch.setattr(Stream, "stride", lambda *_: None)
        assert seen(reads) == quick


LEARNT = [STREAM_HEAD, *[USUAL] * 60]
"""More than a short stride: what follows may begin another one."""


@pytest.mark.parametrize(
    "before", [HEAD + b"b" + TAIL, HEAD + b"b" + TAIL + b":\n\r\n"], ids=["event", "line"]
)
def test_what_looks_like_a_chunk_in_mid_chunk_is_data(before):
    data = before + USUAL
    reads = [*LEARNT, b"%x\r\n" % len(data) + before, USUAL, b"\r\n", chunk(DONE) + b"0\r\n\r\n"]
    (bytes_in, *_, outcome), (chunk_ns, *_), *_ = seen(reads)
    assert (bytes_in, outcome, len(chunk_ns)) == (sum(map(len, reads)), None, 62)


def test_what_looks_like_an_event_in_mid_event_is_not_one():
    reads = [*LEARNT, chunk(b"event: error\n"), USUAL, chunk(DONE) + b"0\r\n\r\n"]
    *_, (said, *_), _ = seen(reads)
    assert said[0] == Outcome.IN_BAND_ERROR


def parsed(monkeypatch):
    """Which reads llhttp gets."""
    feed, reads = Connection.on_bytes, []

    def on_bytes(self, piece, stamp_ns):
        reads.append(stamp_ns)
        feed(self, piece, stamp_ns)

    monkeypatch.setattr(Connection, "on_bytes", on_bytes)
    return reads


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_a_stream_in_its_stride_is_not_parsed(monkeypatch, chunks):
    reads = parsed(monkeypatch)
    wire = Wire(monkeypatch)
    for stamp_ns, piece in enumerate([STREAM_HEAD, *[chunk(told("token")) * chunks] * 200], 10):
        wire.read(piece, stamp_ns)
    assert reads == list(range(10, 10 + len(reads)))
    assert len(reads) < 20
    assert wire.exchange.digester.chunk_ns == sorted([*range(11, 211)] * chunks)
    assert not wire.exchange.pieces


def test_one_unusual_chunk_does_not_end_the_stride_for_long(monkeypatch):
    reads = parsed(monkeypatch)
    wire = Wire(monkeypatch)
    texts = [*["token"] * 40, "\\n", *["token"] * 40]
    for stamp_ns, piece in enumerate([STREAM_HEAD, *(chunk(told(text)) for text in texts)], 10):
        wire.read(piece, stamp_ns)
    assert [stamp_ns for stamp_ns in reads if stamp_ns > 40] == [51]
    assert wire.exchange.digester.chunk_ns == list(range(11, 92))


def test_chunks_that_never_match_are_not_tried_again_and_again(monkeypatch):
    wire, tried = Wire(monkeypatch), []
    takes = Stride.takes
    monkeypatch.setattr(Stride, "takes", lambda self, *read: tried.append(read) or takes(self, *read))
    for number in range(300):
        padded = told("token").replace(b'{"choices"', b'{"padding%09d":"","choices"' % number)
        wire.read(chunk(padded) if number else STREAM_HEAD, number)
    wire.read(chunk(DONE) + b"0\r\n\r\n", 300)
    assert 0 < len(tried) <= 5
    wire.exchange.digest()
    assert wire.exchange.digester.chunk_ns == list(range(1, 300))

    wire.exchange = Exchange(Limits(10**12, 10**6, 10**12), 1, Stream(CALL))
    wire.connection.exchange(wire.exchange, CALL)
    for stamp_ns, piece in enumerate([STREAM_HEAD, *[USUAL] * 40]):
        wire.read(piece, stamp_ns)
    assert len(tried) > 20


def test_where_odd_chunks_come_often_few_strides_are_begun(monkeypatch):
    wire, begun, init = Wire(monkeypatch), [], Stride.__init__
    monkeypatch.setattr(Stride, "__init__", lambda self, *how: begun.append(self) or init(self, *how))
    for stamp_ns, piece in enumerate([STREAM_HEAD, *[USUAL, USUAL * 2, chunk(told("\\n"))] * 300]):
        wire.read(piece, stamp_ns)
    assert 0 < len(begun) < 300 * 4 * len(USUAL) // 8_192 + 10
    wire.exchange.digest()
    assert len(wire.exchange.digester.chunk_ns) == 1_200


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked",
        b"Content-Length: 100000",
        b"Connection: close",
    ],
)
def test_what_is_not_in_plain_chunks_of_http_is_parsed(monkeypatch, fields):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % fields
    inflated = b"gzip" in fields
    reads = [head, *[chunk(b"\x1f\x8b") if inflated else told("token") + USUAL] * 60]
    wire = Wire(monkeypatch)
    for stamp_ns, piece in enumerate(reads):
        wire.read(piece, stamp_ns)
        assert wire.taker is None


def test_what_was_read_and_let_go_was_progress(monkeypatch):
    """Events without a token leave no stamp behind."""
    wire = Wire(monkeypatch)
    idle = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
    for number, piece in enumerate([STREAM_HEAD, *[chunk(idle)] * 200]):
        wire.read(piece, number * 900_000)
    wire.exchange.digest()
    assert not wire.exchange.pieces
    assert wire.exchange.overdue(200 * 900_000 + 999_999) is None
    assert wire.exchange.overdue(200 * 900_000 + 1_000_000)[1] == "idle timeout in mid-answer"


def test_a_comment_in_mid_stride_is_no_progress(monkeypatch):
    wire = Wire(monkeypatch)
    for number, piece in enumerate([STREAM_HEAD, *[chunk(told("token"))] * 40, chunk(b": still here\n\n")]):
        wire.read(piece, number * 900_000)
    assert wire.exchange.overdue(40 * 900_000 + 1_000_000)[1] == "idle timeout in mid-answer"


def test_a_connection_is_used_again_after_a_stride(monkeypatch):
    wire, reads = Wire(monkeypatch), [STREAM_HEAD, *[USUAL] * 40, chunk(DONE) + b"0\r\n\r\n"]
    for again in (False, True):
        if again:
            wire.exchange = Exchange(Limits(10**12, 10**6, 10**12), 1, Stream(CALL))
            wire.connection.exchange(wire.exchange, CALL)
        for stamp_ns, piece in enumerate(reads):
            wire.read(piece, stamp_ns)
        wire.exchange.digest()
        assert wire.exchange.digester.chunk_ns == list(range(1, 41))
        assert wire.exchange.bytes_in == sum(map(len, reads))


def test_a_bug_in_a_stride_reaches_the_one_who_waits(monkeypatch):
    def script(peer: Peer) -> None:
        peer.read_request()
        for piece in [STREAM_HEAD, *[USUAL] * 40]:
            peer.send(piece)
            gevent.idle()  # the client reads
        peer.until_gone()

    monkeypatch.setattr(Stride, "takes", lambda *_: 1 // 0)
    with serving(script) as server, pytest.raises(ZeroDivisionError):
        attempt(server.url, stream=True)


def test_a_stream_in_its_stride_makes_progress_until_its_last_chunk(monkeypatch):
    wire = Wire(monkeypatch)
    for number, piece in enumerate([STREAM_HEAD, *[chunk(told("token"))] * 40]):
        wire.read(piece, number * 900_000)
    last_ns = 40 * 900_000
    assert wire.exchange.overdue(last_ns + 999_999) is None
    assert wire.exchange.overdue(last_ns + 1_000_000)[1] == "idle timeout in mid-answer"


@pytest.mark.parametrize("tail", [b"", chunk(DONE), chunk(DONE) + b"0\r\n\r\n", b"broken\r\n"])
def test_all_bytes_are_counted_however_a_stride_ends(monkeypatch, tail):
    wire, reads = Wire(monkeypatch), [STREAM_HEAD, *[chunk(told("token"))] * 40, *[tail] * bool(tail)]
    for stamp_ns, piece in enumerate(reads):
        wire.read(piece, stamp_ns)
    if wire.open:
        wire.connection.on_end(None, 99)
    assert wire.exchange.bytes_in == sum(map(len, reads))
    assert wire.taker is None


@pytest.mark.parametrize("ended_by", ["a kill", "a deadline"])
def test_all_bytes_are_counted_when_we_end_a_stream_in_its_stride(monkeypatch, ended_by):
    wire = Wire(monkeypatch)
    for stamp_ns, piece in enumerate([STREAM_HEAD, *[chunk(told("token"))] * 40]):
        wire.read(piece, stamp_ns)
    if ended_by == "a kill":
        wire.connection.drop(wire.exchange)
    else:
        wire.connection.give_up(wire.exchange, Outcome.TIMEOUT, "total timeout")
    assert wire.taker is None
    assert wire.exchange.bytes_in == len(STREAM_HEAD) + 40 * len(chunk(told("token")))
