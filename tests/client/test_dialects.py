"""Claims about how requests are written and answers read."""

from __future__ import annotations

import json

import msgspec
import pytest
from scripted import request

from harness.client.dialects import DIALECTS
from harness.client.dialects.base import error_name, error_of
from harness.record import Usage

CHAT, COMPLETIONS, LINES = (DIALECTS[name] for name in ("chat", "completions", "completions-lines"))


def test_a_chat_request_carries_its_messages_and_parameters():
    messages = ({"role": "user", "content": "hello"},)
    asked = request(prompt=None, messages=messages, parameters={"temperature": 0.5, "stop": ["x"]})
    assert json.loads(CHAT.encode(asked)) == {
        "model": "m",
        "messages": list(messages),
        "max_tokens": 4,
        "temperature": 0.5,
        "stop": ["x"],
        "stream": False,
    }


def test_a_plain_prompt_becomes_one_user_message():
    assert json.loads(CHAT.encode(request()))["messages"] == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, LINES])
def test_a_streamed_request_asks_for_usage(dialect):
    body = json.loads(dialect.encode(request(stream=True)))
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_the_lines_dialect_always_streams():
    assert LINES.streams(asked=False)
    assert json.loads(LINES.encode(request(stream=False)))["stream"] is True


def test_parameters_cannot_turn_streaming_off():
    assert json.loads(CHAT.encode(request(stream=True, parameters={"stream": False})))["stream"] is True


def test_messages_become_one_prompt_for_completions():
    messages = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    body = json.loads(COMPLETIONS.encode(request(prompt=None, messages=messages)))
    assert body["prompt"] == "a\n\nb"


@pytest.mark.parametrize(
    ("dialect", "choice", "reasoning", "content"),
    [
        (CHAT, '{"delta":{"content":"x"}}', False, True),
        (CHAT, '{"delta":{"content":""}}', False, False),
        (CHAT, '{"delta":{"role":"assistant","content":null}}', False, False),
        (CHAT, '{"delta":{"reasoning_content":"x","content":null}}', True, False),
        (CHAT, '{"delta":{"reasoning_content":""}}', False, False),
        (CHAT, '{"delta":{"reasoning":"x"}}', True, False),
        (CHAT, '{"delta":{"tool_calls":[{"index":0}]}}', False, True),
        (CHAT, '{"delta":{"tool_calls":[]}}', False, False),
        (CHAT, '{"delta":{"refusal":"no"}}', False, True),
        (CHAT, '{"delta":null}', False, False),
        (CHAT, '{"index":1,"unknown":{},"delta":{"content":"x"}}', False, True),
        (COMPLETIONS, '{"text":"x"}', False, True),
        (COMPLETIONS, '{"text":""}', False, False),
        (COMPLETIONS, '{"text":null,"reasoning_content":"x"}', True, False),
        (LINES, '{"text":"x"}', False, True),
    ],
)
def test_a_token_is_told_from_an_empty_delta(dialect, choice, reasoning, content):
    delta = dialect.decode_event(f'{{"choices":[{choice}]}}'.encode())
    assert (delta.reasoning, delta.content) == (reasoning, content)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ('{"prompt_tokens":9,"completion_tokens":3}', Usage(9, 3)),
        (
            '{"prompt_tokens":9,"completion_tokens":3,"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":5}',
            Usage(9, 3, 4),
        ),
        (
            (
                '{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2},'
                '"completion_tokens_details":{"reasoning_tokens":1}}'
            ),
            Usage(9, 3, 2, 1),
        ),
        (
            '{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":null}',
            Usage(9, 3),
        ),
        ('{"prompt_tokens":9}', None),
        ("null", None),
        ('{"prompt_tokens":9223372036854775808,"completion_tokens":3}', None),
        ('{"prompt_tokens":9,"completion_tokens":-1}', None),
        ('{"prompt_tokens":9,"completion_tokens":3,"cached_tokens":99999999999999999999}', None),
    ],
)
def test_usage_is_read_with_either_vendors_names(usage, expected):
    assert CHAT.decode_body(f'{{"choices":[],"usage":{usage}}}'.encode()).usage == expected


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ({"code": "rate_limit_reached", "type": "t"}, "rate_limit_reached"),
        ({"type": "invalid_request_error", "code": None}, "invalid_request_error"),
        ({"message": "your prompt was ..."}, "unnamed"),
        ({"code": "request 7f3a of user 12"}, "unnamed"),
        ({"code": 503}, "unnamed"),
        ("text", "unnamed"),
        (None, None),
        ({}, None),
    ],
)
def test_an_error_is_named_without_its_payload(error, name):
    assert error_name(error) == name


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b'{"choices":{}}', b'{"choices":[{"delta":{"content":5}}]}']
)
def test_what_is_not_the_dialects_json_is_refused(payload):
    with pytest.raises(msgspec.DecodeError):
        CHAT.decode_event(payload)


@pytest.mark.parametrize(
    "body",
    [
        '{"error":{"message":"café","code":"x"}}'.encode("latin-1"),
        b'{"error":{"message":"caf\xc3',
        b'{"error":' + b"[" * 200_000,
        b"\xff",
        b"",
    ],
    ids=["latin-1", "cut in a character", "lists without end", "no text", "nothing"],
)
def test_an_error_that_cannot_be_read_has_no_name(body):
    assert error_of(body) is None
