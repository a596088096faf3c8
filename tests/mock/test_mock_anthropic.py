"""Claims about the Messages API, made by the official Anthropic SDK."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import pytest

from harness.testing import MockServer, mock_server

MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [
    {
        "name": "weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
ASK = {"model": "m", "max_tokens": 8, "messages": MESSAGES}


@pytest.fixture
def sdk(mock: MockServer) -> Iterator[anthropic.Anthropic]:
    url = mock.url + "/anthropic"
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0, timeout=20) as client:
        yield client


def test_a_message_is_whole(sdk: anthropic.Anthropic):
    message = sdk.messages.create(**ASK, system=[{"type": "text", "text": "be brief"}])
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 8
    assert message.role == "assistant"


def test_a_streamed_message_has_its_events_in_order(mock: MockServer, sdk: anthropic.Anthropic):
    named = {"extra_headers": {"x-request-id": "streamed-message"}}
    events = list(
        sdk.messages.create(**ASK, stream=True, thinking={"type": "enabled", "budget_tokens": 1024}, **named)
    )
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "content_block_start",
        *["content_block_delta"] * 6,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    assert deltas == ["thinking_delta"] * 2 + ["signature_delta"] + ["text_delta"] * 6
    assert events[0].message.usage.output_tokens == 0
    assert events[-2].usage.output_tokens == 8
    assert events[-2].delta.stop_reason == "max_tokens"
    truth = mock.truth_of("streamed-message")
    assert truth["finish_reason"] == "max_tokens"
    assert truth["completion_tokens"] == len(truth["chunk_ns"]) == 8


def test_the_sdks_own_accumulator_gives_what_comes_whole(sdk: anthropic.Anthropic):
    named = {"extra_headers": {"x-request-id": "same"}}
    with sdk.messages.stream(**ASK, **named) as stream:
        streamed = stream.get_final_message()
    whole = sdk.messages.create(**ASK, **named)
    assert streamed.content[0].text == whole.content[0].text
    assert streamed.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_with_a_tool_goes_there_and_back(sdk: anthropic.Anthropic, stream: bool):
    ask = {**ASK, "max_tokens": 200, "tools": TOOLS, "tool_choice": {"type": "any"}}
    if stream:
        with sdk.messages.stream(**ask) as streamed:
            first = streamed.get_final_message()
    else:
        first = sdk.messages.create(**ask)
    assert first.stop_reason == "tool_use"
    use = first.content[0]
    assert (use.name, use.input) == ("weather", {"city": "text"})
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]}
    turns = [*MESSAGES, {"role": "assistant", "content": first.content}, result]
    second = sdk.messages.create(model="m", max_tokens=5, messages=turns, tools=TOOLS)
    assert second.content[0].type == "text"
    with pytest.raises(anthropic.BadRequestError, match="without `tool_result` blocks"):
        sdk.messages.create(model="m", max_tokens=5, messages=[*turns[:2], *MESSAGES], tools=TOOLS)
    with pytest.raises(anthropic.BadRequestError, match="unexpected `tool_use_id`"):
        sdk.messages.create(model="m", max_tokens=5, messages=[result], tools=TOOLS)
    with pytest.raises(anthropic.BadRequestError, match="thinking mode must be passed back"):
        sdk.messages.create(model="deepseek-flash", max_tokens=5, messages=turns, tools=TOOLS)


def test_a_stop_sequence_is_named(sdk: anthropic.Anthropic):
    message = sdk.messages.create(model="m", max_tokens=60, messages=MESSAGES, stop_sequences=[" so"])
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == " so"
    assert " so" not in message.content[0].text


def test_cached_tokens_are_apart_from_the_other_input(sdk: anthropic.Anthropic):
    turns = [{"role": "user", "content": "a long prompt of the messages test " * 30}]
    ask = {"model": "m", "max_tokens": 1, "messages": turns, "metadata": {"user_id": "u"}}
    first, second = sdk.messages.create(**ask).usage, sdk.messages.create(**ask).usage
    assert first.cache_read_input_tokens == 0
    assert second.cache_read_input_tokens > 0
    assert first.input_tokens == second.input_tokens + second.cache_read_input_tokens


def test_deepseek_models_think_unless_told(sdk: anthropic.Anthropic):
    ask = {**ASK, "model": "deepseek-flash"}
    assert [block.type for block in sdk.messages.create(**ask).content] == ["thinking", "text"]
    off = sdk.messages.create(**ask, thinking={"type": "disabled"})
    assert [block.type for block in off.content] == ["text"]


def test_errors_become_the_sdks_errors(sdk: anthropic.Anthropic):
    for code, error in ((429, anthropic.RateLimitError), (503, anthropic.APIStatusError)):
        with pytest.raises(error) as caught:
            sdk.messages.create(**ASK, extra_headers={"x-mock-fault": f"status;code={code}"})
        assert caught.value.status_code == code
    with pytest.raises(anthropic.BadRequestError, match="Invalid max_tokens"):
        sdk.messages.create(**{**ASK, "max_tokens": 0})


def test_an_error_event_raises_in_mid_stream(sdk: anthropic.Anthropic):
    with pytest.raises(anthropic.APIStatusError, match="Server Error"):
        list(sdk.messages.create(**ASK, stream=True, extra_headers={"x-mock-fault": "error_event;after=2"}))


def test_other_faults_fit_named_events(sdk: anthropic.Anthropic):
    fault = {"extra_headers": {"x-mock-fault": "no_done"}}
    assert [event.type for event in sdk.messages.create(**ASK, stream=True, **fault)][-1] == "message_delta"
    refusal = {"extra_headers": {"x-mock-fault": "finish;reason=refusal"}}
    assert sdk.messages.create(**ASK, **refusal).stop_reason == "refusal"
    fault = {"extra_headers": {"x-mock-fault": "malformed;after=2"}}
    with pytest.raises(ValueError, match=r"JSON|Expecting|Unterminated"):
        list(sdk.messages.create(**ASK, stream=True, **fault))


def test_the_key_may_be_in_anthropics_header():
    with mock_server(api_key="right") as mock:
        url = mock.url + "/anthropic"
        with anthropic.Anthropic(base_url=url, api_key="right", max_retries=0) as right:
            assert right.messages.create(**ASK).content
        wrong = anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0)
        with wrong, pytest.raises(anthropic.AuthenticationError):
            wrong.messages.create(**ASK)
