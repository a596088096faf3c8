"""Claims about questions and answers, without a server."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.mock import api, questions
from harness.mock.cache import PrefixCache
from harness.mock.plan import END_MARKER, Kind, Plan
from harness.mock.questions import Endpoint

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi there"}]}
COMPLETION = {"model": "m", "prompt": "hi there"}


def read(endpoint: Endpoint, body: dict) -> questions.Question:
    question = questions.read(endpoint, json.dumps(body).encode())
    assert isinstance(question, questions.Question)
    return question


def answer(
    endpoint: Endpoint, body: dict, *, tokens: int = 3, cached: int = 0, request_id: str = "r"
) -> Plan:
    question = read(endpoint, body)
    return api.answer(
        question,
        api.compose(question, request_id=request_id, default_tokens=tokens),
        request_id=request_id,
        created=7,
        cached_tokens=cached,
        token_offsets_ns=list(range(10, 10 + tokens)),
        fingerprint="fp",
    )


def events(plan: Plan) -> list[dict]:
    texts = [step.payload.removeprefix(b"data: ") for step in plan.steps if step.payload != END_MARKER]
    return [json.loads(text) for text in texts]


@pytest.mark.parametrize(
    ("endpoint", "body", "status"),
    [
        (Endpoint.CHAT, b"", 400),
        (Endpoint.CHAT, b"{", 400),
        (Endpoint.CHAT, b'{"model":"\xff","messages":[]}', 400),
        (Endpoint.CHAT, b"[]", 422),
        (Endpoint.CHAT, b'{"messages":[{"role":"user","content":"x"}]}', 422),
        (Endpoint.CHAT, b'{"model":"m"}', 422),
        (Endpoint.CHAT, b'{"model":"m","messages":[]}', 422),
        (Endpoint.COMPLETIONS, b'{"model":"m"}', 422),
        (Endpoint.COMPLETIONS, b'{"model":"m","prompt":["a","b"]}', 400),
        (Endpoint.COMPLETIONS, b'{"model":"m","prompt":[]}', 422),
        (Endpoint.COMPLETIONS, b'{"model":"m","prompt":"x","max_tokens":0}', 400),
        (Endpoint.COMPLETIONS, b'{"model":"m","prompt":"x","temperature":3}', 400),
    ],
)
def test_bad_bodies_are_refused(endpoint: Endpoint, body: bytes, status: int):
    refused = questions.read(endpoint, body)
    assert isinstance(refused, questions.Refusal)
    assert refused.status == status
    assert refused.message


@given(st.binary(max_size=200))
def test_no_body_whatever_breaks_the_reader(body: bytes):
    assert isinstance(questions.read(Endpoint.CHAT, body), questions.Question | questions.Refusal)


@pytest.mark.parametrize(("prompt", "tokens"), [("x" * 100, 30), (["x" * 100], 30), ([5, 6, 7], 3), ("", 1)])
def test_prompts_are_counted_by_the_documented_rule_or_by_their_ids(prompt: object, tokens: int):
    assert read(Endpoint.COMPLETIONS, COMPLETION | {"prompt": prompt}).prompt_tokens == tokens


def test_content_parts_and_null_content_are_read():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "abc"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
    ]
    assert read(Endpoint.CHAT, CHAT | {"messages": messages}).text == "abc\n"


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_a_limit_gives_that_many_tokens_and_finish_reason_length(key: str):
    question = read(Endpoint.CHAT, CHAT | {key: 5})
    assert question.max_tokens == 5
    assert answer(Endpoint.CHAT, CHAT | {key: 5}, tokens=5).finish_reason == "length"
    assert answer(Endpoint.CHAT, CHAT).finish_reason == "stop"


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
def test_streamed_and_whole_answers_say_the_same(endpoint: Endpoint):
    body = CHAT if endpoint is Endpoint.CHAT else COMPLETION
    whole = events(answer(endpoint, body, tokens=40))[0]
    streamed = events(answer(endpoint, body | {"stream": True}, tokens=40))
    if endpoint is Endpoint.CHAT:
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in streamed)
        assert text == whole["choices"][0]["message"]["content"]
    else:
        assert "".join(event["choices"][0]["text"] for event in streamed) == whole["choices"][0]["text"]
    assert streamed[-1]["usage"] == whole["usage"]
    assert streamed[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"


@given(st.integers(1, 60), st.text(max_size=10), st.booleans())
def test_tokens_chunks_and_usage_agree(tokens: int, request_id: str, include_usage: bool):
    body = CHAT | {"stream": True, "stream_options": {"include_usage": include_usage}}
    plan = answer(Endpoint.CHAT, body, tokens=tokens, request_id=request_id)
    carried = [step for step in plan.steps if step.kind is Kind.TOKEN]
    said = events(plan)
    with_content = [e for e in said if e["choices"] and e["choices"][0]["delta"].get("content")]
    assert len(carried) == len(with_content) == tokens == said[-1]["usage"]["completion_tokens"]
    assert plan.steps[-1].payload == END_MARKER
    assert [step.at_ns for step in carried] == list(range(10, 10 + tokens))


def test_usage_rides_on_the_finish_chunk_unless_a_chunk_of_its_own_is_asked_for():
    usual = events(answer(Endpoint.CHAT, CHAT | {"stream": True}))
    assert usual[-1]["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in usual[0]
    asked = events(answer(Endpoint.CHAT, CHAT | {"stream": True, "stream_options": {"include_usage": True}}))
    assert asked[-1]["choices"] == []
    assert asked[-2]["choices"][0]["finish_reason"] == "stop"
    assert all(event["usage"] is None for event in asked[:-1])


def test_usage_adds_up():
    usage = events(answer(Endpoint.CHAT, CHAT, cached=1))[0]["usage"]
    assert usage["prompt_cache_hit_tokens"] == usage["prompt_tokens_details"]["cached_tokens"] == 1
    assert usage["prompt_tokens"] == usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_last_line_of_the_line_dialect_has_the_finish_reason_and_usage():
    lines = events(answer(Endpoint.LINES, COMPLETION))
    assert [line["choices"][0]["finish_reason"] for line in lines] == [None, None, None, "stop"]
    assert lines[-1]["usage"]["completion_tokens"] == 3


def test_the_vocabulary_holds_text_that_careless_clients_trip_over():
    text = events(answer(Endpoint.COMPLETIONS, COMPLETION, tokens=40))[0]["choices"][0]["text"]
    for awkward in ("你好", "\U0001f642", "\n", '"', "\\", "data:", "[DONE]", "{"):
        assert awkward in text


def test_the_same_prompt_hits_the_cache_in_whole_units():
    cache = PrefixCache()
    assert cache.match("x" * 1000, 300) == 0
    assert cache.match("x" * 1000, 300) == 256
    assert cache.match("x" * 1000, 300, user_id="another") == 0


def test_a_shared_prefix_hits_as_far_as_it_is_shared():
    cache = PrefixCache()
    cache.match("a" * 640 + "b" * 640, 384)
    assert cache.match("a" * 640 + "c" * 640, 384) == 192
    assert cache.match("b" * 640 + "a" * 640, 384) == 0


def test_the_cache_forgets_what_was_least_recently_used():
    cache = PrefixCache(capacity=2)
    cache.match("a" * 213, 64)
    cache.match("b" * 213, 64)
    assert cache.match("a" * 213, 64) == 64
    cache.match("c" * 213, 64)
    assert cache.match("b" * 213, 64) == 0
