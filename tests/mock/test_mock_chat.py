"""Claims about what chat requests may ask for, and in which words DeepSeek refuses them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.mock import api, dialects, questions
from harness.mock.generation import length
from harness.mock.plan import Kind, Plan
from harness.mock.questions import Endpoint

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": {}}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
NAMED = {"type": "function", "function": {"name": "other"}}
ASK = {
    Endpoint.CHAT: {"messages": [USER]},
    Endpoint.COMPLETIONS: {"prompt": "hi"},
    Endpoint.LINES: {"prompt": "hi"},
    Endpoint.FIM: {"prompt": "hi", "suffix": "ho"},
    Endpoint.RESPONSES: {"input": "hi"},
    Endpoint.MESSAGES: {"messages": [USER], "max_tokens": 9},
}


def read(endpoint: Endpoint, **body: object) -> questions.Question | questions.Refusal:
    return dialects.read(endpoint, json.dumps({"model": "m", **ASK[endpoint], **body}).encode())


def answer(endpoint: Endpoint, **body: object) -> Plan:
    question = read(endpoint, **body)
    assert isinstance(question, questions.Question), question
    said = api.compose(question, request_id="r", default_tokens=8)
    return dialects.answer(
        question,
        said,
        request_id="r",
        created=7,
        cached_tokens=0,
        token_offsets_ns=list(range(10, 10 + length(said))),
        fingerprint="fp",
    )


def events(plan: Plan) -> list[dict]:
    return [json.loads(s.payload[6:]) for s in plan.steps if s.payload.startswith(b"data: {")]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (
            {"model": "deepseek-chat"},
            400,
            "model names are deepseek-v4-pro or deepseek-flash, but you passed",
        ),
        ({"max_tokens": 0}, 400, "Invalid max_tokens value, the valid range of max_tokens is [1, 393216]"),
        ({"temperature": 2.5}, 400, "Invalid temperature"),
        ({"top_p": 0}, 400, "Invalid top_p"),
        ({"frequency_penalty": 3}, 400, "Invalid frequency_penalty"),
        ({"n": 0}, 400, "Invalid n"),
        ({"n": 100, "max_tokens": 100_000}, 400, "Invalid n * max_tokens"),
        ({"user_id": "x" * 513}, 400, "Invalid user_id"),
        ({"stop": ["x"] * 17}, 400, "Invalid stop"),
        ({"stop": ""}, 400, "Invalid stop"),
        ({"top_logprobs": 3}, 400, "`logprobs` must be set"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "Invalid top_logprobs"),
        ({"response_format": {"type": "json_object"}}, 400, "Prompt must contain the word 'json'"),
        ({"tool_choice": "required"}, 400, "only allowed when 'tools'"),
        ({"tools": [TOOL], "tool_choice": NAMED}, 400, "'other' not found"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, 422, "tool_choice"),
        ({"tools": [{"type": "custom"}]}, 422, "tools[0]"),
        ({"messages": [{"role": "boss", "content": "x"}]}, 422, "boss"),
        ({"messages": [USER, RESULT]}, 400, "must be a response to a preceding message with 'tool_calls'"),
        ({"messages": [USER, CALL]}, 400, "insufficient tool messages"),
        ({"messages": [USER, CALL, USER]}, 400, "insufficient tool messages"),
        ({"messages": [USER, CALL, RESULT], "thinking": {"type": "enabled"}}, 400, "must be passed back"),
        (
            {"model": "deepseek-flash", "tools": [TOOL], "tool_choice": "required"},
            400,
            "Thinking mode does not support this tool_choice",
        ),
    ],
)
def test_chat_requests_are_refused_in_deepseeks_words(body: dict, status: int, words: str):
    refused = read(Endpoint.CHAT, **body)
    assert isinstance(refused, questions.Refusal)
    assert refused.status == status
    assert words in refused.message


@pytest.mark.parametrize(
    ("body", "share"),
    [
        ({}, 0),
        ({"model": "deepseek-flash"}, 0.25),
        ({"model": "deepseek-v4-pro"}, 0.25),
        ({"model": "deepseek-flash", "thinking": {"type": "disabled"}}, 0),
        ({"model": "deepseek-flash", "reasoning_effort": "none"}, 0),
        ({"model": "deepseek-flash", "reasoning_effort": "max"}, 0.5),
        ({"model": "deepseek-flash", "reasoning_effort": "low"}, 0.125),
        ({"thinking": {"type": "enabled"}}, 0.25),
    ],
)
def test_models_think_by_their_default_unless_told(body: dict, share: float):
    question = read(Endpoint.CHAT, **body)
    assert isinstance(question, questions.Question)
    assert question.wish.thinking == share
    assert question.thinks == (share > 0)


def test_a_thinking_stream_reasons_first_and_every_token_is_one_event():
    said = events(answer(Endpoint.CHAT, model="deepseek-flash", max_tokens=8, stream=True))
    deltas = [event["choices"][0]["delta"] for event in said]
    assert deltas[0] == {"role": "assistant", "content": None, "reasoning_content": ""}
    assert ["reasoning" if d["reasoning_content"] else "content" for d in deltas[1:-1]] == (
        ["reasoning"] * 2 + ["content"] * 6
    )
    usage = said[-1]["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2}


@pytest.mark.parametrize(
    ("choice", "turns", "called"),
    [
        ("auto", [USER], True),
        (None, [USER], True),
        ("none", [USER], False),
        ("required", [USER], True),
        ({"type": "function", "function": {"name": "weather"}}, [USER], True),
        ("auto", [USER, CALL, RESULT], False),
        ("required", [USER, CALL, RESULT], True),
    ],
)
def test_tools_are_called_until_they_have_answered_unless_the_choice_says_otherwise(
    choice: object, turns: list, called: bool
):
    plan = answer(Endpoint.CHAT, messages=turns, tools=[TOOL], tool_choice=choice)
    assert plan.finish_reason == ("tool_calls" if called else "stop")


def test_parallel_calls_call_every_tool():
    second = {"type": "function", "function": {"name": "time"}}
    plan = answer(Endpoint.CHAT, tools=[TOOL, second], parallel_tool_calls=True)
    calls = json.loads(plan.steps[0].payload)["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather", "time"]
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
def test_choices_are_written_side_by_side_and_say_different_things(endpoint: Endpoint):
    plan = answer(endpoint, n=3, max_tokens=4, stream=True)
    due = [step.at_ns for step in plan.steps]
    assert due == sorted(due)
    assert max(due) == 13
    assert sum(step.kind is Kind.TOKEN for step in plan.steps) == plan.completion_tokens == 12
    said = events(plan)
    assert said[-1]["usage"]["completion_tokens"] == 12
    assert [event["choices"][0]["index"] for event in said if event["choices"][0]["finish_reason"]] == [
        0,
        1,
        2,
    ]
    texts = [choice.get("text") or choice["message"]["content"] for choice in
             json.loads(answer(endpoint, n=3, max_tokens=4).steps[0].payload)["choices"]]  # fmt: skip
    assert len(set(texts)) == 3


@pytest.mark.parametrize("endpoint", [Endpoint.COMPLETIONS, Endpoint.FIM, Endpoint.LINES])
def test_suffixes_are_read_as_well_as_prompts(endpoint: Endpoint):
    alone, with_suffix = (
        read(endpoint, prompt="x" * 50, suffix=None),
        read(endpoint, prompt="x" * 50, suffix="y" * 50),
    )
    assert (alone.prompt_tokens, with_suffix.prompt_tokens) == (15, 31)


def test_echo_repeats_the_prompt_before_the_answer():
    plan = answer(Endpoint.COMPLETIONS, prompt='say "', echo=True, max_tokens=2, logprobs=1)
    choice = json.loads(plan.steps[0].payload)["choices"][0]
    assert choice["text"].startswith('say "')
    assert choice["logprobs"]["text_offset"][0] == 5
    streamed = events(answer(Endpoint.COMPLETIONS, prompt='say "', echo=True, max_tokens=2, stream=True))
    assert "".join(event["choices"][0]["text"] for event in streamed) == choice["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_has_log_probabilities_of_its_own(stream: bool):
    plan = answer(
        Endpoint.CHAT,
        thinking={"type": "enabled"},
        max_tokens=8,
        logprobs=True,
        top_logprobs=1,
        stream=stream,
    )
    said = events(plan) if stream else [json.loads(plan.steps[0].payload)]
    scores = [event["choices"][0]["logprobs"] for event in said if event["choices"][0]["logprobs"]]
    assert sum(len(score["reasoning_content"] or ()) for score in scores) == 2
    assert sum(len(score["content"] or ()) for score in scores) == 6


def test_tools_count_as_prompt():
    assert read(Endpoint.CHAT, tools=[TOOL]).prompt_tokens > read(Endpoint.CHAT).prompt_tokens


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.MESSAGES])
@given(st.binary(max_size=80))
def test_no_body_whatever_breaks_the_other_readers(endpoint: Endpoint, body: bytes):
    assert isinstance(dialects.read(endpoint, body), questions.Question | questions.Refusal)


@pytest.mark.parametrize("endpoint", list(Endpoint))
@pytest.mark.parametrize("stream", [False, True])
def test_every_endpoints_plan_carries_the_tokens_that_it_says(endpoint: Endpoint, stream: bool):
    limit = {"max_output_tokens": 9} if endpoint is Endpoint.RESPONSES else {"max_tokens": 9}
    plan = answer(endpoint, stream=stream, **limit)
    assert plan.completion_tokens == 9
    if stream or endpoint is Endpoint.LINES:
        assert [step.at_ns for step in plan.steps if step.kind is Kind.TOKEN] == list(range(10, 19))
    else:
        assert [step.at_ns for step in plan.steps] == [18]
