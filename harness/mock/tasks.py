"""`/tasks/{id}`: an answer that takes long, to be asked for later.

    queued --> running --> completed | failed

Any generating request becomes a task by the header `prefer: respond-async` (RFC 7240), or by
`"background": true` in its body.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from harness.mock.inward import Answer
from harness.mock.questions import Refusal

_MOST_OPEN = 10_000
_KEPT = 10_000
"""Tasks that have ended; the oldest are forgotten first."""


class Task(msgspec.Struct, kw_only=True):
    """What the API says of a task; times are Unix seconds."""

    id: str
    created_at: int
    status: str = "queued"
    object: str = "task"
    started_at: int | None = None
    ended_at: int | None = None
    result: msgspec.Raw | None = None
    """The answer, if it is one."""
    error: Any = None
    """The error object, if the answer is none."""


class _Flags(msgspec.Struct):
    background: bool | None = None
    stream: bool | None = None


_decode_flags = msgspec.json.Decoder(_Flags).decode


def in_background(body: bytes, prefer: str | None) -> bool | Refusal:
    """Whether a request is to become a task."""
    asked = prefer is not None and "respond-async" in prefer
    # Most bodies are spared the decoding.
    if not asked and b'"background"' not in body:
        return False
    try:
        flags = _decode_flags(body)
    except msgspec.ValidationError as error:
        return Refusal(422, f"Failed to deserialize the JSON body into the target type: {error}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False  # The endpoint itself says what is wrong with it.
    if not asked and not flags.background:
        return False
    return Refusal(400, "a task cannot be streamed: leave `stream` out") if flags.stream else True


class Tasks:
    """The tasks by their ids.

    Args:
        ask: answers one request: path, body, request id, headers.
        slots: how many run at a time; the others are queued.
        now_s: the wall clock.
    """

    def __init__(
        self,
        ask: Callable[[str, bytes, str, dict[str, str]], Awaitable[Answer]],
        *,
        slots: int,
        now_s: Callable[[], float],
    ) -> None:
        self._ask = ask
        self._slots = asyncio.Semaphore(slots)
        self._now_s = now_s
        self._tasks: dict[str, Task] = {}
        self._ended: list[str] = []
        self._running: set[asyncio.Task[None]] = set()

    def create(self, path: str, body: bytes, headers: dict[str, str]) -> Task | Refusal:
        """Queue a request."""
        if len(self._running) >= _MOST_OPEN:
            return Refusal(429, f"{_MOST_OPEN} tasks are waiting already")
        task = Task(id=f"task_{uuid.uuid4().hex}", created_at=int(self._now_s()))
        self._tasks[task.id] = task
        work = asyncio.ensure_future(self._work(task, path, body, headers))
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        return task

    def get(self, task_id: str) -> Task | None:
        """A task as it stands."""
        return self._tasks.get(task_id)

    def stop(self) -> None:
        """Ask nothing more: the mock is going down."""
        for work in self._running:
            work.cancel()

    async def _work(self, task: Task, path: str, body: bytes, headers: dict[str, str]) -> None:
        async with self._slots:
            task.status, task.started_at = "running", int(self._now_s())
            answer = await self._ask(path, body, headers.get("x-request-id", task.id), headers)
        task.ended_at = int(self._now_s())
        task.result, task.error = _outcome(answer)
        task.status = "completed" if task.error is None else "failed"
        self._ended.append(task.id)
        if len(self._ended) > _KEPT:
            del self._tasks[self._ended.pop(0)]


def _outcome(answer: Answer) -> tuple[msgspec.Raw | None, Any]:
    """An answer's result and error, one of them None."""
    try:
        body = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        kind = answer.headers.get("content-type", "nothing")
        return None, {"message": f"The answer is {kind}, not whole JSON", "code": "server_error"}
    error = body.get("error") if isinstance(body, dict) else None
    if answer.status == 200 and not error:
        return msgspec.Raw(answer.body), None
    return None, error or {"message": f"HTTP status {answer.status}", "code": "server_error"}
