"""The endpoints: an RSGI application that turns each request into a plan and plays it."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from urllib.parse import parse_qs

import msgspec
from granian._granian import RSGIHTTPProtocol as HTTPProtocol
from granian._granian import RSGIProtocolClosed as ProtocolClosed
from granian.rsgi import Scope

from harness.errors import ConfigError
from harness.mock import api, faults
from harness.mock.cache import PrefixCache
from harness.mock.latency import Profile, token_offsets_ns
from harness.mock.pacer import Pacer, now_ns
from harness.mock.plan import Kind, Plan, Step
from harness.mock.playback import Playback
from harness.mock.truth import Entry, Log

_PAGE = 10_000
"""Entries of the truth log in one answer."""


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How the mock answers."""

    profile: Profile
    rules: tuple[faults.Rule, ...] = ()
    seed: int = 0
    api_key: str | None = None
    """The only bearer key accepted; None accepts requests with any key or none."""
    models: tuple[str, ...] = ("deepseek-flash", "deepseek-v4-pro")
    """What `/models` lists; requests may name any model."""
    truth_requests: int = 200_000
    """Requests kept in memory."""


class Mock:
    """The application, and all state of a running mock.

    Args:
        options: how it behaves.
    """

    def __init__(self, options: Behaviour) -> None:
        self.log = Log(requests=options.truth_requests)
        self.in_flight: set[Playback] = set()
        self._options = options
        self._cache = PrefixCache()
        self._fingerprint = f"fp_mock_{options.profile.name}"
        self._number = 0
        self._generating = {endpoint.value: endpoint for endpoint in api.Endpoint}
        self._reading = {"/models": self._models, "/health": self._health, "/__truth": self._truth}
        self._pacer: Pacer

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by granian before the first request."""
        self._pacer = Pacer(loop)

    async def __rsgi__(self, scope: Scope, proto: HTTPProtocol) -> None:
        """Serve one request."""
        try:
            body = await proto()
        except ProtocolClosed:
            return  # The client went away in the middle of its request.
        arrived_ns = now_ns()
        path = scope.path.removeprefix("/v1")
        endpoint = self._generating.get(path)
        if endpoint is None or scope.method != "POST":
            _respond(proto, self._control(scope, path))
            return
        headers = scope.headers
        request_id = headers.get("x-request-id") or uuid.uuid4().hex
        self._number += 1
        entry = Entry(request_id, self._number, scope.path, scope.http_version, arrived_ns)
        plan = self._plan(endpoint, body, entry, headers.get("authorization"), headers.get("x-mock-fault"))
        plan = plan._replace(headers=[*plan.headers, ("x-request-id", request_id)])
        await self._play(plan, entry, proto, scope.client)

    def _plan(
        self, endpoint: api.Endpoint, body: bytes, entry: Entry, authorization: str | None, fault: str | None
    ) -> Plan:
        options = self._options
        if options.api_key is not None and authorization != f"Bearer {options.api_key}":
            return api.refusal(401)
        question = api.read(endpoint, body)
        if isinstance(question, api.Refusal):
            return api.refusal(question.status, question.message)
        tokens = question.max_tokens or options.profile.output_tokens
        cached = self._cache.match(question.text, question.prompt_tokens, user_id=question.user_id)
        plan = api.answer(
            question,
            request_id=entry.request_id,
            created=int(time.time()),
            cached_tokens=cached,
            token_offsets_ns=token_offsets_ns(
                options.profile, seed=options.seed, request_id=entry.request_id, tokens=tokens
            ),
            fingerprint=self._fingerprint,
        )
        entry.model = question.model
        entry.stream = question.stream
        entry.prompt_tokens = question.prompt_tokens
        entry.cached_tokens = cached
        return self._with_fault(plan, entry, fault)

    def _with_fault(self, plan: Plan, entry: Entry, spelling: str | None) -> Plan:
        """The fault that the request's header asks for, else that of the first rule met, if it applies."""
        options = self._options
        if spelling is not None:
            try:
                faulty = faults.apply(faults.parse(spelling, "x-mock-fault"), plan)
            except ConfigError as error:
                return api.refusal(400, str(error))
            if faulty is None:
                return api.refusal(400, f"x-mock-fault: {spelling} is for streams, this answer is not one")
            entry.fault = spelling
            return faulty
        rule = faults.choose(
            options.rules, seed=options.seed, request_id=entry.request_id, number=entry.number
        )
        if rule is None:
            return plan
        faulty = faults.apply(rule.fault, plan)
        if faulty is None:
            return plan
        entry.fault = rule.spelling
        return faulty

    async def _play(self, plan: Plan, entry: Entry, proto: HTTPProtocol, client: str) -> None:
        playback = Playback(plan, entry, proto, client=client, pacer=self._pacer, log=self.log)
        if not playback.ended:
            self.in_flight.add(playback)
            playback.done = asyncio.get_running_loop().create_future()
            gone = asyncio.ensure_future(proto.client_disconnect())
            gone.add_done_callback(lambda _: playback.stop("client_gone"))
            await playback.done
            self.in_flight.discard(playback)
        if plan.status is None:
            # Nobody is there to read it: the library merely wants to be answered.
            proto.response_empty(500, [])

    # -- everything that is not an answer ----------------------------------------------------------------

    def _control(self, scope: Scope, path: str) -> Plan:
        if path in self._generating:
            return api.refusal(405, headers=[("allow", "POST")])
        surface = self._reading.get(path)
        if surface is None:
            return api.refusal(404, f"Not Found: {scope.path}")
        if scope.method != "GET":
            return api.refusal(405, headers=[("allow", "GET")])
        return surface(scope)

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
                "truth_next": self.log.next,
                "clock": self.log.clock,
            }
        )

    def _truth(self, scope: Scope) -> Plan:
        since = parse_qs(scope.query_string).get("since", ["0"])[0]
        if not since.isdecimal():
            return api.refusal(400, f"`since` is {since!r}: write a position, 0 or more")
        lines, after = self.log.page(int(since), _PAGE)
        headers = [
            ("content-type", "application/x-ndjson"),
            ("x-truth-next", str(after)),
            ("x-truth-forgotten", str(self.log.forgotten)),
        ]
        return Plan(200, headers, [Step(0, lines, Kind.BODY)])


def _respond(proto: HTTPProtocol, plan: Plan) -> None:
    assert plan.status is not None
    proto.response_bytes(plan.status, plan.headers, plan.steps[0].payload)
