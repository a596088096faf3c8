"""`/batches`: many requests from a file, answered by the mock itself, in time or not.

    validating --> in_progress --> finalizing --> completed
         |              |--> cancelling --> cancelled        what was answered by then is kept
         |              '--> expired                         so it is when the window is over
         '--> failed                                         the input file has mistakes

Every line goes through the mock's front door, so that batches load it as they would load a real server.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from harness.mock.files import Files
from harness.mock.inward import Answer
from harness.mock.questions import Refusal

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/images/generations",
)
"""What lines may ask; of OpenAI's list, what the mock has."""
_MOST_LINES = 50_000
_LINES_AT_ONCE = 16
_MOST_ERRORS = 20
"""Mistakes of an input file that are told."""
_KEPT = 10_000
"""Batches; the oldest that have ended are forgotten first."""


_Key = Annotated[str, Meta(max_length=64)]
_Value = Annotated[str, Meta(max_length=512)]


class Created(msgspec.Struct, frozen=True):
    """The body of a request for a batch."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Annotated[dict[_Key, _Value], Meta(max_length=16)] | None = None


class Counts(msgspec.Struct):
    """Of lines."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokens(msgspec.Struct):
    """Of all answers."""

    cached_tokens: int = 0


class OutputTokens(msgspec.Struct):
    """Of all answers."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Of all answers."""

    input_tokens: int = 0
    input_tokens_details: InputTokens = msgspec.field(default_factory=InputTokens)
    output_tokens: int = 0
    output_tokens_details: OutputTokens = msgspec.field(default_factory=OutputTokens)
    total_tokens: int = 0


class Batch(msgspec.Struct, kw_only=True):
    """What the API says of a batch; times are Unix seconds."""

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None
    completion_window: str = "24h"
    status: str = "validating"
    object: str = "batch"
    model: str | None = None
    errors: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = msgspec.field(default_factory=Counts)
    usage: Usage = msgspec.field(default_factory=Usage)


# -- the input file ---------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One request of a batch."""

    custom_id: str
    body: bytes
    model: str | None


class _Model(msgspec.Struct):
    model: str | None = None


class _Line(msgspec.Struct):
    custom_id: Annotated[str, Meta(min_length=1)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_model = msgspec.json.Decoder(_Model).decode


def read_lines(content: bytes, endpoint: str) -> tuple[list[Line], list[dict[str, Any]]]:
    """A file's requests, and its mistakes as the API tells them (the first 20).

    Args:
        content: JSON lines with `custom_id`, `method`, `url` and `body`.
        endpoint: the `url` that all must have.
    """
    lines: list[Line] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, text in enumerate(content.splitlines(), start=1):
        if not text.strip():
            continue
        mistake = _mistake(text, endpoint, seen, lines)
        if mistake is not None:
            errors.append({"code": mistake[0], "message": mistake[1], "param": None, "line": number})
    if not lines and not errors:
        errors.append({"code": "empty_file", "message": "The file has no requests", "param": None, "line": 1})
    if len(lines) > _MOST_LINES:
        message = f"A batch may have up to {_MOST_LINES} requests"
        errors.append({"code": "too_many_requests", "message": message, "param": None, "line": None})
    return lines, errors[:_MOST_ERRORS]


def _mistake(text: bytes, endpoint: str, seen: set[str], lines: list[Line]) -> tuple[str, str] | None:
    """What is wrong with a line; one that is right joins the lines."""
    try:
        line = _decode_line(text)
        model = _decode_model(line.body).model
    except msgspec.ValidationError as error:
        return "invalid_request", str(error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "invalid_json_line", "This line is not parseable as valid JSON."
    if line.url != endpoint:
        return "mismatched_endpoint", f"`url` must be {endpoint}"
    if line.custom_id in seen:
        return "duplicate_custom_id", f"`custom_id` {line.custom_id!r} is used twice"
    seen.add(line.custom_id)
    lines.append(Line(line.custom_id, bytes(line.body), model))
    return None


# -- the output files -------------------------------------------------------------------------------------


class _Details(msgspec.Struct):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Tokens(msgspec.Struct):
    """Under the names of chat, or of responses."""

    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens: int = 0
    completion_tokens_details: _Details | None = None
    input_tokens: int = 0
    input_tokens_details: _Details | None = None
    output_tokens: int = 0
    output_tokens_details: _Details | None = None


class _Answered(msgspec.Struct):
    usage: _Tokens | None = None


def answered_line(line: Line, answer: Answer) -> tuple[bytes, bool]:
    """An answer as a line of an output file, and whether it belongs to the file of successes."""
    request_id = answer.headers.get("x-request-id", "")
    try:
        body = msgspec.json.decode(answer.body)
        error = None
    except msgspec.DecodeError:
        body, error = None, {"code": "server_error", "message": "The answer broke off, or is not JSON"}
    response = {"status_code": answer.status, "request_id": request_id, "body": body}
    good = error is None and answer.status == 200 and not (isinstance(body, dict) and body.get("error"))
    return _output(line, response if error is None else None, error), good


def unanswered_line(line: Line, code: str) -> bytes:
    """A line that was not answered in time (`batch_expired`), or not at all (`batch_cancelled`)."""
    why = {
        "batch_expired": "This request could not be executed before the completion window expired.",
        "batch_cancelled": "This request was cancelled before it was executed.",
    }[code]
    return _output(line, None, {"code": code, "message": why})


def _output(line: Line, response: object, error: object) -> bytes:
    request = f"batch_req_{uuid.uuid4().hex}"
    whole = {"id": request, "custom_id": line.custom_id, "response": response, "error": error}
    return msgspec.json.encode(whole) + b"\n"


def add_usage(usage: Usage, body: bytes) -> None:
    """Count one answer's tokens."""
    tokens = msgspec.json.decode(body, type=_Answered).usage or _Tokens()
    usage.input_tokens += tokens.prompt_tokens or tokens.input_tokens
    usage.output_tokens += tokens.completion_tokens or tokens.output_tokens
    read = tokens.prompt_tokens_details or tokens.input_tokens_details or _Details()
    written = tokens.completion_tokens_details or tokens.output_tokens_details or _Details()
    usage.input_tokens_details.cached_tokens += read.cached_tokens
    usage.output_tokens_details.reasoning_tokens += written.reasoning_tokens
    usage.total_tokens = usage.input_tokens + usage.output_tokens


# -- the batches ------------------------------------------------------------------------------------------


class _Run(NamedTuple):
    batch: Batch
    cancelled: asyncio.Event


class Batches:
    """The batches by their ids, oldest first, and the tasks that work on them.

    Args:
        ask: answers one request: path, body, request id.
        files: where input is read from and output written to.
        now_s: the wall clock.
        window_s: how long a batch may take, whatever its window is called.
        stage_s: how long a batch is at least `validating`, `finalizing` and `cancelling`.
    """

    def __init__(
        self,
        ask: Callable[[str, bytes, str], Awaitable[Answer]],
        files: Files,
        *,
        now_s: Callable[[], float],
        window_s: float,
        stage_s: float,
    ) -> None:
        self._ask = ask
        self._files = files
        self._now_s = now_s
        self._window_s = window_s
        self._stage_s = stage_s
        self._runs: dict[str, _Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def create(self, body: Created) -> Batch | Refusal:
        """Start a batch."""
        if body.endpoint not in ENDPOINTS:
            return Refusal(422, f"`endpoint` is {body.endpoint!r}: choose one of {', '.join(ENDPOINTS)}")
        found = self._files.get(body.input_file_id, self._now())
        if found is None or found[0].purpose != "batch":
            return Refusal(404, f"No file with purpose batch found with id {body.input_file_id!r}")
        self._forget()
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            created_at=self._now(),
            expires_at=round(self._now_s() + self._window_s),
            metadata=body.metadata,
        )
        run = _Run(batch, asyncio.Event())
        self._runs[batch.id] = run
        task = asyncio.ensure_future(self._work(run, found[1]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return batch

    def get(self, batch_id: str) -> Batch | None:
        """A batch as it stands."""
        run = self._runs.get(batch_id)
        return run.batch if run else None

    def listed(self) -> list[Batch]:
        """All of them."""
        return [run.batch for run in self._runs.values()]

    def cancel(self, batch_id: str) -> Batch | Refusal:
        """Stop a batch; what has been answered is kept."""
        run = self._runs.get(batch_id)
        if run is None:
            return Refusal(404, f"No batch found with id {batch_id!r}")
        if run.batch.status not in {"validating", "in_progress", "cancelling"}:
            return Refusal(409, f"Cannot cancel a batch with status {run.batch.status!r}")
        if run.batch.status != "cancelling":
            run.batch.status, run.batch.cancelling_at = "cancelling", self._now()
            run.cancelled.set()
        return run.batch

    def stop(self) -> None:
        """Ask nothing more: the mock is going down."""
        for task in self._tasks:
            task.cancel()

    async def _work(self, run: _Run, content: bytes) -> None:
        batch = run.batch
        deadline_s = self._now_s() + self._window_s
        await self._stage(run)
        lines, errors = read_lines(content, batch.endpoint)
        if errors:
            batch.status, batch.failed_at = "failed", self._now()
            batch.errors = {"object": "list", "data": errors}
            return
        batch.model = lines[0].model
        batch.request_counts.total = len(lines)
        if not run.cancelled.is_set():
            batch.status, batch.in_progress_at = "in_progress", self._now()
        output, failures, left = await self._answer_all(run, lines, deadline_s)
        code = "batch_cancelled" if run.cancelled.is_set() else "batch_expired"
        failures += [unanswered_line(line, code) for line in left]
        batch.request_counts.failed += len(left)
        if run.cancelled.is_set():
            await asyncio.sleep(self._stage_s)
            self._write(batch, output, failures)
            batch.status, batch.cancelled_at = "cancelled", self._now()
        elif left:
            self._write(batch, output, failures)
            batch.status, batch.expired_at = "expired", self._now()
        else:
            batch.status, batch.finalizing_at = "finalizing", self._now()
            await asyncio.sleep(self._stage_s)
            self._write(batch, output, failures)
            batch.status, batch.completed_at = "completed", self._now()

    async def _stage(self, run: _Run) -> None:
        """Spend a stage's time, or less if the batch is cancelled."""
        try:
            await asyncio.wait_for(run.cancelled.wait(), self._stage_s)
        except TimeoutError:
            return

    async def _answer_all(
        self, run: _Run, lines: list[Line], deadline_s: float
    ) -> tuple[list[bytes], list[bytes], list[Line]]:
        """Lines of the output file, lines of the error file, and what was left when time was up."""
        output: list[bytes] = []
        failures: list[bytes] = []
        left = list(reversed(lines))
        under_way: dict[asyncio.Task[Answer], Line] = {}
        cancelled = asyncio.ensure_future(run.cancelled.wait())
        try:
            while (left or under_way) and not run.cancelled.is_set() and self._now_s() < deadline_s:
                while left and len(under_way) < _LINES_AT_ONCE:
                    line = left.pop()
                    request_id = f"{run.batch.id}-{line.custom_id}"
                    under_way[asyncio.ensure_future(self._put(run.batch.endpoint, line, request_id))] = line
                done, _ = await asyncio.wait(
                    [*under_way, cancelled],
                    timeout=deadline_s - self._now_s(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in [task for task in under_way if task in done]:
                    answer = task.result()
                    text, good = answered_line(under_way.pop(task), answer)
                    if good:
                        add_usage(run.batch.usage, answer.body)
                        run.batch.request_counts.completed += 1
                    else:
                        run.batch.request_counts.failed += 1
                    (output if good else failures).append(text)
        finally:
            for waiting in [cancelled, *under_way]:
                waiting.cancel()
        return output, failures, [*under_way.values(), *reversed(left)]

    async def _put(self, path: str, line: Line, request_id: str) -> Answer:
        return await self._ask(path, line.body, request_id)

    def _write(self, batch: Batch, output: list[bytes], failures: list[bytes]) -> None:
        batch.output_file_id = self._file(batch, "output", output)
        batch.error_file_id = self._file(batch, "error", failures)

    def _file(self, batch: Batch, kind: str, lines: list[bytes]) -> str | None:
        """The id of a new file; None if there is nothing to write."""
        if not lines:
            return None
        name = f"{batch.id}_{kind}.jsonl"
        return self._files.add(b"".join(lines), name, "batch_output", self._now()).id

    def _forget(self) -> None:
        ended = [run.batch.id for run in self._runs.values() if run.batch.status in _ENDED]
        for batch_id in ended[: max(0, len(self._runs) - _KEPT + 1)]:
            del self._runs[batch_id]

    def _now(self) -> int:
        return int(self._now_s())


_ENDED = {"failed", "completed", "expired", "cancelled"}
