"""Claims about chat features, FIM and responses, made by the official OpenAI SDK."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import openai
import pytest

from harness.testing import MockServer

MESSAGES = [{"role": "user", "content": "answer in json"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}]
FLAT = [{"type": "function", "name": "weather", "parameters": SCHEMA}]
ARGUMENTS = {"city": "text", "days": 2}
ENABLED = {"thinking": {"type": "enabled"}}


@pytest.fixture
def sdk(mock: MockServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=mock.url + "/v1", api_key="any", max_retries=0, timeout=20) as client:
        yield client


def test_a_conversation_with_a_tool_goes_there_and_back(sdk: openai.OpenAI):
    first = sdk.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS, tool_choice="auto")
    assert first.choices[0].finish_reason == "tool_calls"
    call = first.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == ARGUMENTS
    answered = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*MESSAGES, first.choices[0].message.model_dump(), answered]
    second = sdk.chat.completions.create(model="m", messages=turns, tools=TOOLS, max_tokens=5)
    assert second.choices[0].message.content
    assert second.choices[0].finish_reason == "length"


def test_a_streamed_tool_call_comes_in_fragments(mock: MockServer, sdk: openai.OpenAI):
    stream = sdk.chat.completions.create(
        model="m",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "weather"}},
        stream=True,
        extra_headers={"x-request-id": "streamed-tool-call"},
    )
    chunks = [chunk.choices[0] for chunk in stream]
    parts = [chunk.delta.tool_calls[0] for chunk in chunks if chunk.delta.tool_calls]
    assert parts[0].id
    assert parts[0].function.name == "weather"
    assert json.loads("".join(part.function.arguments for part in parts)) == ARGUMENTS
    assert all(part.function.arguments for part in parts[1:])
    assert chunks[-1].finish_reason == "tool_calls"
    truth = mock.truth_of("streamed-tool-call")
    assert truth["finish_reason"] == "tool_calls"
    assert truth["completion_tokens"] == len(truth["chunk_ns"]) == len(parts)


def test_the_sdks_own_accumulator_puts_a_stream_together(sdk: openai.OpenAI):
    with sdk.chat.completions.stream(
        model="deepseek-flash", messages=MESSAGES, tools=TOOLS, extra_body={"parallel_tool_calls": True}
    ) as stream:
        final = stream.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == ARGUMENTS
    assert final.choices[0].message.reasoning_content


def test_json_mode_is_json_whole_and_streamed(sdk: openai.OpenAI):
    ask = {"model": "m", "messages": MESSAGES, "response_format": {"type": "json_object"}, "max_tokens": 40}
    whole = sdk.chat.completions.create(**ask)
    assert json.loads(whole.choices[0].message.content)["answer"]
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 40
    streamed = "".join(c.choices[0].delta.content for c in sdk.chat.completions.create(**ask, stream=True))
    assert json.loads(streamed)["answer"]


def test_json_by_schema_fits_the_schema(sdk: openai.OpenAI):
    form = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": SCHEMA}}
    answer = sdk.chat.completions.create(model="m", messages=MESSAGES, response_format=form)
    assert json.loads(answer.choices[0].message.content) == ARGUMENTS


@pytest.mark.parametrize("stream", [False, True])
def test_json_mode_may_fail_in_whitespace(sdk: openai.OpenAI, stream: bool):
    answer = sdk.chat.completions.create(
        model="m",
        messages=MESSAGES,
        response_format={"type": "json_object"},
        max_tokens=9,
        stream=stream,
        extra_headers={"x-mock-fault": "whitespace"},
    )
    if stream:
        chunks = list(answer)
        text, finish = (
            "".join(c.choices[0].delta.content for c in chunks),
            chunks[-1].choices[0].finish_reason,
        )
    else:
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert text
    assert not text.strip()
    assert finish == "stop"


def test_log_probabilities_come_with_every_token(sdk: openai.OpenAI):
    ask = {"model": "m", "messages": MESSAGES, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    scored = sdk.chat.completions.create(**ask).choices[0]
    tokens = scored.logprobs.content
    assert "".join(token.token for token in tokens) == scored.message.content
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 for token in tokens)
    chunks = [chunk.choices[0] for chunk in sdk.chat.completions.create(**ask, stream=True)]
    streamed = [chunk for chunk in chunks if chunk.logprobs]
    assert [chunk.logprobs.content[0].token for chunk in streamed] == [c.delta.content for c in streamed]
    assert len(streamed) == 6


def test_completions_have_their_own_log_probabilities(sdk: openai.OpenAI):
    choice = sdk.completions.create(model="m", prompt="hi", max_tokens=4, logprobs=2).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    assert len(choice.logprobs.top_logprobs) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_are_several_answers(sdk: openai.OpenAI, stream: bool):
    answer = sdk.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4, n=3, stream=stream)
    texts = ["", "", ""]
    if stream:
        for chunk in answer:
            choice = chunk.choices[0]
            texts[choice.index] += choice.delta.content or ""
            usage = chunk.usage
    else:
        texts, usage = [choice.message.content for choice in answer.choices], answer.usage
    assert len(set(texts)) == 3
    assert usage.completion_tokens == 12


@pytest.mark.parametrize("stop", [" so", [" absent", " so"]])
def test_a_stop_sequence_ends_the_answer(sdk: openai.OpenAI, stop: object):
    answer = sdk.chat.completions.create(model="m", messages=MESSAGES, max_tokens=60, stop=stop)
    free = sdk.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=60, extra_headers={"x-request-id": answer._request_id}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == free.choices[0].message.content.split(" so")[0]
    assert answer.usage.completion_tokens < 60


def test_reasoning_comes_first_and_counts(sdk: openai.OpenAI):
    whole = sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES, max_tokens=8)
    assert whole.choices[0].message.reasoning_content
    assert whole.usage.completion_tokens_details.reasoning_tokens == 2
    assert whole.system_fingerprint == "fp_mock_fast"
    stream = sdk.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=8, stream=True, extra_body=ENABLED
    )
    said = [
        "reasoning" if getattr(chunk.choices[0].delta, "reasoning_content", None) else "content"
        for chunk in stream
        if getattr(chunk.choices[0].delta, "reasoning_content", None) or chunk.choices[0].delta.content
    ]
    assert said == ["reasoning"] * 2 + ["content"] * 6
    off = {"thinking": {"type": "disabled"}}
    none = sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES, extra_body=off)
    assert not hasattr(none.choices[0].message, "reasoning_content")


def test_the_prefix_cache_is_the_users_own(sdk: openai.OpenAI):
    def cached(user_id: str) -> int:
        turns = [{"role": "user", "content": "cached for one user only " * 40}]
        answer = sdk.chat.completions.create(
            model="m", messages=turns, max_tokens=1, extra_body={"user_id": user_id}
        )
        usage = answer.usage
        assert usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens == usage.prompt_tokens
        return usage.prompt_tokens_details.cached_tokens

    assert cached("one") == 0
    assert cached("one") > 0
    assert cached("two") == 0


def test_retired_models_are_refused_in_deepseeks_words(sdk: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="supported API model names are") as caught:
        sdk.chat.completions.create(model="deepseek-chat", messages=MESSAGES)
    assert caught.value.type == caught.value.code == "invalid_request_error"


def test_fill_in_the_middle_works_whole_and_streamed(mock: MockServer):
    with openai.OpenAI(base_url=mock.url + "/beta", api_key="any", max_retries=0, timeout=20) as beta:
        ask = {"model": "deepseek-flash", "prompt": "def f():", "suffix": "return x", "max_tokens": 6}
        named = {"extra_headers": {"x-request-id": "fim"}}
        whole = beta.completions.create(**ask, **named)
        assert whole.choices[0].finish_reason == "length"
        streamed = "".join(c.choices[0].text for c in beta.completions.create(**ask, **named, stream=True))
        assert streamed == whole.choices[0].text
        assert beta.chat.completions.create(model="m", messages=MESSAGES).choices


# -- responses --------------------------------------------------------------------------------------------


def test_a_response_is_whole(sdk: openai.OpenAI):
    response = sdk.responses.create(model="m", input="hi", instructions="be brief", temperature=0.5)
    assert response.status == "completed"
    assert response.output_text
    assert (response.instructions, response.temperature, response.store) == ("be brief", 0.5, False)
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_a_streamed_response_is_numbered_and_complete(mock: MockServer, sdk: openai.OpenAI):
    named = {"extra_headers": {"x-request-id": "streamed-response"}}
    ask = {"model": "deepseek-flash", "input": [{"role": "user", "content": "hi"}], "max_output_tokens": 8}
    events = list(sdk.responses.create(**ask, **named, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    item = ["output_item.added", "content_part.added"]
    done = ["content_part.done", "output_item.done"]
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *item,
        *["reasoning_text.delta"] * 2,
        "reasoning_text.done",
        *done,
        *item,
        *["output_text.delta"] * 6,
        "output_text.done",
        *done,
        "incomplete",
    ]
    final = events[-1].response
    assert final.incomplete_details.reason == "max_output_tokens"
    assert final.usage.output_tokens_details.reasoning_tokens == 2
    assert final.output_text == "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert final.output == sdk.responses.create(**ask, **named).output
    truth = mock.truth_of("streamed-response")
    assert truth["finish_reason"] == "incomplete"
    assert truth["completion_tokens"] == final.usage.output_tokens == 8


def test_the_sdks_own_accumulator_puts_a_response_together(sdk: openai.OpenAI):
    with sdk.responses.stream(model="m", input="hi", tools=FLAT, tool_choice="required") as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.status == "completed"
    assert json.loads(final.output[0].arguments) == ARGUMENTS


def test_a_response_with_a_tool_goes_there_and_back(sdk: openai.OpenAI):
    turns: list = [{"role": "user", "content": "hi"}]
    call = sdk.responses.create(model="m", input=turns, tools=FLAT).output[0]
    assert call.name == "weather"
    answered = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    turns += [call.to_dict(), answered]
    assert sdk.responses.create(model="m", input=turns, tools=FLAT).output_text
    with pytest.raises(openai.BadRequestError, match="No tool call found"):
        sdk.responses.create(model="m", input=[turns[0], answered])
    with pytest.raises(openai.BadRequestError, match="No tool output found"):
        sdk.responses.create(model="m", input=turns[:2])


def test_a_response_in_json_fits_its_schema(sdk: openai.OpenAI):
    form = {"format": {"type": "json_schema", "name": "forecast", "schema": SCHEMA}}
    assert json.loads(sdk.responses.create(model="m", input="hi", text=form).output_text) == ARGUMENTS


def test_effort_none_turns_thinking_off(sdk: openai.OpenAI):
    response = sdk.responses.create(model="deepseek-flash", input="hi", reasoning={"effort": "none"})
    assert [item.type for item in response.output] == ["message"]


def test_responses_are_not_stored(sdk: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="not stored"):
        sdk.responses.create(model="m", input="hi", previous_response_id="resp_1")


def test_a_response_that_fails_in_mid_stream_raises(sdk: openai.OpenAI):
    fault = {"extra_headers": {"x-mock-fault": "error_event;after=2"}}
    with pytest.raises(openai.APIError, match="Server Error"):
        list(sdk.responses.create(model="m", input="hi", stream=True, **fault))


def test_a_response_has_a_status_and_no_finish_reason_to_change(sdk: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="finish;reason=aborted"):
        sdk.responses.create(model="m", input="hi", extra_headers={"x-mock-fault": "finish;reason=aborted"})
