"""`/realtime`: conversations over a WebSocket, with the names of OpenAI's events as of general availability.

    client                          server
                                    session.created
    session.update                  session.updated
    conversation.item.create        conversation.item.added, conversation.item.done
    response.create                 response.created, response.output_item.added, …content_part.added,
                                    response.output_text.delta * n, … .done, response.done
    response.cancel                 … .done, response.done (cancelled)
    anything wrong                  error; the session goes on

Each response is a chat request that the mock puts to itself: one delta a token. Speech is silence beside its
transcript. A chat request that fails is a response that failed; one that breaks off is a response without
its end.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
from granian._granian import RSGIProtocolClosed as ProtocolClosed
from granian.rsgi import WebsocketMessageType

from harness.mock.audio import TOKEN_PCM
from harness.mock.inward import Exchange

_SOUND = base64.b64encode(TOKEN_PCM).decode()
_MOST_AUDIO = 15 * 1024 * 1024
"""Of one `input_audio_buffer.append`, and of the buffer (OpenAI's limit for the former)."""

Start = Callable[[bytes, str], Exchange]
"""Puts a chat request: body, request id."""
Event = dict[str, Any]


class Transport(Protocol):
    """An open WebSocket."""

    async def receive(self) -> Any:
        """The next message."""

    async def send_str(self, data: str) -> None:
        """Send a text message."""


class _MistakeError(Exception):
    """What a client's event has wrong."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class Delta(NamedTuple):
    """What a chat event says."""

    text: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


async def deltas(pieces: AsyncIterator[bytes]) -> AsyncIterator[Delta]:
    """The events of a chat stream, however its bytes are cut; whole error answers, too."""
    held = b""
    async for piece in pieces:
        held += piece
        *events, held = held.split(b"\n\n")
        for text in events:
            if text.startswith(b"data: {"):
                yield _delta(text.removeprefix(b"data: "))
    if held.lstrip().startswith(b"{"):
        yield _delta(held)


def _delta(json: bytes) -> Delta:
    try:
        event = msgspec.json.decode(json)
    except msgspec.DecodeError:
        return Delta(error={"type": "server_error", "message": "the model's answer is malformed"})
    if "error" in event:
        return Delta(error=event["error"])
    choice = event["choices"][0] if event["choices"] else {}
    text = (choice.get("delta") or {}).get("content") or ""
    return Delta(text, choice.get("finish_reason"), event.get("usage"))


class Session:
    """One connection's conversation.

    Args:
        transport: where events go.
        start: puts a chat request.
        model: which one.
        request_id: of the connection; its responses are `<id>-1`, `<id>-2`, …
    """

    def __init__(self, transport: Transport, start: Start, *, model: str, request_id: str) -> None:
        self._transport = transport
        self._start = start
        self._request_id = request_id
        self._sent = 0
        self._responses = 0
        self._items: dict[str, Event] = {}
        self._audio = bytearray()
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._conversation = f"conv_{uuid.uuid4().hex}"
        self._session: Event = {
            "type": "realtime",
            "object": "realtime.session",
            "id": f"sess_{uuid.uuid4().hex}",
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
            "max_output_tokens": "inf",
            "tools": [],
            "tool_choice": "auto",
        }

    async def serve(self) -> None:
        """Go on until the client closes."""
        await self._send("session.created", session=self._session)
        try:
            while True:
                message = await self._transport.receive()
                if message.kind == WebsocketMessageType.close:
                    return
                await self._take(message.data)
        except ProtocolClosed:
            return
        finally:
            if self._exchange is not None:
                self._exchange.leave()
            if self._task is not None:
                self._task.cancel()
            # The library closes the socket when it is let go: no cycle of task and session may hold it.
            self._task = None

    async def _take(self, text: str | bytes) -> None:
        event: Event = {}
        try:
            event = _decoded(text)
            await _ON.get(event["type"], _unknown)(self, event)
        except _MistakeError as mistake:
            await self._fail(mistake, event.get("event_id"))

    async def _fail(self, mistake: _MistakeError, event_id: object) -> None:
        error = {
            "type": "invalid_request_error",
            "code": mistake.code,
            "message": str(mistake),
            "param": mistake.param,
            "event_id": event_id if isinstance(event_id, str) else None,
        }
        await self._send("error", error=error)

    async def _send(self, kind: str, **fields: Any) -> None:
        self._sent += 1
        event = {"type": kind, "event_id": f"event_{self._sent}", **fields}
        await self._transport.send_str(msgspec.json.encode(event).decode())

    # -- session and conversation -------------------------------------------------------------------------

    async def update(self, event: Event) -> None:
        """Change the session."""
        changes = _object(event, "session")
        _modalities(changes, self._session)
        _most_tokens(changes, self._session)
        kept = {key: self._session[key] for key in ("id", "object", "type", "model")}
        self._session = {**self._session, **changes, **kept}
        await self._send("session.updated", session=self._session)

    async def create_item(self, event: Event) -> None:
        """Add an item to the conversation."""
        given = _object(event, "item")
        kind = given.get("type")
        if kind not in {"message", "function_call", "function_call_output"}:
            raise _MistakeError("invalid_value", f"Invalid value: {kind!r}", "item.type")
        _text_of(given)  # Says what is wrong with the content, before it becomes a part of the conversation.
        item_id = given.get("id") or _new("item")
        if not isinstance(item_id, str) or item_id in self._items:
            raise _MistakeError("invalid_value", "The item's id is taken, or is no text", "item.id")
        await self._add({**given, "id": item_id, "object": "realtime.item", "status": "completed"})

    async def _add(self, item: Event) -> None:
        previous = next(reversed(self._items), None)
        self._items[item["id"]] = item
        await self._send("conversation.item.added", previous_item_id=previous, item=item)
        await self._send("conversation.item.done", previous_item_id=previous, item=item)

    async def retrieve_item(self, event: Event) -> None:
        """Show an item."""
        await self._send("conversation.item.retrieved", item=self._item(event))

    async def delete_item(self, event: Event) -> None:
        """Take an item out of the conversation."""
        item_id = self._item(event)["id"]
        del self._items[item_id]
        await self._send("conversation.item.deleted", item_id=item_id)

    def _item(self, event: Event) -> Event:
        item_id = event.get("item_id")
        item = self._items.get(item_id) if isinstance(item_id, str) else None
        if item is None:
            raise _MistakeError("item_not_found", f"There is no item with id {item_id!r}", "item_id")
        return item

    async def append_audio(self, event: Event) -> None:
        """Collect sound."""
        try:
            sound = base64.b64decode(event.get("audio") or "", validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise _MistakeError("invalid_value", "`audio` must be base64", "audio") from error
        if len(self._audio) + len(sound) > _MOST_AUDIO:
            raise _MistakeError("invalid_value", "The input audio buffer is full", "audio")
        self._audio += sound

    async def clear_audio(self, _event: Event) -> None:
        """Forget the sound."""
        self._audio.clear()
        await self._send("input_audio_buffer.cleared")

    async def commit_audio(self, _event: Event) -> None:
        """Make an item of the sound."""
        if not self._audio:
            raise _MistakeError("input_audio_buffer_commit_empty", "The input audio buffer is empty")
        self._audio.clear()
        item_id = _new("item")
        previous = next(reversed(self._items), None)
        await self._send("input_audio_buffer.committed", previous_item_id=previous, item_id=item_id)
        content = [{"type": "input_audio", "transcript": None}]
        await self._add(
            {
                "id": item_id,
                "object": "realtime.item",
                "type": "message",
                "status": "completed",
                "role": "user",
                "content": content,
            }
        )

    # -- responses ----------------------------------------------------------------------------------------

    async def create_response(self, event: Event) -> None:
        """Begin a response."""
        if self._task is not None and not self._task.done():
            raise _MistakeError(
                "conversation_already_has_active_response", "Conversation already has an active response"
            )
        wanted = _object(event, "response", needed=False)
        settings = {**self._session, **{key: value for key, value in wanted.items() if value is not None}}
        spoken = _modalities(settings, self._session) == ["audio"]
        limit = _most_tokens(settings, self._session)
        messages = self._messages(settings, wanted)
        body: Event = {
            "model": self._session["model"],
            "messages": messages,
            "stream": True,
            "thinking": {"type": "disabled"},
        }
        if isinstance(limit, int):
            body["max_tokens"] = limit
        kept = settings.get("conversation") != "none"
        self._responses += 1
        self._cancelled = False
        self._exchange = self._start(msgspec.json.encode(body), f"{self._request_id}-{self._responses}")
        response = {
            "id": _new("resp"),
            "object": "realtime.response",
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": self._conversation if kept else None,
            "output_modalities": ["audio"] if spoken else ["text"],
            "max_output_tokens": limit,
            "usage": None,
            "metadata": wanted.get("metadata"),
        }
        await self._send("response.created", response=response)
        self._task = asyncio.ensure_future(self._respond(response, self._exchange, spoken=spoken, kept=kept))

    def _messages(self, settings: Event, wanted: Event) -> list[Event]:
        given = wanted.get("input")
        if given is not None and not (isinstance(given, list) and all(isinstance(i, dict) for i in given)):
            raise _MistakeError("invalid_type", "`response.input` must be a list of items", "response.input")
        items = list(self._items.values()) if given is None else given
        messages = [
            {"role": item["role"], "content": _text_of(item)}
            for item in items
            if item.get("role") in {"system", "user", "assistant"}
        ]
        instructions = settings.get("instructions")
        if not isinstance(instructions, str):
            raise _MistakeError("invalid_type", "`instructions` must be text", "instructions")
        return [{"role": "system", "content": instructions}, *messages]

    async def cancel_response(self, _event: Event) -> None:
        """Stop the response."""
        if self._exchange is None or self._task is None or self._task.done():
            raise _MistakeError("response_cancel_not_active", "Cancellation failed: no active response found")
        self._cancelled = True
        self._exchange.leave()

    async def _respond(self, response: Event, exchange: Exchange, *, spoken: bool, kept: bool) -> None:
        item: Event = {
            "id": _new("item"),
            "object": "realtime.item",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        place = {"response_id": response["id"], "item_id": item["id"], "output_index": 0, "content_index": 0}
        begun, text = False, ""
        finish: str | None = None
        usage: Mapping[str, Any] | None = None
        error: Mapping[str, Any] | None = None
        try:
            async for delta in deltas(exchange.pieces()):
                error, finish = delta.error or error, delta.finish_reason or finish
                usage = delta.usage or usage
                if error is None and not begun:
                    begun = True
                    await self._begin(item, place, spoken=spoken)
                if delta.text:
                    text += delta.text
                    await self._send_delta(delta.text, place, spoken=spoken)
            if finish is None and error is None and not self._cancelled:
                return  # The answer broke off, and so does the response.
            outcome = _outcome(finish, error, cancelled=self._cancelled)
            if begun:
                item["status"] = "completed" if outcome[0] == "completed" else "incomplete"
                await self._finish(item, place, text, spoken=spoken)
                response["output"] = [item]
                if kept:
                    self._items[item["id"]] = item
            response["status"], response["status_details"] = outcome
            response["usage"] = _usage(usage)
            await self._send("response.done", response=response)
        except ProtocolClosed:
            return

    async def _begin(self, item: Event, place: Event, *, spoken: bool) -> None:
        await self._send(
            "response.output_item.added", response_id=place["response_id"], output_index=0, item=item
        )
        previous = next(reversed(self._items), None)
        await self._send("conversation.item.added", previous_item_id=previous, item=item)
        part = {"type": "audio", "transcript": ""} if spoken else {"type": "text", "text": ""}
        await self._send("response.content_part.added", **place, part=part)

    async def _send_delta(self, text: str, place: Event, *, spoken: bool) -> None:
        if not spoken:
            await self._send("response.output_text.delta", **place, delta=text)
            return
        await self._send("response.output_audio_transcript.delta", **place, delta=text)
        await self._send("response.output_audio.delta", **place, delta=_SOUND)

    async def _finish(self, item: Event, place: Event, text: str, *, spoken: bool) -> None:
        if spoken:
            await self._send("response.output_audio.done", **place)
            await self._send("response.output_audio_transcript.done", **place, transcript=text)
            part: Event = {"type": "audio", "transcript": text}
            item["content"] = [{"type": "output_audio", "transcript": text}]
        else:
            await self._send("response.output_text.done", **place, text=text)
            part = {"type": "text", "text": text}
            item["content"] = [{"type": "output_text", "text": text}]
        await self._send("response.content_part.done", **place, part=part)
        await self._send(
            "response.output_item.done", response_id=place["response_id"], output_index=0, item=item
        )
        previous = next(reversed(self._items), None)
        await self._send("conversation.item.done", previous_item_id=previous, item=item)


# Not bound to the session: a cycle would keep the socket, which the library closes when it is let go.
_ON: Mapping[str, Callable[[Session, Event], Awaitable[None]]] = {
    "session.update": Session.update,
    "conversation.item.create": Session.create_item,
    "conversation.item.retrieve": Session.retrieve_item,
    "conversation.item.delete": Session.delete_item,
    "input_audio_buffer.append": Session.append_audio,
    "input_audio_buffer.clear": Session.clear_audio,
    "input_audio_buffer.commit": Session.commit_audio,
    "response.create": Session.create_response,
    "response.cancel": Session.cancel_response,
}


# -- reading events ---------------------------------------------------------------------------------------


def _new(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


async def _unknown(_session: Session, event: Event) -> None:
    raise _MistakeError("invalid_value", f"Invalid value: {event['type']!r}", "type")


def _decoded(text: str | bytes) -> Event:
    try:
        event = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _MistakeError("invalid_json", f"The event is not valid JSON: {error}") from error
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise _MistakeError("missing_required_parameter", "Missing required parameter: 'type'", "type")
    return event


def _object(event: Event, key: str, *, needed: bool = True) -> Event:
    value = event.get(key)
    if value is None and not needed:
        return {}
    if not isinstance(value, dict):
        raise _MistakeError("missing_required_parameter", f"Missing required parameter: {key!r}", key)
    return value


def _modalities(settings: Event, session: Event) -> list[str]:
    wanted = settings.get("output_modalities", session["output_modalities"])
    if wanted not in (["text"], ["audio"]):
        raise _MistakeError("invalid_value", 'Choose ["text"] or ["audio"]', "output_modalities")
    return list(wanted)


def _most_tokens(settings: Event, session: Event) -> int | str:
    limit = settings.get("max_output_tokens", session["max_output_tokens"])
    if limit != "inf" and not (type(limit) is int and 1 <= limit <= 4096):
        raise _MistakeError("invalid_value", 'Write 1 to 4096, or "inf"', "max_output_tokens")
    return limit  # type: ignore[no-any-return]  # checked above


def _text_of(item: Event) -> str:
    content = item.get("content", [])
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _MistakeError("invalid_type", "An item's content must be a list of parts", "item.content")
    return "".join(str(part.get("text") or part.get("transcript") or "") for part in content)


# -- ending responses -------------------------------------------------------------------------------------


def _outcome(
    finish: str | None, error: Mapping[str, Any] | None, *, cancelled: bool
) -> tuple[str, Event | None]:
    """A response's status and its details."""
    if cancelled:
        return "cancelled", {"type": "cancelled", "reason": "client_cancelled"}
    if error is not None:
        known = {key: error.get(key) for key in ("type", "code", "message")}
        return "failed", {"type": "failed", "error": known}
    if finish in {"length", "content_filter"}:
        reason = "max_output_tokens" if finish == "length" else finish
        return "incomplete", {"type": "incomplete", "reason": reason}
    if finish not in {"stop", "tool_calls"}:
        message = f"The model ended with {finish}"
        return "failed", {"type": "failed", "error": {"type": "server_error", "message": message}}
    return "completed", {"type": "completed"}


def _usage(usage: Mapping[str, Any] | None) -> Event | None:
    if usage is None:
        return None
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    cached = usage.get("prompt_cache_hit_tokens", 0)
    return {
        "input_tokens": prompt,
        "output_tokens": completion,
        "total_tokens": prompt + completion,
        "input_token_details": {"text_tokens": prompt, "audio_tokens": 0, "cached_tokens": cached},
        "output_token_details": {"text_tokens": completion, "audio_tokens": 0},
    }
