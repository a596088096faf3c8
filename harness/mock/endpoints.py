"""What is served beside generation: files, batches, tasks, the balance, metrics, the API's description."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import msgspec
from granian._granian import RSGIWebsocketProtocol as WebsocketProtocol
from granian.rsgi import Scope

from harness.mock import audio, dialects, embeddings, images, inward, realtime
from harness.mock.api import json_plan, refusal
from harness.mock.batches import Batches, Created
from harness.mock.files import Files, page
from harness.mock.media import Asked, Make, read, whole
from harness.mock.metrics import Counts, Metrics, Now
from harness.mock.plan import Plan
from harness.mock.questions import Endpoint, Refusal
from harness.mock.tasks import Tasks, in_background
from harness.mock.truth import Log

MAKERS: Mapping[str, Make] = {
    "/embeddings": embeddings.make,
    "/images/generations": images.make,
    "/audio/speech": audio.speech,
    "/audio/transcriptions": audio.transcription,
}
"""The generating endpoints beside chat and its kin."""

ELSEWHERE = Plan(None, [], [])
"""Stands for the answer of the process that keeps what was asked for."""

_BALANCE = {
    "is_available": True,
    "balance_infos": [
        {
            "currency": "USD",
            "total_balance": "110.00",
            "granted_balance": "10.00",
            "topped_up_balance": "100.00",
        }
    ],
}
"""As at api-docs.deepseek.com/api/get-user-balance."""

_PASSED_ON = ("authorization", "x-api-key", "x-mock-fault", "x-request-id", "traceparent", "content-type")
"""Headers of a request that its task's request has, too."""

_decode_batch = msgspec.json.Decoder(Created).decode
Methods = Mapping[str, Callable[[], Any]]


class Endpoints:
    """Their state.

    Args:
        application: the mock's own front door.
        api_key: the only key accepted; None accepts any.
        keeper: whether files, batches and tasks are kept here, and not in another process.
        log: what metrics are counted from.
        batch_window_s: how long a batch may take.
        batch_stage_s: how long a batch validates, finalizes, cancels.
        task_slots: how many tasks run at a time.
    """

    def __init__(
        self,
        application: inward.Application,
        *,
        api_key: str | None,
        keeper: bool,
        log: Log,
        batch_window_s: float,
        batch_stage_s: float,
        task_slots: int,
    ) -> None:
        self._application = application
        self._api_key = api_key
        self._keeper = keeper
        self._log = log
        self._metrics: Metrics | None = None
        self._files = Files()
        self._batches = Batches(
            self._ask_for_batch,
            self._files,
            now_s=time.time,
            window_s=batch_window_s,
            stage_s=batch_stage_s,
        )
        self._tasks = Tasks(self._ask_for_task, slots=task_slots, now_s=time.time)

    def stop(self) -> None:
        """Start nothing more: the mock is going down."""
        self._batches.stop()
        self._tasks.stop()

    # -- control ------------------------------------------------------------------------------------------

    def answer(self, scope: Scope, path: str, body: bytes) -> Plan | None:
        """Answer at once; `ELSEWHERE` for what another process keeps, None for a path not among these.

        Args:
            scope: the request.
            path: its path without `/v1`.
            body: its body.
        """
        methods = self._methods(scope, path.split("/")[1:], body)
        if methods is None:
            return None
        if not self._may(scope) and not path.startswith("/images/"):  # Their links carry no key.
            return refusal(401)
        method = methods.get(scope.method)
        if method is None:
            return refusal(405, headers=[("allow", ", ".join(methods))])
        if not self._keeper and path.split("/")[1] in {"files", "batches", "tasks"}:
            return ELSEWHERE
        found = method()
        if isinstance(found, Refusal):
            return refusal(found.status, found.message)
        return found if isinstance(found, Plan) else json_plan(found)

    def _may(self, scope: Scope) -> bool:
        headers, key = scope.headers, self._api_key
        return (
            key is None or headers.get("authorization") == f"Bearer {key}" or headers.get("x-api-key") == key
        )

    def _methods(self, scope: Scope, path: list[str], body: bytes) -> Methods | None:
        query = parse_qs(scope.query_string)
        content_type = scope.headers.get("content-type") or ""
        files, now = self._files, int(time.time())
        match path:
            case ["files"]:
                return {
                    "GET": lambda: self._list_files(query, now),
                    "POST": lambda: files.upload(body, content_type, now),
                }
            case ["files", file_id]:
                return {
                    "GET": lambda: self._file(file_id, now)[0],
                    "DELETE": lambda: self._delete_file(file_id),
                }
            case ["files", file_id, "content"]:
                return {"GET": lambda: self._content(file_id, now)}
            case ["batches"]:
                return {
                    "GET": lambda: page(self._batches.listed(), query),
                    "POST": lambda: self._create_batch(body),
                }
            case ["batches", batch_id]:
                return {"GET": lambda: self._batches.get(batch_id) or _none("batch", batch_id)}
            case ["batches", batch_id, "cancel"]:
                return {"POST": lambda: self._batches.cancel(batch_id)}
            case ["tasks", task_id]:
                return {"GET": lambda: self._tasks.get(task_id) or _none("task", task_id)}
            case ["images", "files", name] if (picture := images.file(name)) is not None:
                return {"GET": lambda: picture}
            case ["user", "balance"]:
                return {"GET": lambda: _BALANCE}
            case ["realtime"]:
                return {"GET": lambda: refusal(400, "`/realtime` is a WebSocket: upgrade the connection")}
            case _:
                return None

    def _list_files(self, query: Mapping[str, list[str]], now_s: int) -> object:
        purpose = query.get("purpose", [""])[0]
        listed = self._files.listed(now_s)
        return page([file for file in listed if not purpose or file.purpose == purpose], query)

    def _file(self, file_id: str, now_s: int) -> tuple[object, bytes]:
        return self._files.get(file_id, now_s) or (_none("file", file_id), b"")

    def _content(self, file_id: str, now_s: int) -> object:
        file, content = self._file(file_id, now_s)
        if isinstance(file, Refusal):
            return file
        return whole(content, at_ns=0, content_type="application/octet-stream")

    def _delete_file(self, file_id: str) -> object:
        if not self._files.delete(file_id):
            return _none("file", file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    def _create_batch(self, body: bytes) -> object:
        created = read(_decode_batch, body)
        return created if isinstance(created, Refusal) else self._batches.create(created)

    # -- open to all --------------------------------------------------------------------------------------

    def counts(self, now: Now) -> Counts:
        """What `/metrics` is made of."""
        if self._metrics is None:
            self._metrics = Metrics()
            self._log.follow(self._metrics.observe)
        return self._metrics.counts(now)

    # -- requests that the mock puts to itself ------------------------------------------------------------

    def task(self, scope: Scope, body: bytes, endpoint: Endpoint | None) -> Plan | None:
        """The answer to a request that is to become a task, 202 if it is a fit one; None for any other.

        It is `ELSEWHERE` where another process keeps the tasks.

        Args:
            scope: the request.
            body: its body.
            endpoint: what it asks, unless one of `MAKERS`.
        """
        headers = scope.headers
        wanted = in_background(body, headers.get("prefer"))
        if wanted is False or scope.http_version == "task":
            return None
        if not self._may(scope):
            return refusal(401)
        if not self._keeper:
            return ELSEWHERE
        unfit = wanted if isinstance(wanted, Refusal) else _unfit(scope, body, endpoint)
        if unfit is not None:
            return refusal(unfit.status, unfit.message)
        passed_on = {name: headers.get(name) for name in _PASSED_ON if name in headers}
        task = self._tasks.create(scope.path, body, passed_on)
        if isinstance(task, Refusal):
            return refusal(task.status, task.message)
        place = [("location", f"/v1/tasks/{task.id}"), ("preference-applied", "respond-async")]
        return json_plan(task, status=202, headers=place)

    async def _ask_for_task(
        self, path: str, body: bytes, request_id: str, headers: dict[str, str]
    ) -> inward.Answer:
        scope = inward.Scope(path, {**headers, "x-request-id": request_id}, "task")
        return await inward.ask(self._application, scope, body)

    async def _ask_for_batch(self, path: str, body: bytes, request_id: str) -> inward.Answer:
        scope = inward.Scope(path, {**self._own_key(), "x-request-id": request_id}, "batch")
        return await inward.ask(self._application, scope, body)

    def _own_key(self) -> dict[str, str]:
        return {} if self._api_key is None else {"authorization": f"Bearer {self._api_key}"}

    async def realtime(self, scope: Scope, proto: WebsocketProtocol) -> None:
        """Serve one WebSocket."""
        headers = scope.headers
        if scope.path.removeprefix("/v1") != "/realtime":
            proto.close(404)
            return
        if not self._may(scope):
            proto.close(401)
            return
        model = parse_qs(scope.query_string).get("model", ["gpt-realtime"])[0]
        passed_on = {name: headers.get(name) for name in ("x-mock-fault", "traceparent") if name in headers}

        def start(body: bytes, request_id: str) -> inward.Exchange:
            known = {**self._own_key(), **passed_on, "x-request-id": request_id}
            inner = inward.Scope("/v1/chat/completions", known, "realtime")
            return inward.Exchange(self._application, inner, body)

        request_id = headers.get("x-request-id") or uuid.uuid4().hex
        transport = await proto.accept()
        session = realtime.Session(transport, start, model=model, request_id=request_id)
        await session.serve()


def _unfit(scope: Scope, body: bytes, endpoint: Endpoint | None) -> Refusal | None:
    """What is wrong with a request that would only come out when its task runs."""
    if endpoint is not None:
        read_as = dialects.read(endpoint, body)
        return read_as if isinstance(read_as, Refusal) else None
    content_type = scope.headers.get("content-type") or ""
    asked = Asked(body, content_type, origin(scope), 0, lambda tokens: [0] * tokens)
    made = MAKERS[scope.path.removeprefix("/v1")](asked)
    return made if isinstance(made, Refusal) else None


def origin(scope: Scope) -> str:
    """Scheme and authority by which a client reached the mock."""
    return f"{scope.scheme}://{scope.authority or scope.headers.get('host') or scope.server}"


def _none(kind: str, name: str) -> Refusal:
    return Refusal(404, f"No {kind} found with id {name!r}")
