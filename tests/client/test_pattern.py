"""A pattern may only ever save work: with it and without it, an answer reads the same."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.client import answer as answers
from harness.client.answer import Stream
from harness.client.call import prepare
from harness.client.dialects.chat import decode
from harness.client.exchange import Exchange, limits
from harness.client.pattern import pattern_of
from harness.client.sse import Event
from harness.client.target import parse
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
    return pattern_of(piece, Event(payload, 0), decode(payload))


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
events = st.one_of(
    st.tuples(members, texts, st.sampled_from([None, None, None, "stop"]), st.booleans()),
    st.sampled_from([": keep-alive\n\n", "\n", "data: [DONE]\n\n", "data: {broken\n\n", "id: 7\n", "\r\n"]),
)


def spelled(event):
    if isinstance(event, str):
        return event.encode()
    member, text, finish, ascii_only = event
    choice = {"index": 0, "delta": {member: text}, "finish_reason": finish}
    body = json.dumps({"id": "x", "choices": [choice]}, ensure_ascii=ascii_only, separators=(",", ":"))
    return b"data: %b\n\n" % body.encode("utf-8", "surrogatepass")


def read(pieces):
    exchange = Exchange(limits(Timeouts()), 0)
    exchange.headers_ns, answer = 1, Stream(CALL)
    for number, piece in enumerate(pieces):
        exchange.pieces.append(piece)
        exchange.stamps.append(10 + number)
        if number % 3 == 2:  # as if digested in between
            answer.read(exchange)
            exchange.pieces.clear()
            exchange.stamps.clear()
    answer.read(exchange)
    exchange.ended_ns = 10_000
    answer.end(exchange)
    return {
        name: getattr(answer, name)
        for name in ("chunk_ns", "first_event_ns", "first_token_ns", "first_content_ns", "kept_alive", "done",
                     "finish_reason", "outcome", "error", "choices")
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
