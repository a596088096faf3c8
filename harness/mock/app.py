"""The endpoints: an RSGI application that turns each request into a plan and plays it."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import Coroutine
from typing import Any, cast
from urllib.parse import parse_qs

import msgspec
from granian._granian import RSGIHTTPProtocol as HTTPProtocol
from granian._granian import RSGIProtocolClosed as ProtocolClosed
from granian._granian import RSGIWebsocketProtocol as WebsocketProtocol
from granian.rsgi import Scope

from harness.errors import ConfigError
from harness.mock import api, dialects, faults, flavours, mangle, metrics, openapi, script
from harness.mock.cache import PrefixCache
from harness.mock.drive import Drive, gated
from harness.mock.endpoints import ELSEWHERE, MAKERS, Endpoints, origin
from harness.mock.engine import Engine, Job
from harness.mock.generation import length
from harness.mock.latency import Profile, token_offsets_ns
from harness.mock.limits import Buckets, Limits
from harness.mock.media import Asked, Make, whole
from harness.mock.pacer import Pacer, now_ns
from harness.mock.plan import Kind, Plan, Step
from harness.mock.playback import Playback, answered_at_once
from harness.mock.questions import Endpoint, Refusal
from harness.mock.siblings import KEEPER, Request, Siblings
from harness.mock.truth import Entry, Log

_PAGE = 10_000
"""Entries of the truth log in one answer."""


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How the mock answers."""

    profile: Profile
    rules: tuple[script.Rule, ...] = ()
    limits: Limits | None = None
    seed: int = 0
    api_key: str | None = None
    """The only bearer key accepted; None accepts requests with any key or none."""
    models: tuple[str, ...] = ("deepseek-flash", "deepseek-v4-pro")
    """What `/models` lists; requests may name any model."""
    tls: bool = False
    worker: int = 0
    """Which of the mock's processes this is, of how many."""
    workers: int = 1
    truth_requests: int = 200_000
    """Requests kept in memory."""
    batch_window_s: float = 86_400
    """How long a batch may take."""
    batch_stage_s: float = 0.05
    """How long a batch is validating, finalizing or cancelling."""
    task_slots: int = 8
    """How many tasks run at a time."""


class Mock:
    """The application, and all state of a running mock.

    Args:
        options: how it behaves.
        clock: the script's, where several processes share it.
    """

    def __init__(self, options: Behaviour, clock: script.ScriptClock | None = None) -> None:
        self.log = Log(requests=options.truth_requests)
        self.in_flight: set[Playback] = set()
        self._options = options
        self._cache = _cache(options.profile)
        self._reads_key = options.api_key is not None or options.limits is not None
        self._fingerprint = f"fp_mock_{options.profile.name}"
        # Of several processes each counts in its own lane.
        self._number = options.worker + 1 - options.workers
        self.clock = script.ScriptClock() if clock is None else clock
        self.siblings: Siblings | None = None
        """The other processes of the same mock, if there are any."""
        self._buckets = None if options.limits is None else Buckets(options.limits)
        self._told_unfit: set[str] = set()
        self._generating = {endpoint.value: endpoint for endpoint in Endpoint}
        self._generating["/beta/chat/completions"] = Endpoint.CHAT
        self._reading = {"/models": self._models, "/health": self._health, "/__truth": self._truth}
        self._reading |= {"/metrics": self._metrics, "/openapi.json": self._openapi}
        self._pacer: Pacer
        self._drive: Drive | None = None
        self.endpoints = Endpoints(
            self.__rsgi__,
            api_key=options.api_key,
            keeper=options.worker == KEEPER,
            log=self.log,
            batch_window_s=options.batch_window_s,
            batch_stage_s=options.batch_stage_s,
            task_slots=options.task_slots,
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be ready for requests; once, for the engine remembers."""
        self._pacer = Pacer(loop)
        settings = self._options.profile.engine
        if settings is not None:
            self._drive = Drive(Engine(settings, seed=self._options.seed), self._pacer)

    async def __rsgi__(self, scope: Scope, proto: HTTPProtocol) -> None:
        """Serve one request."""
        if scope.proto == "ws":
            await self.endpoints.realtime(scope, cast("WebsocketProtocol", proto))
            return
        first_byte_ns = now_ns()  # of the body: the library tells of no earlier one
        try:
            body = await proto()
        except ProtocolClosed:
            return  # The client went away in the middle of its request.
        work = self.answer(scope, proto, body, first_byte_ns=first_byte_ns, arrived_ns=now_ns())
        if work is not None:
            await work

    def answer(
        self, scope: Scope, proto: HTTPProtocol, body: bytes, *, first_byte_ns: int, arrived_ns: int
    ) -> Coroutine[Any, Any, None] | None:
        """Answer a whole request now, or give what will: most answers need no task.

        Args:
            scope: the request.
            proto: takes the answer.
            body: of the request.
            first_byte_ns: when the request began to come.
            arrived_ns: when all of it had come.
        """
        full_path = scope.path
        path = full_path.removeprefix("/v1")
        endpoint = self._generating.get(path)
        make = MAKERS.get(path)
        if (endpoint is None and make is None) or scope.method != "POST":
            if self.siblings is not None:
                return self._tell_shared(proto, scope, path, body)
            _respond(proto, self._control(scope, path, body))
            return None
        task = self.endpoints.task(scope, body, endpoint)
        if task is ELSEWHERE:
            return self._tell_kept(proto, scope, body)
        if task is not None:
            _respond(proto, task)
            return None
        headers = scope.headers
        request_id = headers.get("x-request-id") or os.urandom(16).hex()
        self._number += self._options.workers
        entry = Entry(request_id, self._number, full_path, scope.http_version, arrived_ns, first_byte_ns)
        entry.traceparent = headers.get("traceparent") or ""
        self.clock.start(arrived_ns)
        # Each look into the library's objects costs a request its part of a microsecond.
        key = headers.get("authorization") if self._reads_key else None
        if self._reads_key and key is None and (named := headers.get("x-api-key")) is not None:
            key = f"Bearer {named}"  # Anthropic's way to say it.
        fault = headers.get("x-mock-fault")
        if endpoint is not None:
            plan = self._plan(endpoint, body, entry, key, fault)
        else:
            asked = self._asked(scope, body, entry)
            plan = self._made(MAKERS[path], asked, entry, key, fault)
        return self._play(plan, entry, proto, scope)

    def _plan(
        self,
        endpoint: Endpoint,
        body: bytes,
        entry: Entry,
        authorization: str | None,
        fault: str | None,
    ) -> Plan:
        options = self._options
        if options.api_key is not None and authorization != f"Bearer {options.api_key}":
            return api.refusal(401)
        question = dialects.read(endpoint, body)
        if isinstance(question, Refusal):
            return api.refusal(question.status, question.message)
        said = api.compose(
            question, request_id=entry.request_id, default_tokens=options.profile.output_tokens
        )
        tokens = length(said)
        refused, limit_headers = self._limited(entry, authorization, question.prompt_tokens + tokens)
        if refused is not None:
            return refused
        cached = self._cache.match(question.text, question.prompt_tokens, user_id=question.user_id)
        offsets_ns = token_offsets_ns(
            options.profile, seed=options.seed, request_id=entry.request_id, tokens=tokens
        )
        plan = dialects.answer(
            question,
            said,
            request_id=entry.request_id,
            created=int(time.time()),
            cached_tokens=cached,
            token_offsets_ns=offsets_ns,
            fingerprint=self._fingerprint,
        )
        entry.model = question.model
        entry.stream = question.stream
        entry.prompt_tokens = question.prompt_tokens
        entry.cached_tokens = cached
        if limit_headers:
            plan = plan._replace(headers=[*plan.headers, *limit_headers])
        if self._drive is None:
            entry.prefill_end_ns = entry.arrived_ns + offsets_ns[0]
            return self._with_fault(plan, entry, fault)
        # Choices are generated side by side, as sequences of one batch would be.
        generated = max(1, *(choice.tokens for choice in said))
        plan = self._with_fault(gated(plan, generated), entry, fault)
        return self._queued(plan, Job(entry.number, question.prompt_tokens, generated, cached), entry)

    def _queued(self, plan: Plan, job: Job, entry: Entry) -> Plan:
        """The plan, its job handed to the engine if any of it awaits tokens; or the engine's refusal."""
        if self._drive is None or not any(step.awaits for step in plan.steps):
            return plan
        refused = self._drive.arrive(job)
        if refused is None:
            entry.queued_ns = entry.arrived_ns
            return plan
        entry.fault = ""
        return api.refusal(refused.status, refused.reason)

    def _asked(self, scope: Scope, body: bytes, entry: Entry) -> Asked:
        options = self._options
        return Asked(
            body=body,
            content_type=scope.headers.get("content-type") or "",
            origin=origin(scope),
            created=int(time.time()),
            due=lambda tokens: token_offsets_ns(
                options.profile, seed=options.seed, request_id=entry.request_id, tokens=tokens
            ),
        )

    def _made(self, make: Make, asked: Asked, entry: Entry, key: str | None, fault: str | None) -> Plan:
        """The answer of an endpoint beside chat."""
        if self._options.api_key is not None and key != f"Bearer {self._options.api_key}":
            return api.refusal(401)
        made = make(asked)
        if isinstance(made, Refusal):
            return api.refusal(made.status, made.message)
        tokens = made.prompt_tokens + made.plan.completion_tokens
        refused, limit_headers = self._limited(entry, key, tokens)
        if refused is not None:
            return refused
        entry.model, entry.stream, entry.prompt_tokens = made.model, made.stream, made.prompt_tokens
        plan = made.plan._replace(headers=[*made.plan.headers, *limit_headers])
        if self._drive is None:
            return self._with_fault(plan, entry, fault)
        generated = max(1, made.generated or plan.completion_tokens)
        plan = self._with_fault(gated(plan, generated), entry, fault)
        return self._queued(plan, Job(entry.number, made.prompt_tokens, generated, 0), entry)

    def _with_fault(self, plan: Plan, entry: Entry, spelling: str | None) -> Plan:
        """The fault that the request's header asks for, else that of the first rule met, if it applies."""
        options = self._options
        if spelling is not None:
            try:
                faulty = self._broken(faults.parse(spelling, "x-mock-fault"), plan, entry)
            except ConfigError as error:
                return api.refusal(400, str(error))
            if faulty is None:
                return api.refusal(
                    400, f"x-mock-fault: {spelling} is not for this answer (docs/mock.md says for which)"
                )
            entry.fault = spelling
            return faulty
        if not options.rules:
            return plan
        elapsed_s = self.clock.elapsed_s(entry.arrived_ns) or 0.0
        rule = script.choose(
            options.rules,
            seed=options.seed,
            request_id=entry.request_id,
            number=entry.number,
            elapsed_s=elapsed_s,
        )
        if rule is None:
            return plan
        faulty = self._broken(rule.fault, plan, entry, left_s=rule.left_s(elapsed_s))
        if faulty is None:
            self._unfit(rule.spelling, entry)
            return plan
        entry.fault = rule.spelling
        return faulty

    def _unfit(self, spelling: str, entry: Entry) -> None:
        """Say once that a rule chose a request that cannot have its fault: its client did not ask for it."""
        if spelling in self._told_unfit:
            return
        self._told_unfit.add(spelling)
        where = f"{entry.path} over HTTP/{entry.protocol}"
        sys.stderr.write(f"harness mock: {spelling} is not for answers like that of {where}: not applied\n")

    def _broken(self, fault: faults.Fault, plan: Plan, entry: Entry, *, left_s: float = 0.0) -> Plan | None:
        faulty = faults.apply(fault, plan, faults.Moment(time.time(), left_s))
        if faulty is None or faulty.mangling is None:
            return faulty
        return mangle.fitted(faulty, faulty.mangling, protocol=entry.protocol, tls=self._options.tls)

    def _limited(self, entry: Entry, key: str | None, tokens: int) -> tuple[Plan | None, api.Headers]:
        """The refusal of a request beyond its key's limits, and else the headers that tell the limits."""
        if self._buckets is None or self._options.limits is None:
            return None, []
        grant = self._buckets.take(key or "", tokens=tokens, now_s=entry.arrived_ns / 1e9)
        if not grant.wait_s:
            return None, grant.headers
        wait = flavours.retry_after(math.ceil(grant.wait_s), wall_s=None)
        return flavours.refusal(self._options.limits.flavour, 429, headers=[wait, *grant.headers]), []

    def _play(
        self, plan: Plan, entry: Entry, proto: HTTPProtocol, scope: Scope
    ) -> Coroutine[Any, Any, None] | None:
        """Play a plan, as far as it is due; gives what waits for its end."""
        headers = [*plan.headers, ("x-request-id", entry.request_id)]
        if entry.queued_ns is None and answered_at_once(plan, headers, entry, proto, self.log):
            return None
        playback = Playback(
            plan._replace(headers=headers),
            entry,
            proto,
            client=scope.client,
            pacer=self._pacer,
            log=self.log,
            drive=None if entry.queued_ns is None else self._drive,
        )
        unread = plan.status is None or (plan.mangling is not None and not plan.mangling.below)
        if playback.ended and not unread:
            return None
        if not playback.ended:
            self.in_flight.add(playback)
            playback.done = asyncio.get_running_loop().create_future()
        return self._played(playback, proto, unread=unread)

    async def _played(self, playback: Playback, proto: HTTPProtocol, *, unread: bool) -> None:
        if playback.done is not None:
            gone = asyncio.ensure_future(proto.client_disconnect())

            def stop(_: object) -> None:
                playback.stop("client_gone")

            gone.add_done_callback(stop)
            await playback.done
            # Else they hold one another until garbage is collected, which under load it is not.
            gone.remove_done_callback(stop)
            self.in_flight.discard(playback)
        if unread:
            # Nobody is there to read it: the library merely wants to be answered.
            proto.response_empty(500, [])

    # -- everything that is not an answer ----------------------------------------------------------------

    def _control(self, scope: Scope, path: str, body: bytes) -> Plan:
        if path in self._generating or path in MAKERS:
            return api.refusal(405, headers=[("allow", "POST")])
        surface = self._reading.get(path)
        if surface is None:
            found = self.endpoints.answer(scope, path, body)
            return found or api.refusal(404, f"Not Found: {scope.path}")
        if scope.method != "GET":
            return api.refusal(405, headers=[("allow", "GET")])
        return surface(scope)

    def counts(self) -> metrics.Counts:
        """What this process has counted for `/metrics`."""
        now = metrics.Now(running=len(self.in_flight))
        if self._drive is not None:
            engine = self._drive.engine
            now = metrics.Now(engine.running, engine.waiting, engine.kv_usage)
        return self.endpoints.counts(now)

    def _metrics(self, _scope: Scope) -> Plan:
        return self._exposition([self.counts()])

    def _exposition(self, counts: list[metrics.Counts]) -> Plan:
        text = metrics.text(counts, self._options.models)
        return whole(text.encode(), at_ns=0, content_type="text/plain; version=0.0.4; charset=utf-8")

    def _openapi(self, _scope: Scope) -> Plan:
        return api.json_plan(openapi.document())

    def _models(self, scope: Scope) -> Plan:
        key = self._options.api_key
        if key is not None and scope.headers.get("authorization") != f"Bearer {key}":
            return api.refusal(401)
        return api.models(self._options.models)

    def _health(self, _scope: Scope) -> Plan:
        options = self._options
        return api.json_plan(
            {
                "status": "ok",
                "pid": os.getpid(),
                "profile": options.profile.name,
                "seed": options.seed,
                "in_flight": len(self.in_flight),
                "script_s": self.clock.elapsed_s(now_ns()),
                "truth_next": self.log.next,
                "clock": self.log.clock,
            }
        )

    def _truth(self, scope: Scope) -> Plan:
        since = parse_qs(scope.query_string).get("since", ["0"])[0]
        if not since.isdecimal() or len(since) > 18:
            return api.refusal(400, f"`since` is {since!r}: write a position, 0 or more")
        lines, after = self.log.page(int(since), _PAGE)
        return _truth_page(lines, str(after), self.log.forgotten)

    async def _tell_shared(self, proto: HTTPProtocol, scope: Scope, path: str, body: bytes) -> None:
        _respond(proto, await self._shared(scope, path, body))

    async def _tell_kept(self, proto: HTTPProtocol, scope: Scope, body: bytes) -> None:
        _respond(proto, await self._kept(ELSEWHERE, scope, body))

    async def _shared(self, scope: Scope, path: str, body: bytes) -> Plan:
        """As `_control`, of all processes."""
        assert self.siblings is not None
        try:
            if scope.method == "GET" and path == "/__truth":
                return await self._all_truth(self.siblings, scope)
            if scope.method == "GET" and path == "/metrics":
                return self._exposition(await self.siblings.counts())
        except (OSError, EOFError) as error:
            return _unasked(error)
        return await self._kept(self._control(scope, path, body), scope, body)

    async def _kept(self, plan: Plan, scope: Scope, body: bytes) -> Plan:
        """The plan, or what the process that keeps files, batches and tasks answers in its place."""
        if plan is not ELSEWHERE:
            return plan
        assert self.siblings is not None
        request = Request(
            path=scope.path,
            method=scope.method,
            headers=dict(scope.headers.items()),
            http_version=scope.http_version,
            scheme=scope.scheme,
            query_string=scope.query_string,
            authority=scope.authority,
            size=len(body),
        )
        try:
            told = await self.siblings.pass_on(request, body)
        except (OSError, EOFError) as error:
            return _unasked(error)
        return Plan(told.status, list(told.headers.items()), [Step(0, told.body, Kind.BODY)])

    async def _all_truth(self, siblings: Siblings, scope: Scope) -> Plan:
        since = parse_qs(scope.query_string).get("since", ["0"])[0]
        positions = siblings.positions(since)
        if positions is None:
            return api.refusal(400, f"`since` is {since!r}: write 0, or what `x-truth-next` said")
        page = await siblings.page(positions, _PAGE)
        return _truth_page(page.lines, ".".join(map(str, page.next)), page.forgotten)


def _unasked(error: Exception) -> Plan:
    # Only while the mock is going down: without one of its processes it does.
    return api.refusal(503, f"another process of this mock does not answer: {error}")


def _truth_page(lines: bytes, after: str, forgotten: int) -> Plan:
    headers = [
        ("content-type", "application/x-ndjson"),
        ("x-truth-next", after),
        ("x-truth-forgotten", str(forgotten)),
    ]
    return Plan(200, headers, [Step(0, lines, Kind.BODY)])


def _respond(proto: HTTPProtocol, plan: Plan) -> None:
    assert plan.status is not None
    proto.response_bytes(plan.status, plan.headers, plan.steps[0].payload)


def _cache(profile: Profile) -> PrefixCache:
    engine = profile.engine
    if engine is None:
        return PrefixCache()
    return PrefixCache(engine.prefix_tokens // engine.prefix_unit, engine.prefix_unit)
