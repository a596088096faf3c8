"""Claims about conversations over the WebSocket, as the openai SDK and a bare client see them."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import websockets.exceptions
import websockets.sync.client

from harness.mock.realtime import deltas
from harness.testing import MockServer, mock_server

TEXT = {"type": "realtime", "output_modalities": ["text"]}
HELLO = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}


@pytest.fixture
def client(mock: MockServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mock.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def until(connection: Any, last: str) -> list[Any]:
    events = []
    for event in connection:
        events.append(event)
        if event.type == last:
            return events
    raise AssertionError(events)


def kinds(events: list[Any]) -> list[str]:
    return [kind for kind, _ in itertools.groupby(event.type for event in events)]


def test_a_turn_is_told_from_its_creation_to_its_end(client: openai.OpenAI, mock: MockServer):
    before = mock.position()
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.session.update(session=TEXT)
        connection.conversation.item.create(item=HELLO)
        connection.response.create(response={"max_output_tokens": 5})
        events = until(connection, "response.done")
    assert kinds(events) == [
        "session.created",
        "session.updated",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert len({event.event_id for event in events}) == len(events)
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    response = events[-1].response
    assert response.output[0].content[0].text == "".join(said)
    assert (response.status, response.status_details.reason) == ("incomplete", "max_output_tokens")
    (entry,) = [entry for entry in mock.truth(before) if entry["protocol"] == "realtime"]
    assert len(said) == entry["completion_tokens"] == response.usage.output_tokens == 5


def test_a_response_without_a_limit_is_completed_and_the_next_one_reads_it(client: openai.OpenAI):
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.session.update(session=TEXT)
        connection.conversation.item.create(item=HELLO)
        connection.response.create()
        first = until(connection, "response.done")[-1].response
        connection.response.create()
        second = until(connection, "response.done")[-1].response
    assert first.status == second.status == "completed"
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens


def test_a_response_out_of_band_leaves_the_conversation_as_it_was(client: openai.OpenAI):
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.session.update(session=TEXT)
        connection.response.create(
            response={"conversation": "none", "input": [HELLO], "max_output_tokens": 1}
        )
        apart = until(connection, "response.done")[-1].response
        assert apart.conversation_id is None
        connection.conversation.item.retrieve(item_id=apart.output[0].id)
        assert until(connection, "error")[-1].error.code == "item_not_found"


def test_speech_is_sound_with_its_transcript(client: openai.OpenAI):
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.response.create(response={"max_output_tokens": 3})
        events = until(connection, "response.done")
    sounds = [
        base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta"
    ]
    assert [len(sound) for sound in sounds] == [11_520] * 3
    words = [event.delta for event in events if event.type == "response.output_audio_transcript.delta"]
    assert events[-1].response.output[0].content[0].transcript == "".join(words)


def test_committed_sound_becomes_an_item(client: openai.OpenAI):
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.input_audio_buffer.commit()
        assert until(connection, "error")[-1].error.code == "input_audio_buffer_commit_empty"
        connection.input_audio_buffer.append(audio=base64.b64encode(bytes(480)).decode())
        connection.input_audio_buffer.commit()
        committed, *_, done = until(connection, "conversation.item.done")
        assert committed.item_id == done.item.id
        assert done.item.content[0].type == "input_audio"
        connection.conversation.item.delete(item_id=done.item.id)
        assert until(connection, "conversation.item.deleted")[-1].item_id == done.item.id


SLOW = {"ttft": {"distribution": "fixed", "value": "0s"}, "itl": {"distribution": "fixed", "value": "20ms"}}


def test_a_cancelled_response_stops_its_generation():
    with (
        mock_server(SLOW) as mock,
        openai.OpenAI(base_url=mock.url, api_key="x", max_retries=0) as client,
        client.realtime.connect(model="gpt-realtime") as connection,
    ):
        connection.session.update(session=TEXT)
        connection.response.create(response={"max_output_tokens": 4000})
        until(connection, "response.output_text.delta")
        connection.response.create()
        assert until(connection, "error")[-1].error.code == "conversation_already_has_active_response"
        connection.response.cancel()
        response = until(connection, "response.done")[-1].response
        assert (response.status, response.status_details.reason) == ("cancelled", "client_cancelled")
        connection.response.cancel()
        assert until(connection, "error")[-1].error.code == "response_cancel_not_active"
        (entry,) = mock.truth()
        assert entry["end"] == "client_gone"
        assert 1 <= entry["completion_tokens"] < 4000


def test_a_client_that_leaves_stops_its_generation():
    with (
        mock_server(SLOW) as mock,
        openai.OpenAI(base_url=mock.url, api_key="x", max_retries=0) as client,
    ):
        # Without a limit of frames: at its limit the client stops reading, and cannot close.
        options = {"max_queue": None}
        with client.realtime.connect(model="m", websocket_connection_options=options) as connection:
            connection.response.create(response={"max_output_tokens": 4000})
            until(connection, "response.output_audio.delta")
        deadline_s = time.monotonic() + 10
        while mock.health()["in_flight"] and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert mock.truth()[-1]["end"] == "client_gone"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("status;code=503", "server_error"),
        ("error_event;after=2", "server_error"),
        ("finish;reason=insufficient_system_resource", "server_error"),
        ("malformed;after=1", "server_error"),
    ],
)
def test_a_chat_request_that_fails_is_a_response_that_failed(client: openai.OpenAI, fault: str, kind: str):
    headers = {"x-mock-fault": fault}
    with client.realtime.connect(model="gpt-realtime", extra_headers=headers) as connection:
        connection.response.create(response={"max_output_tokens": 4})
        response = until(connection, "response.done")[-1].response
    assert response.status == "failed"
    assert response.status_details.error.type == kind


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[]", "missing_required_parameter", "type"),
        ({"type": "session.destroy"}, "invalid_value", "type"),
        ({"type": "session.update"}, "missing_required_parameter", "session"),
        (
            {"type": "session.update", "session": {"output_modalities": ["text", "audio"]}},
            "invalid_value",
            "output_modalities",
        ),
        (
            {"type": "response.create", "response": {"max_output_tokens": 0}},
            "invalid_value",
            "max_output_tokens",
        ),
        ({"type": "response.create", "response": {"input": "hi"}}, "invalid_type", "response.input"),
        ({"type": "response.create", "response": {"instructions": 1}}, "invalid_type", "instructions"),
        ({"type": "conversation.item.create", "item": {"type": "poem"}}, "invalid_value", "item.type"),
        (
            {"type": "conversation.item.create", "item": {"type": "message", "content": "x"}},
            "invalid_type",
            "item.content",
        ),
        ({"type": "conversation.item.delete", "item_id": "none"}, "item_not_found", "item_id"),
        ({"type": "input_audio_buffer.append", "audio": "!"}, "invalid_value", "audio"),
    ],
)
def test_a_mistake_is_told_and_the_session_goes_on(
    mock: MockServer, sent: object, code: str, param: str | None
):
    url = mock.url.replace("http", "ws", 1) + "/realtime?model=m"
    with websockets.sync.client.connect(url) as connection:
        assert json.loads(connection.recv(5))["session"]["model"] == "m"
        text = sent if isinstance(sent, str) else json.dumps(sent | {"event_id": "mine"})
        connection.send(text)
        told = json.loads(connection.recv(5))
        assert (told["type"], told["error"]["code"], told["error"]["param"]) == ("error", code, param)
        assert told["error"]["event_id"] == (None if isinstance(sent, str) else "mine")
        connection.send(json.dumps({"type": "input_audio_buffer.clear"}))
        assert json.loads(connection.recv(5))["type"] == "input_audio_buffer.cleared"


@pytest.mark.parametrize(
    ("path", "key", "status"), [("/v1/realtime", "wrong", 401), ("/v1/elsewhere", "right", 404)]
)
def test_the_handshake_is_refused_without_the_key_or_the_path(path: str, key: str, status: int):
    with mock_server(api_key="right") as mock:
        url = mock.url.replace("http", "ws", 1)
        headers = {"authorization": f"Bearer {key}"}
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            websockets.sync.client.connect(url + path, additional_headers=headers)
        assert refused.value.response.status_code == status
        with websockets.sync.client.connect(
            f"{url}/realtime", additional_headers={"authorization": "Bearer right"}
        ) as connection:
            assert json.loads(connection.recv(5))["type"] == "session.created"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_streams_events_are_read_however_their_bytes_are_cut(size: int):
    stream = (
        'data: {"choices":[{"delta":{"content":"你"}}]}\n\n: keep-alive\n\n'
        'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\n'
        "data: [DONE]\n\n"
    ).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(stream), size):
            yield stream[start : start + size]

    async def read() -> list[Any]:
        return [delta async for delta in deltas(pieces())]

    first, last = asyncio.run(read())
    assert (first.text, first.finish_reason) == ("你", None)
    assert (last.text, last.finish_reason, last.usage) == ("", "stop", {"prompt_tokens": 1})
