"""Claims about the mock, made by the official OpenAI SDK."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from harness.testing import MockServer, mock_server

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def sdk(mock: MockServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=mock.url + "/v1", api_key="any", max_retries=0, timeout=20) as client:
        yield client


def test_chat_completions_work(sdk: openai.OpenAI):
    answer = sdk.chat.completions.create(model="deepseek-flash", messages=MESSAGES, max_tokens=5)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.model == "deepseek-flash"
    assert answer._request_id


def test_streamed_chat_completions_work(sdk: openai.OpenAI):
    stream = sdk.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    contents = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(contents) == 5
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 5


def test_completions_work_whole_and_streamed(sdk: openai.OpenAI):
    whole = sdk.completions.create(model="m", prompt="hi", max_tokens=4, extra_headers={"x-request-id": "q"})
    stream = sdk.completions.create(
        model="m", prompt="hi", max_tokens=4, stream=True, extra_headers={"x-request-id": "q"}
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert whole.usage.completion_tokens == 4


def test_models_are_listed(sdk: openai.OpenAI):
    assert [model.id for model in sdk.models.list()] == ["deepseek-flash", "deepseek-v4-pro"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (402, openai.APIStatusError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_statuses_become_the_sdks_errors(sdk: openai.OpenAI, code: int, error: type[openai.APIStatusError]):
    with pytest.raises(error) as caught:
        sdk.chat.completions.create(
            model="m", messages=MESSAGES, extra_headers={"x-mock-fault": f"status;code={code}"}
        )
    assert caught.value.status_code == code
    assert caught.value.body["message"]
    assert caught.value.response.headers.get("retry-after") == ("1" if code == 429 else None)


def test_an_error_event_raises_in_mid_stream(sdk: openai.OpenAI):
    stream = sdk.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, extra_headers={"x-mock-fault": "error_event;after=2"}
    )
    with pytest.raises(openai.APIError, match="Server Error"):
        list(stream)


def test_a_wrong_key_is_an_authentication_error():
    with (
        mock_server(api_key="right") as mock,
        openai.OpenAI(base_url=mock.url, api_key="wrong", max_retries=0) as wrong,
        openai.OpenAI(base_url=mock.url, api_key="right", max_retries=0) as right,
    ):
        with pytest.raises(openai.AuthenticationError, match="Authentication Fails"):
            wrong.chat.completions.create(model="m", messages=MESSAGES)
        assert right.chat.completions.create(model="m", messages=MESSAGES).choices
