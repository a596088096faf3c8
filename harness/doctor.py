"""What would make a run against this target worthless, found in some ten seconds and at most 20 requests.

    probe.py asks  ─►  facts  ─►  one judging function a check  ─►  Finding (ok, warn, fail; remedy)

A check whose ground another one has taken away (no connection, so no answer) is skipped, not failed, and
says so: each cause is named once. What an answer said is judged as a run would judge it, by its own reader.
"""

from __future__ import annotations

import math
import os
import resource
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from harness import probe
from harness.client.call import Call, prepare
from harness.client.dialects import DIALECTS
from harness.client.dialects.base import UNREADABLE
from harness.client.sse import Event, EventStream, Lines
from harness.client.target import Target, key_variables
from harness.clock import Anchor, anchor
from harness.probe import Fault, Greeting, Names, Reply, Streamed, Tls
from harness.record import Outcome
from harness.report.numbers import count, quantity, target_share
from harness.report.tables import Sheet
from harness.workload.prompts import Request, workload
from harness.workload.scenario import Closed, Scenario

if TYPE_CHECKING:
    from harness.client.exchange import Exchange

BUDGET_S = 7.5
"""For all questions: with the program's own start, on a slow machine too, ten seconds."""
_BY = {"name": 0.15, "connect": 0.3, "handshake": 0.4, "models": 0.55, "completion": 0.8, "streaming": 1.0}
"""By which share of it each must be answered: what one leaves over, the next one has."""
_CUT_SHORT = 0.75
"""A stream is not read for longer than this share of what is left: what came so far tells enough."""
CHECKS = (
    *("open files", "cpus", "name", "connect", "tls", "http", "http/2", "round trip", "key", "models"),
    *("completion", "streaming", "clock"),
)
"""Each has its line, in any case and in this order; `tls` where the target's address asks for it."""
_GROUNDS = {"name", "connect", "tls", "http", "key", "completion"}
"""Where one of these has failed, others cannot be asked."""
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
_NEARLY_ALL = 0.9
"""Of the tokens: the first few may have been let through."""
_AT_THE_END = 0.05
"""In so small a share of the whole time, nearly all tokens do not come one by one."""
_APART_S = 0.000_25
"""Tokens closer together have come at one moment: httpx takes 0.05 ms for each piece of one read."""
_SEVERAL_MOMENTS = 3
_BURST_TOKENS = 8
"""More than that at each moment are a buffer's doing, or a server's that decodes in long steps."""
_FASTEST_PER_S = 3_000
"""Tokens of one stream: no model is known to write faster."""
_HIDDEN_KEY_LETTERS = 8
"""A shorter key is no secret, and to be found in any text."""
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
    on_ask: Callable[[str], None] = lambda _: None,
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
        on_ask: called with what is asked for now.

    Raises:
        ConfigError: the scenario's data cannot be used.
    """
    before = anchor()
    asked = _examined(
        target, scenario, environ, given=given, context=context, budget_s=budget_s, on_ask=on_ask
    )
    for finding in in_order(asked, sealed=target.scheme == "https"):
        yield without_key(finding, target.key)
    yield judge_steps(before, anchor())


def in_order(found: Iterable[Finding], *, sealed: bool) -> Iterator[Finding]:
    """The findings with a line for each check that another one has made impossible, all in order.

    Args:
        found: in the order of CHECKS; what is not said here is not thought well.
        sealed: the target's address asks for TLS.
    """
    missing = [name for name in CHECKS if sealed or name != "tls"]
    cause = "an answer"
    for finding in found:
        while missing[0] != finding.name:
            yield skipped(missing.pop(0), cause)
        yield finding
        missing.pop(0)
        if finding.state is State.FAIL and finding.name in _GROUNDS:
            cause = finding.name
    for name in missing:
        yield skipped(name, cause)


def skipped(name: str, cause: str) -> Finding:
    """The line of a check that something else has made impossible."""
    return Finding(name, State.SKIPPED, f"not to be known without {cause}")


def without_key(finding: Finding, key: str) -> Finding:
    """The finding, should the server have written the key into a name that is shown."""
    if len(key) < _HIDDEN_KEY_LETTERS:
        return finding
    measured, remedy = (text.replace(key, "<hidden>") for text in (finding.measured, finding.remedy))
    return msgspec.structs.replace(finding, measured=measured, remedy=remedy)


def _examined(
    target: Target,
    scenario: Scenario,
    environ: Mapping[str, str],
    *,
    given: bool,
    context: Callable[[], ssl.SSLContext],
    budget_s: float,
    on_ask: Callable[[str], None],
) -> Iterator[Finding]:
    began_s = time.perf_counter()
    until_s = {check: began_s + share * budget_s for check, share in _BY.items()}
    yield from _machine(scenario)
    on_ask("name")
    names = probe.within(until_s["name"], lambda: probe.resolve(target.host))
    yield judge_names(names, target.host)
    if isinstance(names, Fault):
        return
    on_ask("connections")
    by_s = until_s["connect"]
    connects = probe.within(
        by_s, lambda: probe.connect_times(target.host, target.port, CONNECTS, until_s=by_s)
    )
    yield judge_connects(connects, f"{target.host}:{target.port}")
    if isinstance(connects, Fault):
        return
    sealed = context() if target.scheme == "https" else None
    if sealed is not None:
        on_ask("TLS")
        offers = context()  # of its own: the handshake sets its ALPN
        tls = probe.within(until_s["handshake"], lambda: probe.handshake(target.host, target.port, offers))
        yield judge_tls(tls, time.time())
        if isinstance(tls, Fault):
            return
        greets: Greeting = "h2" if tls.protocol == "h2" else "none"
    else:
        on_ask("HTTP/2")
        said = probe.within(until_s["handshake"], lambda: probe.greeting(target.host, target.port))
        greets = "none" if isinstance(said, Fault) else said
    answers = _answers(target, scenario, sealed, greets=greets, given=given, until_s=until_s, on_ask=on_ask)
    yield from _judged(answers, target, scenario, environ, greets=greets, given=given, away_s=min(connects))


def _machine(scenario: Scenario) -> Iterator[Finding]:
    arrivals = scenario.arrivals
    users = arrivals.users if isinstance(arrivals, Closed) else scenario.max_in_flight
    yield judge_files(resource.getrlimit(resource.RLIMIT_NOFILE), users)
    yield judge_cpus(_cpus())


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Answers(msgspec.Struct, frozen=True):
    """What the API said; None where it was not asked, for what came before left no hope."""

    listed: Reply | Fault
    """The models."""
    tls: bool = False
    """TLS is spoken there, though the target's address says that it is not."""
    trips: list[float] | Fault | None = None
    """Some more requests for the models."""
    whole: tuple[Call, Reply | Fault] | None = None
    pieces: tuple[Call, Streamed | Fault] | None = None

    @property
    def all(self) -> list[Reply | Streamed | Fault]:
        """Those to requests."""
        return [self.listed, *(each[1] for each in (self.whole, self.pieces) if each is not None)]


def _answers(
    target: Target,
    scenario: Scenario,
    context: ssl.SSLContext | None,
    *,
    greets: Greeting,
    given: bool,
    until_s: Mapping[str, float],
    on_ask: Callable[[str], None],
) -> Answers:
    with probe.client(target, context) as by:
        on_ask("models")
        path, by_s = "/v1/models", until_s["models"]
        listed = probe.within(by_s, lambda: probe.ask(by, path))
        if isinstance(listed, Reply) and listed.status == 404:
            path = "/models"
            listed = probe.within(by_s, lambda: probe.ask(by, path))
        # nginx and Go tell one who speaks no TLS so by a 400 in plain HTTP; others break off.
        if context is None and (isinstance(listed, Fault) or listed.status == 400):
            tls = probe.within(by_s, lambda: probe.speaks_tls(target.host, target.port)) is True
            if tls or (isinstance(listed, Fault) and greets == "other"):
                return Answers(listed, tls)
        trips = None
        if isinstance(listed, Reply):
            on_ask("round trips")
            trips = probe.within(by_s, lambda: probe.round_trips(by, path, ROUND_TRIPS, until_s=by_s))
        on_ask("a completion")
        asked = trials(scenario, None if given else _first_model(listed))
        whole, pieces = (prepare(request, target) for request in asked)
        by_s = until_s["completion"]
        answered = probe.within(by_s, lambda: probe.ask(by, whole.dialect.path, whole.body))
        if _redirects(answered):
            return Answers(listed, trips=trips, whole=(whole, answered))
        on_ask("a stream")
        by_s = until_s["streaming"]
        short_s = leave_s(by_s)
        streamed = probe.within(by_s, lambda: probe.ask_stream(by, pieces.dialect.path, pieces.body, short_s))
    return Answers(listed, trips=trips, whole=(whole, answered), pieces=(pieces, streamed))


def leave_s(by_s: float) -> float:
    """When to leave a stream that must be told by a time; both on `time.perf_counter`, in seconds."""
    now_s = time.perf_counter()
    return now_s + (by_s - now_s) * _CUT_SHORT


def _redirects(answer: Reply | Streamed | Fault) -> bool:
    return not isinstance(answer, Fault) and 300 <= answer.status < 400


def _ailment(answer: Reply | Streamed | Fault, said: Heard | None = None) -> str | int | None:
    """What ails an answer, to tell whether another has the same; None if nothing does."""
    if isinstance(answer, Fault):
        return answer.text
    if answer.status != 200:
        return answer.status
    if isinstance(answer, Streamed) and answer.broke:
        return answer.broke
    return None if said is None or said.outcome is Outcome.OK else said.outcome.value


def _statuses(listed: Reply | Fault, *answers: Reply | Streamed | Fault) -> list[int]:
    """Those that speak of the key: one that is good for a completion need not be for the list of models."""
    found = [each.status for each in answers if not isinstance(each, Fault)]
    if isinstance(listed, Reply) and 200 not in found:
        found.append(listed.status)
    return found


def _judged(
    answers: Answers,
    target: Target,
    scenario: Scenario,
    environ: Mapping[str, str],
    *,
    greets: Greeting,
    given: bool,
    away_s: float,
) -> Iterator[Finding]:
    http = judge_http(answers.all, plain=target.scheme == "http", greets=greets, tls=answers.tls)
    yield http
    if http.state is State.FAIL or answers.whole is None or answers.pieces is None:
        return
    batches = given and any(entry.kind == "batch" for entry in scenario.traffic)
    yield judge_http2(offered=greets == "h2", wanted=batches)
    (whole, answered), (pieces, streamed) = answers.whole, answers.pieces
    if answers.trips is None:
        yield skipped("round trip", "a model list")
    else:
        yield judge_round_trips(answers.trips)
    variables = key_variables(target.url)
    source = next((name for name in variables if environ.get(name)), None)
    key = judge_key(_statuses(answers.listed, answered, streamed), source, variables)
    yield key
    if key.state is not State.FAIL:
        if _ailment(answers.listed) == _ailment(answered) is not None:
            yield skipped("models", "completion")
        else:
            yield judge_models(answers.listed, models(scenario) if given else ())
        said, heard = hear_whole(answered, whole), hear(streamed, pieces)
        yield judge_completion(answered, said)
        if _ailment(answered, said) != _ailment(streamed, heard) or _ailment(answered, said) is None:
            yield judge_streaming(streamed, heard, away_s)
    dated = next((each for each in (answered, answers.listed) if isinstance(each, Reply)), None)
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


class Heard(msgspec.Struct, frozen=True):
    """What a run would make of an answer that came under HTTP 200."""

    outcome: Outcome = Outcome.OK
    error: str = ""
    """As the record would have it; empty if nothing is wrong."""
    tokens_s: Sequence[float] = ()
    """Of a stream: when each came, since the request was sent."""
    counted: int = 0
    """Tokens by the server's own count."""
    finish_reason: str | None = None


def hear_whole(reply: Reply | Fault, call: Call) -> Heard:
    """A whole answer, read as a run reads it."""
    from harness.client.answer import read_body  # noqa: PLC0415  # gevent comes with it: as late as may be

    if isinstance(reply, Fault):
        return Heard()
    outcome, error, finish_reason, usage = read_body(
        _exchange(reply, [(reply.took_s, reply.body)]), call.dialect.decode_body
    )
    counted = 0 if usage is None else usage.completion
    return Heard(outcome, error, counted=counted, finish_reason=finish_reason)


def hear(streamed: Streamed | Fault, call: Call) -> Heard:
    """A stream, read as a run reads it; one that we left need not have ended."""
    from harness.client.answer import Stream  # noqa: PLC0415  # as above

    if isinstance(streamed, Fault):
        return Heard()
    exchange = _exchange(streamed, streamed.reads)
    stream = Stream(call)
    stream.read(exchange)
    if streamed.broke:
        exchange.outcome, exchange.error = Outcome.CUT, streamed.broke
    if not streamed.left:
        stream.end(exchange)
    outcome, error, finish_reason, usage = stream.said
    if exchange.outcome is not None and outcome is not Outcome.IN_BAND_ERROR:
        outcome, error = exchange.outcome, exchange.error
    tokens_s = [stamp_ns / 1e9 for stamp_ns in stream.chunk_ns]
    return Heard(outcome, error, tokens_s, 0 if usage is None else usage.completion, finish_reason)


def _exchange(answer: Reply | Streamed, reads: Sequence[tuple[float, bytes]]) -> Exchange:
    """The answer as if a wire of the client had seen it."""
    from harness.client.exchange import Exchange, Limits  # noqa: PLC0415  # as above

    exchange = Exchange(Limits(0, 0, 0), 0)
    exchange.status = answer.status
    exchange.headers = {
        name.encode("latin-1", "replace"): value.encode("latin-1", "replace")
        for name, value in answer.headers.items()
    }
    exchange.pieces = [piece for _, piece in reads]
    exchange.stamps = [round(at_s * 1e9) for at_s, _ in reads]
    exchange.ended_ns = exchange.stamps[-1] if exchange.stamps else 0
    return exchange


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
    except UNREADABLE:
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
    """P50 and P99 by nearest rank; below 100 the latter is the longest of all, and it says so.

    Not by `analysis.stats`, which would load numpy for it.
    """
    ordered, n = sorted(times_s), len(times_s)
    p50, p99 = (quantity(ordered[math.ceil(n * p) - 1], "s") for p in (0.5, 0.99))
    return f"P50 {p50}, P99 {p99} ({f'the longest of {n}' if n < 100 else f'n = {n}'})"


def judge_round_trips(times_s: Sequence[float] | Fault, guide_s: float = GUIDE_S) -> Finding:
    """A request that costs the server nothing is answered within the guide."""
    if isinstance(times_s, Fault):
        remedy = "see the server's log: the same request was answered before"
        return Finding("round trip", State.WARN, times_s.text, remedy)
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
    days = (tls.expires_s - now_s) / _DAY_S
    measured = f"{tls.version}, certificate valid for {days:,.0f} more days"
    if days < _EXPIRES_SOON_D:
        return Finding("tls", State.WARN, measured, "renew the certificate")
    return Finding("tls", State.OK, measured)


def judge_http(
    answers: Sequence[Reply | Streamed | Fault], *, plain: bool, greets: Greeting = "none", tls: bool = False
) -> Finding:
    """HTTP is spoken at the target's address, and its requests are not sent on to another.

    Args:
        answers: to the list of models, a completion, a stream: as far as it was asked.
        plain: the address is an http:// one.
        greets: what the port's first bytes were.
        tls: TLS is spoken there all the same.
    """
    if tls:
        return Finding(
            "http", State.FAIL, "TLS is spoken there, not plain HTTP", "write https:// for http://"
        )
    if all(isinstance(each, Fault) for each in answers):
        texts = [each.text for each in answers if isinstance(each, Fault)]
        if greets == "other":
            texts = [probe.NO_HTTP]
        if set(texts) <= {probe.LATE, probe.BROKE_OFF}:
            return Finding("http", State.FAIL, texts[0], "see the server's log; is it loaded by others?")
        is_it = "is it an https:// address, or another port?" if plain else "is that the API's port?"
        return Finding("http", State.FAIL, texts[0], is_it)
    redirect = next((each for each in answers[1:2] if _redirects(each)), None)
    if redirect is not None and not isinstance(redirect, Fault):
        remedy = f"no run follows redirects: give the final address{' (is it https://?)' if plain else ''}"
        return Finding("http", State.FAIL, f"the server redirects (HTTP {redirect.status})", remedy)
    return Finding("http", State.OK, "answered")


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


def judge_completion(reply: Reply | Fault, said: Heard) -> Finding:
    """A tiny completion is answered.

    Args:
        reply: to the request.
        said: what a run would make of it.
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
    if said.outcome is not Outcome.OK:
        own = said.outcome is Outcome.IN_BAND_ERROR
        remedy = "see the server's log" if own else "check the scenario's dialect"
        return Finding(name, State.FAIL, f"{measured}, but {said.error}", remedy)
    return Finding(name, State.OK, measured)


def judge_streaming(streamed: Streamed | Fault, heard: Heard, away_s: float = 0.0) -> Finding:
    """A stream is well formed, and comes as it is made, not in one lump.

    HTTP chunks are no sign of that: a proxy that holds all of an answer back may well keep them. So the
    time decides: when the tokens came, against how long the whole took.

    Args:
        streamed: the answer as it came.
        heard: what a run would make of it.
        away_s: how long the way there and back takes.
    """
    name = "streaming"
    if isinstance(streamed, Fault):
        remedy = "see the server's log"
        if streamed.text == probe.LATE:
            remedy += "; what buffers responses would hold a stream back too"
        return Finding(name, State.FAIL, streamed.text, remedy)
    if streamed.status != 200:
        remedy = "does the server stream at all, in this dialect?"
        return Finding(name, State.FAIL, f"HTTP {streamed.status}", remedy)
    between = _between(streamed.headers)
    encoding = streamed.headers.get("content-encoding", "identity")
    if encoding != "identity":
        remedy = f"switch compression of streams off{between}: it holds tokens back to pack them"
        return Finding(name, State.FAIL, f"compressed ({encoding}), though not asked for", remedy)
    if heard.outcome is not Outcome.OK:
        remedy = "check the dialect: it should be server-sent events, one or more a token"
        if heard.outcome is not Outcome.MALFORMED:
            remedy = "see the server's log: a run calls this an error"
        return Finding(name, State.FAIL, heard.error, remedy)
    took_s = streamed.reads[-1][0] if streamed.reads else 0.0
    if not heard.tokens_s:
        return _without_tokens(streamed, heard, took_s)
    return _judge_pace(heard, took_s, away_s, between)


def _without_tokens(streamed: Streamed, heard: Heard, took_s: float) -> Finding:
    name = "streaming"
    if streamed.left:
        measured = f"no token within {quantity(took_s, 's')}, though something came"
        return Finding(name, State.FAIL, measured, "see the server's log; is it loaded by others?")
    if heard.finish_reason == "length":
        remedy = f"does the model think unseen? TTFT is not known then; {_PIECE_TOKENS} tokens were allowed"
        return Finding(name, State.WARN, "a whole stream, but no token in it", remedy)
    return Finding(name, State.FAIL, "a whole stream, but no token in it", "check model and dialect")


def _judge_pace(heard: Heard, took_s: float, away_s: float, between: str) -> Finding:
    name, n = "streaming", len(heard.tokens_s)
    last_s = max(0.0, round(took_s - heard.tokens_s[n - math.ceil(n * _NEARLY_ALL)], 9))
    moments = 1 + sum(later - earlier > _APART_S for earlier, later in pairwise(heard.tokens_s))
    measured = (
        f"{_counted(n, 'token')} at {_counted(moments, 'moment')}, "
        f"{target_share(_NEARLY_ALL)} of them in the last {quantity(last_s, 's')} of {quantity(took_s, 's')}"
    )
    off = (
        f"switch response buffering off{between} "
        "(nginx: `proxy_buffering off`, or the header `X-Accel-Buffering: no`; no gzip)"
    )
    here_s = took_s - away_s
    if moments >= _SEVERAL_MOMENTS and last_s > _AT_THE_END * here_s:
        if n > _BURST_TOKENS * moments:
            return Finding(name, State.WARN, measured, f"it comes in bursts: {off}, or mind it in ITL")
        return Finding(name, State.OK, measured)
    if here_s < _DECIDED_S:
        remedy = "too quick to tell whether it is buffered: try a slower model"
        return Finding(name, State.WARN, measured, remedy)
    if n < _SEVERAL_MOMENTS and heard.counted <= _BURST_TOKENS:
        remedy = "too few tokens to tell whether it is buffered: does the server stream at all?"
        return Finding(name, State.WARN, measured, remedy)
    if moments >= _SEVERAL_MOMENTS and n < _FASTEST_PER_S * last_s:
        return Finding(
            name, State.WARN, measured, f"too quick at the end to tell; if the model is slower, {off}"
        )
    return Finding(name, State.FAIL, measured, f"it comes in one lump: {off}")


def _counted(n: int, what: str) -> str:
    return f"{count(n)} {what}{'s' * (n != 1)}"


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
