"""Claims about the profile: every tick has one phase, the phases are the whole, the rules name what is."""

from __future__ import annotations

import ast
import importlib.util
import json
import marshal
import pstats
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import profiling, sampling
from harness.client.target import parse
from harness.errors import EngineError
from harness.mock.process import mock_process
from harness.profiling import PHASES, RULES, Frame, Profile, Ticks, Trip, during, phase_of, pstats_of, steady
from harness.record import Sample
from harness.report.numbers import NONE
from harness.report.tables import tables
from harness.workload import scenario as scenarios
from harness.workload.scenario import Constant, Mock, Poisson, Scenario, Seconds, Step, Steps, Traffic

TOP = Path(profiling.__file__).resolve().parents[1]


def frame(module: str, function: str = "f", call: str = "") -> Frame:
    return Frame(f"{module}.py", 1, module, function, call)


def qualified_names(path: Path) -> set[str]:
    """The functions and classes of a module, as `co_qualname` has them."""

    def walk(body: list[ast.stmt], before: str) -> set[str]:
        found: set[str] = set()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found |= {before + node.name, *walk(node.body, f"{before}{node.name}.")}
        return found

    return walk(ast.parse(path.read_text()).body, "")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.phase} {rule.module}")
def test_every_rule_names_what_exists(rule: profiling.Rule) -> None:
    assert rule.phase in PHASES
    if not rule.module.startswith("harness."):
        assert importlib.util.find_spec(rule.module)
        return
    path = TOP.joinpath(*rule.module.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    assert set(rule.functions) <= qualified_names(source)


LOCUST = [frame("locust.user.users", "User.run")]
READ = [frame("harness.client.transport", "Transport._on_readable"), frame("gevent.hub", "Hub.run")]


@pytest.mark.parametrize(
    ("stack", "phase"),
    [
        (READ, "read"),
        ([frame("harness.client.http1", "Connection.on_body"), *READ], "parse"),
        ([frame("harness.client.pattern", "Stride.takes"), *READ], "parse"),
        ([frame("gevent.hub", "Hub.run")], "wait"),
        ([frame("enum", "Enum.__hash__"), frame("harness.client.send", "_judge"), *LOCUST], "record"),
        ([frame("harness.client.transport", "_Tls.unseal"), *READ], "TLS"),
        ([frame("harness.client.transport", "_connect_one"), *LOCUST], "connect"),
        ([frame("harness.client.dialects.chat", "decode"), frame("harness.client.answer")], "JSON"),
        ([frame("harness.workload.prompts"), frame("harness.users.worker", "Worker._dispatch")], "schedule"),
        ([frame("harness.users.worker", "_Health.sample")], "other"),
        ([frame("h2.connection"), frame("harness.client.http2", "_Link.on_bytes")], "parse"),
        (LOCUST, "Locust"),
        ([frame("locustier")], "other"),
        ([frame("json.decoder")], "other"),
    ],
)
def test_a_tick_belongs_to_the_innermost_frame_that_a_rule_knows(stack: list[Frame], phase: str) -> None:
    assert phase_of(stack) == phase


def sample(t_s: float, wall_s: float) -> Sample:
    plain = {field.name: 0 for field in msgspec.structs.fields(Sample) if field.required}
    return Sample(**(plain | {"t_ns": round(t_s * 1e9), "wall_s": wall_s}))


def test_ticks_of_start_up_and_of_locusts_stop_are_left_out() -> None:
    stacks = [(frame(name),) for name in ("start", "run", "stop")]
    seen = Ticks(stacks, [(9_000_000_000, 0), (9_700_000_000, 1), (11_400_000_000, 1), (11_700_000_000, 2)])
    samples = steady([sample(0.5, 1.0), sample(1.5, 1.0), sample(1.9, 0.4)])
    assert during(seen, 10_000_000_000, samples) == [(frame("run"),)] * 2


def test_a_run_of_one_sample_keeps_it() -> None:
    assert len(steady([sample(0.5, 1.0)])) == 1


frames = st.builds(frame, st.sampled_from(["a", "b", "c"]), st.sampled_from(["f", "g"]))


@given(stacks=st.lists(st.lists(frames, min_size=1, max_size=5), min_size=1, max_size=30))
def test_the_prof_file_has_every_tick_once_as_own_time(stacks: list[list[Frame]]) -> None:
    found = pstats_of(stacks)
    assert sum(entry[2] for entry in found.values()) == len(stacks)
    assert all(own <= whole <= len(stacks) for _, _, own, whole, _ in found.values())


def test_pstats_reads_the_prof_file(tmp_path) -> None:
    path = tmp_path / "profile.prof"
    path.write_bytes(marshal.dumps(pstats_of([READ, READ, LOCUST])))
    assert pstats.Stats(str(path)).total_tt == 3


def test_a_scenario_is_shortened_never_lengthened() -> None:
    assert profiling.shortened(Scenario(count=5), 10).duration_s == 10
    assert profiling.shortened(Scenario(duration_s=Seconds(3)), 10).duration_s == 3
    steps = Steps(steps=(Step(rate=5, for_s=Seconds(4)),))
    whole = Scenario(arrivals=steps, warm_up_s=Seconds(3))
    found = profiling.shortened(whole, 10)
    assert (found.duration_s, found.warm_up_s) == (4, 0)
    scenarios.check(found, "profile")


def test_constant_arrivals_are_taken_out_of_step_with_the_kernels_timer() -> None:
    found = profiling.shortened(Scenario(arrivals=Constant(rate=200), count=9), 10)
    assert found.arrivals == Poisson(rate=200)


def test_encoding_is_measured_on_the_scenarios_own_bodies() -> None:
    (cost,) = profiling.encoding(Scenario(duration_s=Seconds(1)))
    assert cost.n == 200
    assert 100 < cost.mean_bytes < 10_000
    assert 0 < cost.each_s < 0.01


def test_without_a_stream_no_cost_of_decoding_is_made_up() -> None:
    events = [b"[DONE]", b'{"error": "caf\xe9"}', b'{"choices": 3}', b"{}", b"hello"]
    assert profiling.decoding(Scenario(duration_s=Seconds(1)), events) == []


STREAMS = Scenario(traffic=(Traffic(kind="stream"),), duration_s=Seconds(1))


def test_a_silent_target_is_asked_once_and_named_in_a_row() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = parse(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began_s = time.perf_counter()
        trips, chunks = profiling._ways(target, STREAMS, asks=10, budget_s=1.0)
        took_s = time.perf_counter() - began_s
    assert [(trip.name, trip.fault) for trip in trips] == [
        ("connect", ""),
        ("round trip of GET /v1/models", "no answer in time"),
    ]
    assert chunks == []
    assert took_s < 5


def test_a_target_without_streams_is_named_in_a_row_if_streams_are_planned() -> None:
    with mock_process("--api-key", "sk-right") as mock:
        trips, _ = profiling._ways(parse(mock.url), STREAMS, asks=2, budget_s=10.0)
        whole = msgspec.structs.replace(STREAMS, traffic=(Traffic(kind="completion"),))
        without, _ = profiling._ways(parse(mock.url), whole, asks=2, budget_s=10.0)
    assert (trips[-1].name, trips[-1].fault) == ("a small stream", "HTTP 401")
    assert [trip.fault for trip in without] == ["", ""]


def found(*network: Trip, attempts: int = 9, failed: int = 0) -> Profile:
    return Profile("run", attempts, failed, 1, 1.0, 1.0, [], [], list(network), [])


WELL, ILL = Trip("connect", "P50 1 ms", True), Trip("round trip", "", False, "no answer in time")


def test_the_exit_code_is_1_for_a_fault_on_the_way_and_where_nothing_succeeded() -> None:
    assert profiling.exit_code(found(WELL, failed=8)) == 0
    assert profiling.exit_code(found(WELL, failed=9)) == 1
    assert profiling.exit_code(found(WELL, attempts=0)) == 1
    assert profiling.exit_code(found(WELL, ILL)) == 1


def test_a_fault_has_its_row() -> None:
    (network,) = [each for each in profiling.sheets(found(WELL, ILL)) if each.title == "Network"]
    assert network.rows == [("connect", "P50 1 ms", "yes"), ("round trip", "no answer in time", NONE)]


BUSY = """
import time

def outer():
    return inner()

def inner():
    deadline = time.process_time() + 0.4
    while time.process_time() < deadline:
        pass

outer()
raise SystemExit(3)
"""


def test_the_sampler_sees_where_the_cpu_goes_and_what_it_calls(tmp_path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    out = tmp_path / "ticks.json"
    command = [sys.executable, "-m", "harness.sampling", str(out), "busy", "--flag"]
    ended = subprocess.run(command, cwd=tmp_path, check=False, timeout=30)
    assert ended.returncode == 3
    seen = msgspec.json.decode(out.read_bytes(), type=Ticks)
    stacks = [seen.stacks[stack] for _, stack in seen.ticks]
    inside = [stack for stack in stacks if stack[0].function == "inner"]
    assert len(inside) >= 10
    assert len(inside) >= 0.8 * len([stack for stack in stacks if stack[-1].module != "harness.sampling"])
    assert "time.process_time" in {stack[0].call for stack in inside}
    assert all(stack[1].function == "outer" for stack in inside)
    assert all(earlier[0] <= later[0] for earlier, later in zip(seen.ticks, seen.ticks[1:], strict=False))


def test_a_tick_at_a_functions_entry_is_its_callers() -> None:
    def inner() -> None:
        pass

    entry, later = (inner.__code__, 0, "m"), (inner.__code__, len(inner.__code__.co_code) - 2, "m")
    caller = (test_a_tick_at_a_functions_entry_is_its_callers.__code__, 0, "m")
    assert sampling._running((entry, caller)) == (caller,)
    assert sampling._running((later, caller)) == (later, caller)
    assert sampling._running((entry,)) == (entry,)  # nobody else can have run


def test_a_profile_accounts_for_all_of_the_load_generators_cpu(tmp_path) -> None:
    scenario = Scenario(
        traffic=(Traffic(kind="stream"), Traffic(kind="completion")),
        arrivals=Constant(rate=400),
        duration_s=Seconds(60),
        mock=Mock(profile="fast"),
    )
    found, folder = profiling.profile(scenario, tmp_path, {}, seconds=3)
    assert [part.name for part in found.phases] == list(PHASES)
    assert sum(part.share.value for part in found.phases) == pytest.approx(1)
    assert sum(part.cpu_s for part in found.phases) == pytest.approx(found.cpu_s)
    assert found.failed == 0
    assert found.attempts >= 600
    assert found.ticks >= 20
    assert [trip.name.split()[0] for trip in found.network] == ["connect", "round"]
    assert [cost.name for cost in found.json] == ["encode a request's body", "decode a chunk"]
    saved = msgspec.json.decode((folder / "profile.json").read_bytes(), type=Profile)
    assert saved == found
    assert pstats.Stats(str(folder / "profile.prof")).total_tt == found.ticks
    assert json.loads((folder / "ticks.json").read_text())["ticks"]
    assert "100 %" in tables(profiling.sheets(found))


def test_over_tls_connections_and_sealing_have_shares_of_their_own(tmp_path, monkeypatch) -> None:
    resets = tmp_path / "faults.yaml"
    resets.write_text("faults: [{fault: reset, probability: 0.5}]")  # every second answer costs a connection
    options = ("--certificate", "self-signed", "--profile", "fast", "--faults", str(resets))
    with mock_process(*options) as mock:
        monkeypatch.setenv("SSL_CERT_FILE", str(mock.certificate))
        scenario = Scenario(
            target=mock.url,
            traffic=(Traffic(kind="stream"), Traffic(kind="batch", weight=0.1, size=2)),
            arrivals=Poisson(rate=250),
            duration_s=Seconds(60),
        )
        found, _ = profiling.profile(scenario, tmp_path / "runs", {}, seconds=3)
    shares = {part.name: part.share.value for part in found.phases}
    assert shares["TLS"] > shares["connect"] > 0
    assert sum(shares.values()) == pytest.approx(1)
    assert 0.3 < found.failed / found.attempts < 0.7
    assert [trip.name for trip in found.network][:3] == [  # the small stream may be reset, too
        "connect",
        "TLS handshake",
        "round trip of GET /v1/models",
    ]


def test_an_untrusted_certificate_ends_a_profile_before_it_begins(tmp_path) -> None:
    with mock_process("--certificate", "self-signed") as mock:
        scenario = Scenario(target=mock.url, duration_s=Seconds(1))
        with pytest.raises(EngineError, match="certificate not trusted: self"):
            profiling.profile(scenario, tmp_path, {})
    assert list(tmp_path.iterdir()) == []
