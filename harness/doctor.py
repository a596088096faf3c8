"""What would make a run against this target worthless, found in some ten seconds and at most 20 requests.

    probe.py asks  ─►  facts  ─►  one judging function a check  ─►  Finding (ok, warn, fail; remedy)

A check whose ground another one has taken away (no connection, so no answer) is skipped, not failed, and
says so: each cause is named once.
"""

from __future__ import annotations

import math
import os
import resource
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

import msgspec

from harness import probe
from harness.client.dialects import DIALECTS
from harness.client.sse import Event, EventStream, Lines
from harness.client.target import Target, key_variables
from harness.clock import Anchor, anchor
from harness.probe import Fault, Names, Reply, Streamed, Tls
from harness.report.numbers import quantity
from harness.report.tables import Sheet
from harness.workload.prompts import Request, workload
from harness.workload.scenario import Closed, Scenario

BUDGET_S = 7.5
"""For all questions: with the program's own start, on a slow machine too, ten seconds."""
_BY = {"name": 0.15, "connect": 0.3, "handshake": 0.4, "models": 0.55, "completion": 0.8, "streaming": 1.0}
"""By which share of it each must be answered: what one leaves over, the next one has."""
_CUT_SHORT = 0.75
"""A stream is not read for longer than this share of what is left: what came so far tells enough."""
CHECKS = (
    *("open files", "cpus", "name", "connect", "tls", "http/2", "round trip", "key", "models"),
    *("completion", "streaming", "clock"),
)
"""Each has its line, in any case; `tls` where the target's address asks for it."""
CONNECTS = 10
ROUND_TRIPS = 3
GUIDE_S = 0.200
"""Connecting and a bare round trip should not take longer than this."""
_EXPIRES_SOON_D = 14.0
_SKEW_S = 2.0
"""`Date` has whole seconds, and the answer was under way."""
_DAY_S = 86_400.0
_STEP_NS = 1_000_000
_SPARE_FILES = 64
_LOCUST_FILES = 10_000
"""Locust raises its own soft limit to this, if the hard one allows it."""
_PIECE_TOKENS = 48
_DECIDED_S = 0.100
"""An answer that is over sooner may well come in one piece."""
_SEVERAL_READS = 3
_PROXY_HEADERS = ("via", "server", "x-served-by", "x-cache", "cf-ray", "x-envoy-upstream-service-time")


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    """One check."""

    name: str
    state: State
    measured: str
    """What was found, with its unit."""
    remedy: str = ""
    """What to do, unless it is ok."""


def exit_code(findings: Sequence[Finding]) -> int:
    """0 if nothing failed, else 1."""
    return int(any(each.state is State.FAIL for each in findings))


def sheet(target: str, findings: Sequence[Finding]) -> Sheet:
    """The findings as a table."""
    rows = [(each.name, each.state.value, each.measured, each.remedy) for each in findings]
    return Sheet(f"Doctor: {target}", ("check", "state", "measured", "remedy"), rows)


STYLES = {State.OK.value: "green", State.WARN.value: "yellow", State.FAIL.value: "bold red"}


# -- asking ---------------------------------------------------------------------------------------------


def examine(
    target: Target,
    scenario: Scenario,
    environ: Mapping[str, str],
    *,
    given: bool,
    context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    budget_s: float = BUDGET_S,
) -> Iterator[Finding]:
    """Ask the target and this machine, and judge, one finding at a time.

    Args:
        target: with its key.
        scenario: what will be run; it lends the trial requests their form.
        environ: says which variable the key came from; its value is never shown.
        given: the user chose the scenario: the target must have its models, and HTTP/2 for its batches.
            Else the trial requests go to the first model that is listed.
        context: makes the TLS contexts: what is trusted.
        budget_s: how long all questions may take together.

    Raises:
        ConfigError: the scenario's data cannot be used.
    """
    before = anchor()
    found: list[Finding] = []
    for finding in _examined(target, scenario, environ, given=given, context=context, budget_s=budget_s):
        found.append(finding)
        yield finding
    yield from skipped(found, sealed=target.scheme == "https")
    yield judge_steps(before, anchor())


def skipped(found: Sequence[Finding], *, sealed: bool) -> Iterator[Finding]:
    """A line for each check that another one has made impossible: what is not said is not thought well."""
    cause = next((each.name for each in found if each.state is State.FAIL), "an answer")
    missing = [name for name in CHECKS if name not in {each.name for each in found}]
    for name in missing:
        if sealed or name != "tls":
            yield Finding(name, State.SKIPPED, f"not to be known without {cause}")


def _examined(
    target: Target,
    scenario: Scenario,
    environ: Mapping[str, str],
    *,
    given: bool,
    context: Callable[[], ssl.SSLContext],
    budget_s: float,
) -> Iterator[Finding]:
    began_s = time.perf_counter()
    until_s = {check: began_s + share * budget_s for check, share in _BY.items()}
    yield from _machine(scenario)
    names = probe.within(until_s["name"], lambda: probe.resolve(target.host))
    yield judge_names(names, target.host)
    if isinstance(names, Fault):
        return
    by_s = until_s["connect"]
    connects = probe.within(
        by_s, lambda: probe.connect_times(target.host, target.port, CONNECTS, until_s=by_s)
    )
    yield judge_connects(connects, f"{target.host}:{target.port}")
    if isinstance(connects, Fault):
        return
    batches = given and any(entry.kind == "batch" for entry in scenario.traffic)
    sealed = context() if target.scheme == "https" else None
    if sealed is not None:
        offers = context()  # of its own: the handshake sets its ALPN
        tls = probe.within(until_s["handshake"], lambda: probe.handshake(target.host, target.port, offers))
        yield judge_tls(tls, time.time())
        if isinstance(tls, Fault):
            return
        yield judge_http2(offered=tls.protocol == "h2", wanted=batches)
    else:
        h2 = probe.within(until_s["handshake"], lambda: probe.speaks_h2(target.host, target.port))
        yield judge_http2(offered=h2 is True, wanted=batches)
    yield from _api(target, scenario, environ, given=given, context=sealed, until_s=until_s)


def _machine(scenario: Scenario) -> Iterator[Finding]:
    arrivals = scenario.arrivals
    users = arrivals.users if isinstance(arrivals, Closed) else scenario.max_in_flight
    yield judge_files(resource.getrlimit(resource.RLIMIT_NOFILE), users)
    yield judge_cpus(_cpus())


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _api(
    target: Target,
    scenario: Scenario,
    environ: Mapping[str, str],
    *,
    given: bool,
    context: ssl.SSLContext | None,
    until_s: Mapping[str, float],
) -> Iterator[Finding]:
    with probe.client(target, context) as by:
        path, by_s = "/v1/models", until_s["models"]
        listed = probe.within(by_s, lambda: probe.ask(by, path))
        if isinstance(listed, Reply) and listed.status == 404:
            path = "/models"
            listed = probe.within(by_s, lambda: probe.ask(by, path))
        trips: list[float] | Fault = Fault("no list")
        if isinstance(listed, Reply):
            trips = probe.within(by_s, lambda: probe.round_trips(by, path, ROUND_TRIPS))
        whole, pieces = trials(scenario, None if given else _first_model(listed))
        asks, streams = DIALECTS[whole.dialect], DIALECTS[pieces.dialect]
        answered = probe.within(until_s["completion"], lambda: probe.ask(by, asks.path, asks.encode(whole)))
        now_s = time.perf_counter()
        short_s = now_s + (until_s["streaming"] - now_s) * _CUT_SHORT
        streamed = probe.within(
            until_s["streaming"], lambda: probe.ask_stream(by, streams.path, streams.encode(pieces), short_s)
        )
    statuses = [each.status for each in (listed, answered, streamed) if not isinstance(each, Fault)]
    source = next((name for name in key_variables(target.url) if environ.get(name)), None)
    if not isinstance(trips, Fault):
        yield judge_round_trips(trips)
    if statuses:
        yield judge_key(statuses, source, key_variables(target.url))
    if not {401, 402, 403} & set(statuses):
        yield judge_models(listed, models(scenario) if given else ())
        yield judge_completion(answered, _whole_answer(answered, whole))
        yield judge_streaming(streamed, payloads(streamed, pieces))
    dated = next((each for each in (answered, listed) if isinstance(each, Reply)), None)
    if dated is not None:
        yield judge_clock(dated)


def trials(scenario: Scenario, model: str | None = None) -> tuple[Request, Request]:
    """Two tiny requests in the scenario's form: one for a whole answer, one for a stream."""
    (first, *_) = workload(scenario)(0)
    chat = first.messages is not None
    question = "Count from one to forty in words."
    asked: dict[str, Any] = (
        {"messages": ({"role": "user", "content": question},)} if chat else {"prompt": question}
    )
    plain = msgspec.structs.replace(first, model=model or first.model, **asked)
    whole_dialect = "completions" if first.dialect == "completions-lines" else first.dialect
    whole = msgspec.structs.replace(
        plain, id="doctor-whole", dialect=whole_dialect, stream=False, max_tokens=4
    )
    return whole, msgspec.structs.replace(plain, id="doctor-stream", stream=True, max_tokens=_PIECE_TOKENS)


def models(scenario: Scenario) -> list[str]:
    """Every model that the scenario may ask for."""
    own = [entry.model for entry in scenario.traffic if entry.weight and entry.model is not None]
    drawn = scenario.models if any(e.weight and e.model is None for e in scenario.traffic) else {}
    return sorted({*own, *drawn})


def payloads(streamed: Streamed | Fault, request: Request) -> list[bytes]:
    """The payload of each event of a stream."""
    if isinstance(streamed, Fault):
        return []
    framer = EventStream() if DIALECTS[request.dialect].framing == "sse" else Lines()
    events = [event for t_s, piece in streamed.reads for event in framer.feed(piece, round(t_s * 1e9))]
    events += framer.close(0)
    return [event.payload for event in events if isinstance(event, Event)]


def _whole_answer(reply: Reply | Fault, request: Request) -> bool:
    """Whether it is the dialect's answer."""
    if isinstance(reply, Fault):
        return False
    try:
        return DIALECTS[request.dialect].decode_body(reply.body).choices
    except msgspec.DecodeError:
        return False


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


def listed_models(reply: Reply | Fault) -> list[str] | None:
    """The ids of a model list; None if it is none."""
    if isinstance(reply, Fault) or reply.status != 200:
        return None
    try:
        return [each.id for each in msgspec.json.decode(reply.body, type=_ModelList).data]
    except msgspec.DecodeError:
        return None


def _first_model(reply: Reply | Fault) -> str | None:
    return next(iter(listed_models(reply) or ()), None)


# -- judging --------------------------------------------------------------------------------------------


def judge_names(names: Names | Fault, host: str) -> Finding:
    """The name resolves."""
    if isinstance(names, Fault):
        remedy = f"check the spelling of {host}, and this machine's DNS"
        return Finding("name", State.FAIL, names.text, remedy)
    found = ", ".join(names.addresses[:3]) + (", …" if len(names.addresses) > 3 else "")
    measured = f"{found} in {quantity(names.took_s, 's')}"
    if names.took_s > GUIDE_S:
        remedy = "every new connection asks for the name: use a nearer or a caching resolver"
        return Finding("name", State.WARN, measured, remedy)
    return Finding("name", State.OK, measured)


def judge_connects(times_s: Sequence[float] | Fault, where: str, guide_s: float = GUIDE_S) -> Finding:
    """TCP connections come about, within the guide."""
    if isinstance(times_s, Fault):
        remedy = f"is the server up, is {where} its port, does a firewall stand between?"
        return Finding("connect", State.FAIL, times_s.text, remedy)
    measured = spread(times_s)
    if max(times_s) > guide_s:
        remedy = f"guide: {quantity(guide_s, 's')}. Load from nearer to the target, or mind it in TTFT"
        return Finding("connect", State.WARN, measured, remedy)
    return Finding("connect", State.OK, measured)


def spread(times_s: Sequence[float]) -> str:
    """P50 and P99 by nearest rank; below 100 the latter is the longest of all, and it says so."""
    ordered, n = sorted(times_s), len(times_s)
    p50, p99 = (quantity(ordered[math.ceil(n * p) - 1], "s") for p in (0.5, 0.99))
    return f"P50 {p50}, P99 {p99} ({f'the longest of {n}' if n < 100 else f'n = {n}'})"


def judge_round_trips(times_s: Sequence[float], guide_s: float = GUIDE_S) -> Finding:
    """A request that costs the server nothing is answered within the guide."""
    measured = spread(times_s)
    if max(times_s) > guide_s:
        remedy = f"guide: {quantity(guide_s, 's')}. Load from nearer to the target, or mind it in TTFT"
        return Finding("round trip", State.WARN, measured, remedy)
    return Finding("round trip", State.OK, measured)


def judge_tls(tls: Tls | Fault, now_s: float) -> Finding:
    """The certificate is trusted, and will be."""
    if isinstance(tls, Fault):
        remedy = "fix the certificate, or point SSL_CERT_FILE at its authority"
        if not tls.text.startswith(probe.NOT_TRUSTED):
            remedy = "is TLS spoken on that port? A server without it has an http:// address"
        return Finding("tls", State.FAIL, tls.text, remedy)
    days = (tls.expires_s - now_s) / 86_400
    measured = f"{tls.version}, certificate valid for {days:,.0f} more days"
    if days < _EXPIRES_SOON_D:
        return Finding("tls", State.WARN, measured, "renew the certificate")
    return Finding("tls", State.OK, measured)


def judge_http2(*, offered: bool, wanted: bool) -> Finding:
    """HTTP/2 is there for batches."""
    if offered:
        return Finding("http/2", State.OK, "offered")
    if not wanted:
        return Finding("http/2", State.OK, "not offered; only batches need it")
    remedy = "the scenario's batches need it: enable h2 in the server (ALPN), or take the batches out"
    return Finding("http/2", State.FAIL, "not offered", remedy)


def judge_key(statuses: Sequence[int], source: str | None, variables: Sequence[str]) -> Finding:
    """The key is there, and good; 401, 402 and 403 have different remedies.

    Args:
        statuses: of all answers.
        source: the environment variable that the key came from; None if there was none.
        variables: those that may hold it.
    """
    sent = f"key from {source}" if source else "no key sent"
    worst = next((status for status in (401, 402, 403) if status in statuses), None)
    if worst is None:
        return Finding("key", State.OK, f"{sent}, not refused" if source else "no key sent, none asked for")
    remedies = {
        401: f"the key in {source} is not accepted: copy it again, or make a new one"
        if source
        else f"put the key into the environment or .env, as {' or '.join(variables)}",
        402: "the account's balance is used up: top it up",
        403: "the key is known but may not do this: ask for access to the model, or for this network",
    }
    return Finding("key", State.FAIL, f"{sent}, HTTP {worst}", remedies[worst])


def judge_models(reply: Reply | Fault, wanted: Sequence[str]) -> Finding:
    """The scenario's models are listed."""
    listed = listed_models(reply)
    if listed is None:
        measured = reply.text if isinstance(reply, Fault) else f"no model list: HTTP {reply.status}"
        return Finding("models", State.WARN, measured, "make sure yourself that the models' names are right")
    missing = [name for name in wanted if name not in listed]
    measured = f"{len(listed)} listed: {', '.join(listed[:4])}{', …' if len(listed) > 4 else ''}"
    if missing:
        remedy = f"not listed: {', '.join(missing)}; correct `models` in the scenario"
        return Finding("models", State.FAIL, measured, remedy)
    return Finding("models", State.OK, measured)


def judge_completion(reply: Reply | Fault, whole: bool) -> Finding:
    """A tiny completion is answered.

    Args:
        reply: to the request.
        whole: its body is the dialect's answer.
    """
    name = "completion"
    if isinstance(reply, Fault):
        return Finding(name, State.FAIL, reply.text, "see the server's log; is it loaded by others?")
    measured = f"HTTP {reply.status} in {quantity(reply.took_s, 's')}"
    if reply.status == 429:
        return Finding(name, State.FAIL, measured, "the rate limit is reached: wait, or ask for a higher one")
    if reply.status == 404:
        remedy = "give the API's base URL (what stands before /v1), or choose another dialect or model"
        return Finding(name, State.FAIL, measured, remedy)
    if reply.status != 200:
        remedy = "see the server's log" if reply.status >= 500 else "check model, dialect and parameters"
        return Finding(name, State.FAIL, measured, remedy)
    if not whole:
        return Finding(name, State.FAIL, f"{measured}, but no completion", "check the scenario's dialect")
    return Finding(name, State.OK, measured)


def judge_streaming(streamed: Streamed | Fault, events: Sequence[bytes]) -> Finding:
    """A stream comes in pieces as it is made, not in one lump.

    Args:
        streamed: the answer as it came.
        events: the payloads in it.
    """
    name = "streaming"
    if isinstance(streamed, Fault):
        return Finding(name, State.FAIL, streamed.text, "see the server's log")
    if streamed.status != 200:
        remedy = "does the server stream at all, in this dialect?"
        return Finding(name, State.FAIL, f"HTTP {streamed.status}", remedy)
    between = _between(streamed.headers)
    encoding = streamed.headers.get("content-encoding", "identity")
    if encoding != "identity":
        remedy = f"switch compression of streams off{between}: it holds tokens back to pack them"
        return Finding(name, State.FAIL, f"compressed ({encoding}), though not asked for", remedy)
    if len(events) < _SEVERAL_READS:
        remedy = "check the dialect: it should be server-sent events, one or more a token"
        return Finding(name, State.FAIL, f"{len(events)} events", remedy)
    reads, took_s = len(streamed.reads), streamed.reads[-1][0]
    measured = f"{len(events)} events in {reads} reads within {quantity(took_s, 's')}"
    if reads >= _SEVERAL_READS:
        return Finding(name, State.OK, measured)
    if took_s < _DECIDED_S:
        return Finding(
            name, State.WARN, measured, "too fast to tell whether it is buffered: try a slower model"
        )
    remedy = f"it comes in one lump: switch response buffering off{between} (nginx: `proxy_buffering off`)"
    return Finding(name, State.FAIL, measured, remedy)


def _between(headers: Mapping[str, str]) -> str:
    """Who may stand between, by their headers: ` in nginx (server)`."""
    named = [f"{headers[name]} ({name})" for name in _PROXY_HEADERS if headers.get(name)]
    return f" in what stands between: {', '.join(named)}" if named else " in what stands between"


def judge_clock(reply: Reply) -> Finding:
    """The server's wall clock agrees with ours."""
    told = reply.headers.get("date")
    if told is None:
        return Finding("clock", State.OK, "the server tells no date")
    try:
        date = parsedate_to_datetime(told)
        # `-0000` and a date without a zone are in UTC, not in our own.
        theirs_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() + 0.5
    except (ValueError, OverflowError):
        return Finding(
            "clock", State.WARN, "the server's Date is not a date", "it should be as in RFC 9110, 5.6.7"
        )
    skew_s = theirs_s - (reply.asked_s + reply.took_s / 2)
    off = abs(skew_s)
    far = f"{off / _DAY_S:,.0f} days" if off >= 2 * _DAY_S else quantity(off, "s")
    measured = f"the server's is {far} {'ahead' if skew_s > 0 else 'behind'} (± 0.5 s)"
    if off <= _SKEW_S + reply.took_s / 2:
        return Finding("clock", State.OK, measured)
    remedy = "set one of the clocks (NTP), or its traces and logs will not line up with ours"
    return Finding("clock", State.WARN, measured, remedy)


def judge_steps(before: Anchor, after: Anchor) -> Finding:
    """The wall clock ran as the monotonic one did meanwhile: kernel stamps are in wall time."""
    step_ns = (after.wall_ns - after.monotonic_ns) - (before.wall_ns - before.monotonic_ns)
    measured = f"wall against monotonic: {quantity(abs(step_ns) / 1e9, 's')}"
    if abs(step_ns) <= _STEP_NS:
        return Finding("clock steps", State.OK, measured)
    return Finding("clock steps", State.WARN, measured, "let NTP slew the clock instead of stepping it")


def judge_files(limits: tuple[int, int], users: int) -> Finding:
    """Descriptors for as many connections as there are virtual users.

    Args:
        limits: soft and hard; -1 is none.
        users: virtual users, one connection each.
    """
    soft, hard = (math.inf if limit < 0 else limit for limit in limits)
    usable, needed = max(soft, min(hard, _LOCUST_FILES)), users + _SPARE_FILES
    measured = "no limit" if math.isinf(usable) else f"{usable:,.0f} usable, {needed:,} needed"
    if usable >= needed:
        return Finding("open files", State.OK, measured)
    return Finding("open files", State.FAIL, measured, f"`ulimit -n {needed}`, or fewer max_in_flight")


def judge_cpus(count: int) -> Finding:
    """A core for the load generator, and one for the rest."""
    if count >= 2:
        return Finding("cpus", State.OK, f"{count} cores")
    remedy = "a second core keeps the rest of the machine out of the load generator's way"
    return Finding("cpus", State.WARN, f"{count} core", remedy)
