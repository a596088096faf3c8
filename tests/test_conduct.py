"""Claims about a run seen from outside: its progress, where it may listen, which window may be judged."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import factories
import msgspec
import pytest

from harness import conduct, runlog
from harness.clock import Anchor
from harness.conduct import Remote, Watch
from harness.errors import ConfigError
from harness.record import End, Sample
from harness.report.progress import Progress
from harness.workload.scenario import Constant, Scenario, Seconds

MINUTE = Scenario(arrivals=Constant(rate=10), duration_s=Seconds(60), drain_s=Seconds(30))
REMOTE = Remote("10.0.0.7", 5557, workers=2)


def looked(
    folder: Path, scenario: Scenario = MINUTE, *, remote: Remote | None = None, interrupts: int = 0
) -> Progress:
    watch = Watch(folder, scenario, remote)
    watch.interrupts = interrupts
    return watch.look()


def begun(folder: Path, *, ago_s: float = 10, **counts: Any) -> Path:
    """A run folder as a worker leaves it in the middle of a run."""
    start = Anchor(wall_ns=time.time_ns() - round(ago_s * 1e9), monotonic_ns=0)
    runlog.write_json(folder / "run.json", factories.run(start=start))
    plain = {field.name: 0 for field in msgspec.structs.fields(Sample) if field.required}
    runlog.samples_path(folder, 0).write_bytes(msgspec.json.encode(Sample(**(plain | counts))) + b"\n")
    return folder


# -- progress -----------------------------------------------------------------------------------------


def test_before_the_start_nothing_is_counted_down(tmp_path) -> None:
    found = looked(tmp_path)
    assert (found.remaining_s, found.note) == (None, "starting")


def test_while_workers_are_waited_for_it_says_how_to_join_from_the_start(tmp_path) -> None:
    how = "to join: harness worker --master 10.0.0.7:5557"
    assert looked(tmp_path, remote=REMOTE).note == f"waiting for workers, 0 of 2 connected; {how}"
    log = tmp_path / "locust.log"
    log.write_text("a (index 0) reported as ready. 1 workers connected.\nWaiting for workers ...\n")
    assert looked(tmp_path, remote=REMOTE).note == f"waiting for workers, 1 of 2 connected; {how}"
    log.write_text("b (index 1) reported as ready. 2 workers connected.\n")
    assert looked(tmp_path, remote=REMOTE).note == "starting"


def test_a_long_schedule_is_said_to_be_computed(tmp_path) -> None:
    long = Scenario(arrivals=Constant(rate=5000), duration_s=Seconds(3600))
    assert looked(tmp_path, long).note == "computing the schedule of some 18,000,000 arrivals"


def test_a_run_under_way_counts_down_and_says_what_was_dropped(tmp_path) -> None:
    found = looked(begun(tmp_path, due=100, started=98, dropped=2, in_flight=5))
    assert 40 < (found.remaining_s or 0) <= 50
    assert found.note == "2 dropped for want of an idle virtual user"
    assert (found.due, found.started, found.in_flight) == (100, 98, 5)


def test_after_the_last_arrival_it_waits_for_answers(tmp_path) -> None:
    assert (
        looked(begun(tmp_path, ago_s=61, in_flight=5)).note
        == "no more arrivals; waiting for the last answers"
    )


@pytest.mark.parametrize(
    ("interrupts", "in_flight", "note"),
    [
        (1, 10, "draining, up to 30 s; Ctrl-C again cuts off 10 under way"),
        (2, 10, "cutting off 10 under way"),
        (1, 0, "ending"),
    ],
)
def test_once_interrupted_it_drains_counts_nothing_down_and_nothing_more_is_due(
    tmp_path, interrupts: int, in_flight: int, note: str
) -> None:
    folder = begun(tmp_path, due=130, started=98, dropped=2, in_flight=in_flight)
    found = looked(folder, interrupts=interrupts)
    assert (found.remaining_s, found.due, found.note) == (None, 100, note)


def test_when_all_have_ended_only_telemetry_is_waited_for(tmp_path) -> None:
    folder = begun(tmp_path, in_flight=0)
    runlog.write_json(folder / "end.json", End(planned=600, stop_reason="completed"))
    assert looked(folder).note == "all have ended, telemetry is being exported"


# -- workers elsewhere --------------------------------------------------------------------------------


def test_who_listens_everywhere_is_found_at_this_machine_s_address() -> None:
    found = Remote("0.0.0.0", 5557, workers=1).joining
    host = found.removeprefix("harness worker --master ").removesuffix(":5557")
    assert host
    assert host != "0.0.0.0"


def test_an_address_that_nobody_can_listen_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--listen is"):
        conduct.check_listen(Remote("127.0.0.1", taken.getsockname()[1], workers=1))
    for host in ("nohost.invalid", "a..b"):
        with pytest.raises(ConfigError, match="nobody can listen there"):
            conduct.check_listen(Remote(host, 5557, workers=1))
    conduct.check_listen(Remote("127.0.0.1", 0, workers=1))
    conduct.check_listen(Remote("*", 0, workers=1))


@pytest.mark.parametrize("host", ["nohost.invalid", "a..b"])
def test_a_master_whose_name_is_not_known_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="--master is"):
        conduct.check_master(host)
    conduct.check_master("127.0.0.1")


# -- windows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("50s,900s", "must not end after the arrivals do, at 60s"),
        ("100s,900s", "must not end after the arrivals do, at 60s"),
        ("1s,20s", "must not begin in the warm-up, which takes 5s"),
        ("30s,20s", "must end after it begins"),
        ("soon", "write from and to"),
    ],
)
def test_a_window_by_hand_is_refused_as_the_scenario_s_own_would_be(text: str, remedy: str) -> None:
    warmed = msgspec.structs.replace(MINUTE, warm_up_s=Seconds(5), steady_state="mser5")
    with pytest.raises(ConfigError, match=f"--window is '{text}': {remedy}"):
        conduct._window(text, warmed)
    assert conduct._window("[10s, 60s]", warmed) == (10.0, 60.0)


def test_a_lost_worker_of_a_closed_loop_is_one_that_never_reported_back(tmp_path) -> None:
    """Nobody planned what it would claim: what it has recorded is all that is known."""
    scenario = {"name": "t", "arrivals": {"process": "closed", "users": 2}, "duration": "1m"}
    runlog.write_json(tmp_path / "run.json", factories.run(scenario=scenario))
    writer = runlog.Writer(runlog.records_path(tmp_path, 0))
    writer.extend([factories.record(seq=seq) for seq in range(5)])
    writer.close()
    manifest = conduct.close(tmp_path)
    assert (manifest.planned, manifest.started, manifest.lost) == (5, 5, 0)
    (said,) = manifest.imbalances
    assert said.startswith("0 planned arrivals are lost with workers that never reported back; ")
    assert said.endswith("of the same workers, 5 arrivals are in the log")


def test_a_window_in_which_nothing_arrived_is_refused(tmp_path) -> None:
    """Of a run that a count ends, the schedule's end is not known beforehand."""
    scenario = {"name": "t", "arrivals": {"process": "constant", "rate": 10}, "count": 20}
    runlog.write_json(tmp_path / "run.json", factories.run(scenario=scenario))
    records = [factories.record(seq=seq, due_ns=factories.ms(100 * seq)) for seq in range(20)]
    writer = runlog.Writer(runlog.records_path(tmp_path, 0))
    writer.extend(records)
    writer.close()
    with pytest.raises(ConfigError, match=r"must not begin after the last arrival, which came at 1\.9 s"):
        conduct.judged(tmp_path, window="5s,6s")
