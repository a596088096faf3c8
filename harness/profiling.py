"""A short run under a sampling profiler: where the client's CPU time went, by phase.

    harness.sampling (in the engine)  ─► ticks.json  ─► phase of each tick ─► profile.json, profile.prof

A tick belongs to the innermost frame that a rule of `RULES` knows; all ticks of the run are shared out, so
the phases add up to the whole of the process's CPU time while the run lasted.
"""

from __future__ import annotations

import contextlib
import marshal
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from harness import conduct, doctor, probe, runlog
from harness.analysis.stats import Figure, share
from harness.client.dialects import DIALECTS, Delta
from harness.client.dialects.base import UNREADABLE
from harness.client.target import Target, api_key, parse
from harness.errors import EngineError
from harness.mock.process import mock_process
from harness.probe import Fault
from harness.record import Outcome, Sample
from harness.report.numbers import NONE, count, figure_text, quantity
from harness.report.progress import Progress
from harness.report.tables import Sheet
from harness.workload.prompts import Request, workload
from harness.workload.scenario import Constant, Poisson, Scenario, Seconds, Steps

SECONDS = 10.0
TOP = 10
_BODIES = 200
_ROUNDS = 5
_MOCK_ASKS = 300
"""Connections and round trips on loopback: enough for a P99."""
_ASKS = 10
"""And to somebody else's server."""
WAY_S = 15.0
"""For all questions to the target before the run."""
_BY = {"connect": 0.3, "handshake": 0.6, "round trip": 0.8, "stream": 1.0}
"""By which share of it each must be answered: what one leaves over, the next one has."""


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One level of a stack, as harness.sampling writes it."""

    file: str
    line: int
    """First one of the function."""
    module: str
    function: str
    """Qualified name."""
    call: str
    """What it was calling, as written; empty if nothing outside Python."""


class Ticks(msgspec.Struct, frozen=True):
    """What harness.sampling saw."""

    stacks: list[tuple[Frame, ...]]
    """Frames from the innermost out."""
    ticks: list[tuple[int, int]]
    """Monotonic nanoseconds, and the position of the stack."""


class Rule(msgspec.Struct, frozen=True):
    """The phase that a frame belongs to."""

    phase: str
    module: str
    """A module, or a package with all that is in it."""
    functions: tuple[str, ...] = ()
    """Qualified names, or classes whose every method is meant; empty means all of the module."""


_TRANSPORT = "harness.client.transport"
_HTTP1, _HTTP2 = "harness.client.http1", "harness.client.http2"
_WORKER = "harness.users.worker"

RULES = (
    Rule("TLS", _TRANSPORT, ("_Tls", "_handshake", "tls_context", "Transport._deliver_tls")),
    Rule("TLS", "ssl"),
    Rule(
        "read",
        _TRANSPORT,
        ("Transport._on_readable", "Transport.alive", "Transport._tell", "Transport._hand_over"),
    ),
    Rule("write", _TRANSPORT, ("Transport.write", "Transport._on_writable")),
    Rule("connect", _TRANSPORT),
    Rule("connect", _HTTP1, ("Connection._usable",)),
    Rule("connect", _HTTP2, ("Mux._connect", "_Link.connect")),
    Rule("write", _HTTP1, ("Connection.exchange",)),
    Rule("write", _HTTP2, ("Mux.exchange", "_Link.open", "_Link._pump", "_Link._pump_all", "_Link._flush")),
    Rule("write", "harness.client.call"),
    Rule("parse", _HTTP1),
    Rule("parse", _HTTP2),
    Rule("parse", "harness.client.sse"),
    Rule("parse", "harness.client.answer"),
    Rule("parse", "harness.client.pattern"),
    Rule("parse", "h2"),
    Rule("parse", "hpack"),
    Rule("parse", "hyperframe"),
    Rule("JSON", "harness.client.dialects"),
    Rule("wait", "harness.client.exchange"),
    Rule("record", "harness.client.send"),
    Rule("record", "harness.record"),
    Rule("record", "harness.runlog"),
    Rule("record", "pyarrow"),
    Rule("other", _WORKER, ("_Health", "Worker._take_sample", "Worker.start", "Worker.drain")),
    Rule("record", _WORKER, ("Worker._hand_on",)),
    Rule("schedule", _WORKER),
    Rule("schedule", "harness.users.line"),
    Rule("schedule", "harness.users.wait"),
    Rule("schedule", "harness.workload"),
    Rule("Locust", "harness.users"),
    Rule("Locust", "locust"),
    Rule("wait", "gevent"),
)
"""The first that fits counts."""

PHASES = ("connect", "TLS", "write", "wait", "read", "parse", "JSON", "record", "Locust", "schedule", "other")
MEANINGS = {
    "connect": "names, TCP, sockets' set-up",
    "TLS": "handshakes, sealing and opening",
    "write": "requests handed to the kernel",
    "wait": "the event loop, and switching between greenlets",
    "read": "the kernel's bytes and stamps",
    "parse": "HTTP framing and server-sent events",
    "JSON": "bodies encoded, events decoded",
    "record": "records made and logged",
    "Locust": "its users, and its request event",
    "schedule": "requests made ready, due times kept, arrivals handed out",
    "other": "health samples, and what no rule knows",
}


def phase_of(stack: Sequence[Frame]) -> str:
    """The phase of a stack, innermost frame first; `other` if no rule knows any of its frames."""
    return next((phase for phase in map(_phase_of_frame, stack) if phase), "other")


def _phase_of_frame(frame: Frame) -> str | None:
    return next((rule.phase for rule in RULES if _fits(rule, frame)), None)


def _fits(rule: Rule, frame: Frame) -> bool:
    if frame.module != rule.module and not frame.module.startswith(f"{rule.module}."):
        return False
    return not rule.functions or any(
        frame.function == name or frame.function.startswith(f"{name}.") for name in rule.functions
    )


# -- the result -----------------------------------------------------------------------------------------


class Part(msgspec.Struct, frozen=True):
    """A share of the CPU time."""

    name: str
    share: Figure
    """Of the run's ticks, with its interval."""
    cpu_s: float
    per_attempt_s: float
    call: str = ""
    """Of a function: what it was calling most often when a tick came."""


class Trip(msgspec.Struct, frozen=True):
    """How long a way to the target takes, against the guide. Seconds."""

    name: str
    spread: str
    within_guide: bool
    fault: str = ""
    """Why it is not known, if it is not; `spread` is empty then."""


class Json(msgspec.Struct, frozen=True):
    """What encoding and decoding cost."""

    name: str
    each_s: float
    """Best of five rounds over all of them."""
    mean_bytes: float
    n: int


class Profile(msgspec.Struct, frozen=True):
    """Where the client's time went; written as profile.json."""

    run: str
    attempts: int
    """Ended during that time, however."""
    failed: int
    ticks: int
    cpu_s: float
    """Of the load generator's process, but for its start and its stop."""
    wall_s: float
    phases: list[Part]
    hottest: list[Part]
    """Functions by their own time, that of the C code they call included."""
    network: list[Trip]
    json: list[Json]


def exit_code(found: Profile) -> int:
    """0 if the client was seen at work; 1 if the target had a fault on the way, or no attempt succeeded."""
    return int(any(trip.fault for trip in found.network) or found.failed == found.attempts)


def profile(
    scenario: Scenario,
    runs: Path,
    environ: Mapping[str, str],
    *,
    seconds: float = SECONDS,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Profile, Path]:
    """Run a scenario for a short time under the sampling profiler.

    Args:
        scenario: run as it stands, but for at most `seconds`, unjudged and without telemetry.
        runs: where the run folder is made; profile.json, profile.prof and ticks.json are left in it.
        environ: holds the target's key.
        seconds: how long arrivals go on.
        on_progress: called about once a second.

    Raises:
        EngineError: the mock or Locust could not start, or used too little CPU to be caught at it.
        ConfigError: the target's URL or key cannot be used.
    """
    short = shortened(scenario, seconds)
    network, chunks = _network(short, environ)
    folder = conduct.conduct(short, runs=runs, sampled=True, on_progress=on_progress)
    conduct.close(folder)
    seen = msgspec.json.decode((folder / "ticks.json").read_bytes(), type=Ticks)
    stacks = during(seen, runlog.read_run(folder).start.monotonic_ns, steady(runlog.read_samples(folder)))
    if not stacks:
        raise EngineError(
            "not one tick fell into the run: it used next to no CPU; raise its rate or duration"
        )
    (folder / "profile.prof").write_bytes(marshal.dumps(pstats_of(stacks)))
    found = _summed(stacks, folder, network, [*encoding(short), *decoding(short, chunks)])
    runlog.write_json(folder / "profile.json", found)
    return found, folder


def shortened(scenario: Scenario, seconds: float) -> Scenario:
    """The scenario, ending after so many seconds at the latest, every request counted.

    Constant arrivals become Poisson's at the same rate: the ticks come in step with the kernel's timer, and
    a load that is in step too (every 5 ms, say) would be caught always or never.
    """
    arrivals, duration_s = scenario.arrivals, scenario.duration_s
    if duration_s is None and isinstance(arrivals, Steps):
        duration_s = Seconds(sum(step.for_s for step in arrivals.steps))
    least_s = seconds if duration_s is None else min(seconds, duration_s)
    return replace(
        scenario,
        arrivals=Poisson(rate=arrivals.rate) if isinstance(arrivals, Constant) else arrivals,
        duration_s=Seconds(least_s),
        bursts=tuple(burst for burst in scenario.bursts if burst.at_s + burst.over_s <= least_s),
        warm_up_s=Seconds(0),
        window="auto",
        telemetry=False,
    )


def steady(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples but the last, which holds the end of the run; a lone one is kept."""
    return samples[:-1] or samples


def during(seen: Ticks, start_ns: int, samples: Sequence[Sample]) -> list[tuple[Frame, ...]]:
    """The stacks of the ticks that fell into the time which the samples sum up.

    Args:
        seen: all ticks, of start-up and end too.
        start_ns: the run's start on the monotonic clock.
        samples: at least one.
    """
    since_ns = start_ns + samples[0].t_ns - round(samples[0].wall_s * 1e9)
    until_ns = start_ns + samples[-1].t_ns
    return [seen.stacks[stack] for t_ns, stack in seen.ticks if since_ns <= t_ns <= until_ns]


def _summed(
    stacks: Sequence[tuple[Frame, ...]], folder: Path, network: list[Trip], json: list[Json]
) -> Profile:
    samples = steady(runlog.read_samples(folder))
    cpu_s, wall_s = sum(each.cpu_s for each in samples), sum(each.wall_s for each in samples)
    records = runlog.read_requests(folder).select(["ended_ns", "outcome"]).to_pylist()
    outcomes = [row["outcome"] for row in records if (row["ended_ns"] or 0) <= samples[-1].t_ns]
    phases = Counter(map(phase_of, stacks))
    own = Counter((stack[0].module, stack[0].function) for stack in stacks)
    calls: dict[tuple[str, str], Counter[str]] = {name: Counter() for name in own}
    for stack in stacks:
        calls[stack[0].module, stack[0].function][stack[0].call] += 1

    def part(name: str, ticks: int, call: str = "") -> Part:
        of_cpu_s = cpu_s * ticks / len(stacks)
        return Part(name, share(ticks, len(stacks)), of_cpu_s, of_cpu_s / max(len(outcomes), 1), call)

    return Profile(
        run=folder.name,
        attempts=len(outcomes),
        failed=sum(outcome != Outcome.OK for outcome in outcomes),
        ticks=len(stacks),
        cpu_s=cpu_s,
        wall_s=wall_s,
        phases=[part(name, phases[name]) for name in PHASES],
        hottest=[
            part(".".join(name), ticks, calls[name].most_common(1)[0][0])
            for name, ticks in own.most_common(TOP)
        ],
        network=network,
        json=json,
    )


Place = tuple[str, int, str]


def pstats_of(stacks: Sequence[Sequence[Frame]]) -> dict[Place, tuple[Any, ...]]:
    """The ticks as `pstats` and its viewers read them: calls are ticks, and so are seconds.

    A tick's own time is the innermost function's; its cumulative time is that of every function on the
    stack, once each.
    """
    own: Counter[Place] = Counter()
    whole: Counter[Place] = Counter()
    edges: dict[Place, Counter[Place]] = {}
    for stack in stacks:
        places = [(frame.file, frame.line, frame.function) for frame in stack]
        own[places[0]] += 1
        whole.update(set(places))
        for callee, caller in set(pairwise(places)):
            edges.setdefault(callee, Counter())[caller] += 1
    return {
        place: (
            ticks,
            ticks,
            float(own[place]),
            float(ticks),
            {caller: (n, n, 0.0, float(n)) for caller, n in edges.get(place, Counter()).items()},
        )
        for place, ticks in whole.items()
    }


# -- network and JSON -----------------------------------------------------------------------------------


def _network(scenario: Scenario, environ: Mapping[str, str]) -> tuple[list[Trip], list[bytes]]:
    """Connections and round trips to the target, and the events of one small stream."""
    is_mock = scenario.target == "mock"
    asks = _MOCK_ASKS if is_mock else _ASKS
    with contextlib.ExitStack() as stack:
        url = scenario.target
        if is_mock:
            url = stack.enter_context(mock_process("--profile", scenario.mock.profile)).url
        target = parse(url, key="" if is_mock else api_key(url, environ))
        return _ways(target, scenario, asks, WAY_S)


def _ways(target: Target, scenario: Scenario, asks: int, budget_s: float) -> tuple[list[Trip], list[bytes]]:
    """The ways to a target that runs, up to the first fault, and the events of the stream.

    Raises:
        EngineError: there is no connection, or no TLS on it: nothing would be seen of a run.
    """
    began_s = time.perf_counter()
    by_s = {way: began_s + share * budget_s for way, share in _BY.items()}
    where = target.host, target.port
    connects = probe.within(
        by_s["connect"], lambda: probe.connect_times(*where, asks, until_s=by_s["connect"])
    )
    if isinstance(connects, Fault):
        raise EngineError(f"no connection to {target.url}: {connects.text}")
    trips = [_trip("connect", connects)]
    context = ssl.create_default_context() if target.scheme == "https" else None
    if context is not None:
        handshakes = probe.within(
            by_s["handshake"],
            lambda: probe.handshake_times(*where, context, asks, until_s=by_s["handshake"]),
        )
        if isinstance(handshakes, Fault):
            raise EngineError(f"no TLS with {target.url}: {handshakes.text}")
        trips.append(_trip("TLS handshake", handshakes))
    with probe.client(target, context) as by:
        path = "/v1/models"

        def ask_there() -> list[float] | Fault:
            first = probe.ask(by, path)  # it connects
            return (
                first if isinstance(first, Fault) else probe.round_trips(by, path, asks, by_s["round trip"])
            )

        times_s = probe.within(by_s["round trip"], ask_there)
        trips.append(_trip(f"round trip of GET {path}", times_s))
        if isinstance(times_s, Fault) or not any(e.weight and e.kind == "stream" for e in scenario.traffic):
            return trips, []
        _, pieces = doctor.trials(scenario)
        dialect = DIALECTS[pieces.dialect]
        left_s, body = doctor.leave_s(by_s["stream"]), dialect.encode(pieces)
        streamed = probe.within(by_s["stream"], lambda: probe.ask_stream(by, dialect.path, body, left_s))
    if isinstance(streamed, Fault):
        trips.append(_trip("a small stream", streamed))
    elif streamed.status != 200:
        trips.append(_trip("a small stream", Fault(f"HTTP {streamed.status}")))
    return trips, doctor.payloads(streamed, pieces)


def _trip(name: str, times_s: Sequence[float] | Fault) -> Trip:
    if isinstance(times_s, Fault):
        return Trip(name, "", within_guide=False, fault=times_s.text)
    return Trip(name, doctor.spread(times_s), max(times_s) <= doctor.GUIDE_S)


def encoding(scenario: Scenario) -> list[Json]:
    """What it costs to encode the scenario's own first requests."""
    requests = list(islice(_requests(scenario), _BODIES))

    def encode() -> list[bytes]:
        return [DIALECTS[request.dialect].encode(request) for request in requests]

    return [_cost("encode a request's body", encode, encode())]


def decoding(scenario: Scenario, chunks: Sequence[bytes]) -> list[Json]:
    """What it costs to decode the events of a stream in the scenario's dialect; nothing without any."""
    _, pieces = doctor.trials(scenario)
    decode = DIALECTS[pieces.dialect].decode_event
    events = [chunk for chunk in chunks if _decodes(chunk, decode)]

    def all_of_them() -> None:
        for event in events:
            decode(event)

    return [_cost("decode a chunk", all_of_them, events)] if events else []


def _decodes(chunk: bytes, decode: Callable[[bytes], Delta]) -> bool:
    """It is a chunk of an answer; neither the end marker nor what a server writes in its stead."""
    try:
        return decode(chunk).choices
    except UNREADABLE:
        return False


def _requests(scenario: Scenario) -> Iterator[Request]:
    asks = workload(scenario)
    seq = 0
    while True:
        yield from asks(seq)
        seq += 1


def _cost(name: str, work: Callable[[], object], bodies: Sequence[bytes]) -> Json:
    n = len(bodies)
    times_ns = []
    for _ in range(_ROUNDS):
        began_ns = time.perf_counter_ns()
        work()
        times_ns.append(time.perf_counter_ns() - began_ns)
    return Json(name, min(times_ns) / n / 1e9, sum(map(len, bodies)) / n, n)


# -- for people -----------------------------------------------------------------------------------------


def sheets(found: Profile) -> list[Sheet]:
    """The profile as tables."""
    right = ("share", "CPU", "an attempt")
    idle = 1 - found.cpu_s / found.wall_s if found.wall_s else 0.0
    title = (
        f"CPU time by phase: {quantity(found.cpu_s, 's')} in {quantity(found.wall_s, 's')} "
        f"({quantity(max(idle, 0.0), '1')} idle), {count(found.attempts)} attempts "
        f"({count(found.failed)} failed), "
        f"{count(found.ticks)} ticks, one each {quantity(found.cpu_s / found.ticks, 's')} of CPU"
    )
    phases = [(*_cells(part), MEANINGS[part.name]) for part in found.phases]
    total_share = sum(part.share.value or 0.0 for part in found.phases)
    total = quantity(found.cpu_s / max(found.attempts, 1), "s")
    phases.append(("total", quantity(total_share, "1"), quantity(found.cpu_s, "s"), total, ""))
    hottest = [(part.name, quantity(part.share.value, "1"), part.call) for part in found.hottest]
    guide = f"within {quantity(doctor.GUIDE_S, 's')}"
    network = [
        (trip.name, trip.fault or trip.spread, NONE if trip.fault else "yes" if trip.within_guide else "no")
        for trip in found.network
    ]
    json = [
        (each.name, quantity(each.each_s, "s"), quantity(each.mean_bytes, "B"), count(each.n))
        for each in found.json
    ]
    return [
        Sheet(title, ("phase", *right, "what"), phases, right),
        Sheet(
            f"The {len(hottest)} most expensive functions",
            ("function", "share", "calling"),
            hottest,
            ("share",),
        ),
        Sheet("Network", ("way", "time", guide), network),
        Sheet("JSON", ("work", "each", "mean size", "n"), json, ("each", "mean size", "n")),
    ]


def _cells(part: Part) -> tuple[str, str, str, str]:
    if not part.share.value:
        return part.name, NONE, NONE, NONE
    return (
        part.name,
        figure_text(part.share),
        quantity(part.cpu_s, "s"),
        quantity(part.per_attempt_s, "s"),
    )
