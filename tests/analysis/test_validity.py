"""validity.py: each check, provoked and not."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from factories import dropped, failure, manifest, ms, record, run, stream, table
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.budgets import shown
from harness.analysis.health import waited
from harness.analysis.measures import measure
from harness.analysis.validity import Budgets, validate
from harness.record import Sample, TelemetryLedger
from harness.slo.objectives import parse

WINDOW = (0.0, 10.0)
DEFAULTS = ("response: p(99) < 500ms", "errors: rate < 0.1%")


def sample(second, worker=0, **overrides):
    fields = {
        "t_ns": ms(1000 * second),
        "worker": worker,
        "due": 0,
        "started": 0,
        "dropped": 0,
        "finished": 0,
        "in_flight": 0,
        "cpu_s": 0.3,
        "wall_s": 1.0,
        "hub_lag_max_ns": ms(2),
        "gc_pause_max_ns": 0,
        "rss_bytes": 1,
        "open_files": 1,
    }
    return Sample(**(fields | overrides))


HEALTHY = [sample(second) for second in range(1, 11)]
SOUND = [
    sample(second, in_flight=10, file_limit=1024, wall_clock_ns=ms(1000 * second), read_lag_max_ns=1)
    for second in range(1, 11)
]
"""The same of a worker that carries `steady()`: 100 arrivals/s x 0.1 s, on a clock that keeps time."""


def checks(records, objectives=DEFAULTS, window=WINDOW, **options):
    options = {
        "run": run(),
        "manifest": manifest(len(records)),
        "samples": HEALTHY,
        **options,
    }
    found = validate(measure(table(records)), [parse(each) for each in objectives], window, **options)
    return {check.name: check for check in found.checks}


def steady(n=1000, **overrides):
    return [record(seq=seq, **overrides) for seq in range(n)]


def late(seq, by):
    return record(seq=seq, started_ns=ms(10 * seq + by))


def test_a_sound_run_passes_every_check():
    found = checks(steady(), planned=1000, samples=SOUND)
    assert all(check.passed for check in found.values()), found
    assert {
        "recorded",
        "completed",
        "ledger",
        "lateness",
        "dropped",
        "achieved_rate",
        "cpu",
        "hub_lag",
    } <= set(found)


def test_nothing_recorded_is_invalid():
    assert not checks([])["recorded"].passed


def test_a_killed_run_is_invalid_and_an_interrupted_one_is_judged():
    assert not checks(steady(10), manifest=manifest(10, stop_reason="killed"))["completed"].passed
    assert checks(steady(10), manifest=manifest(10, stop_reason="interrupted"))["completed"].passed


@pytest.mark.parametrize(
    ("records", "books", "cause"),
    [
        (steady(10), {"imbalances": ["worker 0: planned 3 ≠ ..."]}, "worker 0"),
        (steady(10), {"records": 9}, "the books hold 9"),
        ([*steady(9), record(seq=0)], {}, "twice"),
        ([*steady(9), failure(seq=9, final=False)], {}, "no final attempt"),
    ],
)
def test_books_that_do_not_balance_are_invalid(records, books, cause):
    found = checks(records, manifest=manifest(10, **books))["ledger"]
    assert not found.passed
    assert cause in found.cause


def test_an_empty_window_is_judged_without_a_fault():
    found = checks(steady(), window=(10.0, 10.0), samples=SOUND, planned=0)
    assert all(check.passed for check in found.values()), found
    assert not {"lateness", "dropped", "littles_law"} & set(found)


def test_a_late_load_generator_is_invalid():
    found = checks([late(seq, 40) if seq % 50 == 0 else record(seq=seq) for seq in range(1000)])["lateness"]
    assert not found.passed
    assert found.observed == pytest.approx(0.04)
    assert found.budget == 0.025
    assert "--workers" in found.remedy


def test_who_was_late_outside_the_window_is_not_judged():
    rows = [late(seq, 40) if seq < 500 else record(seq=seq) for seq in range(1000)]
    assert checks(rows, window=(5.0, 10.0))["lateness"].passed
    assert not checks(rows, window=(4.0, 9.0))["lateness"].passed


@pytest.mark.parametrize(
    ("n", "cause"),
    [
        (48, "the latest of 48 requests started 40 ms after it was due, 25 ms are allowed"),
        (250, "all but 2 of 250 requests started within 40 ms of when they were due, 25 ms are allowed"),
        (299, "requests started 40 ms after they were due at P99, 25 ms are allowed"),
    ],
)
def test_the_latest_of_a_few_is_not_called_a_p99(n, cause):
    rows = [late(seq, 40) if seq % 48 == 0 else record(seq=seq) for seq in range(n)]
    assert checks(rows)["lateness"].cause == cause


def test_of_a_hundred_requests_one_may_be_late_and_of_fewer_none():
    assert not checks([late(0, 40), *steady(99)[1:]])["lateness"].passed
    assert checks([late(0, 40), *steady(100)[1:]])["lateness"].passed


@pytest.mark.parametrize(
    ("by", "objective", "advised"),
    [
        (1, "ttft: p(99) < 5ms", "a limit of 5 ms for ttft is finer than this machine is punctual: "),
        (1, "ttft: p(99) < 5ms", "judge ttft_from_start instead, or set budgets.lateness_of_threshold"),
        (21, "response: p(99) < 400ms", "free this machine's CPU"),
        (40, "errors: rate < 1%", "free this machine's CPU"),
    ],
)
def test_a_limit_too_fine_to_be_punctual_for_is_named_and_not_the_cpu(by, objective, advised):
    found = checks([late(seq, by) for seq in range(1000)], [objective])["lateness"]
    assert not found.passed
    assert advised in found.remedy
    assert ("CPU" in found.remedy) is ("CPU" in advised)


def test_a_budget_of_lateness_that_no_limit_asks_for_is_what_is_too_fine():
    late_ones, objective = [late(seq, 10) for seq in range(1000)], ["response: p(99) < 500ms"]
    found = checks(late_ones, objective, budgets=Budgets(lateness_s=0.005))["lateness"]
    assert found.remedy == "budgets.lateness is finer than this machine is punctual: raise it above 10 ms"


def test_a_few_late_starts_are_within_budget():
    assert checks([late(seq, 40) if seq == 500 else record(seq=seq) for seq in range(1000)])[
        "lateness"
    ].passed


@pytest.mark.parametrize(
    ("objective", "budget"),
    [
        ("response: p(99) < 50ms", 0.0025),
        ("response: p(99) < 2s", 0.025),
        ("service: p(99) < 50ms", 0.025),  # lateness is no part of it
        ("errors: rate < 1%", 0.025),
    ],
)
def test_lateness_may_take_a_twentieth_of_the_tightest_limit_it_is_part_of(objective, budget):
    assert checks(steady(10), [objective])["lateness"].budget == pytest.approx(budget)


def test_a_retrys_wait_is_no_lateness():
    rows = [
        row
        for seq in range(100)
        for row in (failure(seq=seq, final=False), record(seq=seq, attempt=1, started_ns=ms(10 * seq + 400)))
    ]
    assert checks(rows, manifest=manifest(200))["lateness"].observed == 0.0


def test_a_closed_loop_has_no_lateness_and_no_drops():
    found = checks([record(seq=seq, due_ns=None, started_ns=ms(seq)) for seq in range(10)])
    assert not {"lateness", "dropped", "achieved_rate"} & set(found)


def test_drops_at_a_quick_server_blame_the_pool_and_name_its_size():
    rows = [dropped(seq=seq) if seq % 20 == 0 else record(seq=seq) for seq in range(1000)]
    found = checks(rows, run=run(scenario={"max_in_flight": 8}))["dropped"]
    assert not found.passed
    assert found.observed == 0.05
    # 100 arrivals/s x 0.1 s = 10 in flight, and four standard deviations
    assert found.remedy == "raise max_in_flight to 23"


def test_the_remedy_never_asks_for_fewer_users_than_there_were():
    rows = [dropped(seq=seq) if seq % 20 == 0 else record(seq=seq) for seq in range(1000)]
    assert (
        checks(rows, run=run(scenario={"max_in_flight": 50}))["dropped"].remedy
        == "raise max_in_flight to 100"
    )


def test_without_an_answer_to_reckon_by_the_pool_is_doubled():
    found = checks([dropped(seq=seq) for seq in range(10)], run=run(scenario={"max_in_flight": 8}))["dropped"]
    assert found.remedy == "raise max_in_flight to 16"


def test_drops_while_the_event_loop_was_away_have_its_remedy():
    rows = [dropped(seq=seq) if 400 < seq < 460 else record(seq=seq) for seq in range(1000)]
    stopped = [*HEALTHY[:-1], sample(10, hub_lag_max_ns=ms(2000))]
    found = checks(rows, samples=stopped)
    assert not found["dropped"].passed
    assert found["dropped"].remedy == found["hub_lag"].remedy
    assert "max_in_flight" not in found["dropped"].remedy


def test_drops_at_a_server_too_slow_for_its_objectives_are_its_own():
    rows = [dropped(seq=seq) if seq % 20 == 0 else record(seq=seq, ended_ns=ms(9000)) for seq in range(800)]
    found = checks(rows)["dropped"]
    assert found.passed
    assert "the server's answers alone miss" in found.cause


def test_a_late_client_cannot_blame_the_server_for_its_drops():
    rows = [
        dropped(seq=seq)
        if seq % 20 == 0
        else record(seq=seq, started_ns=ms(10 * seq + 600), ended_ns=ms(10 * seq + 700))
        for seq in range(800)
    ]
    assert not checks(rows)["dropped"].passed


def kept_waiting(seq, wait, took=100):
    """An arrival that the dispatcher came to at once, and that waited so long for an idle user."""
    start = ms(10 * seq + wait)
    return record(seq=seq, queued_ns=ms(10 * seq), started_ns=start, ended_ns=start + ms(took))


def test_a_wait_for_an_idle_user_blames_the_pool_and_not_the_dispatcher():
    rows = [kept_waiting(seq, 400) if seq % 20 == 0 else record(seq=seq) for seq in range(1000)]
    found = checks(rows, planned=1000, run=run(scenario={"max_in_flight": 8}))
    assert found["lateness"].passed
    assert found["lateness"].observed == 0
    assert found["achieved_rate"].passed
    assert not found["dropped"].passed
    assert found["dropped"].observed == 0.05
    assert "0 of 1,000 arrivals were dropped" in found["dropped"].cause
    assert "50 waited for one for over 25 ms" in found["dropped"].cause
    assert found["dropped"].remedy.startswith("raise max_in_flight to ")


def test_a_slow_server_is_not_let_off_by_a_patient_pool():
    rows = [kept_waiting(seq, 2000, took=2000) for seq in range(1000)]
    found = checks(rows, planned=1000)
    assert found["dropped"].passed
    assert "the server's answers alone miss" in found["dropped"].cause
    assert found["lateness"].passed
    assert found["achieved_rate"].passed


def test_a_patient_pool_does_not_hide_a_late_dispatcher():
    rows = [
        record(seq=seq, queued_ns=ms(10 * seq + 40), started_ns=ms(10 * seq + 41), ended_ns=ms(10 * seq + 99))
        for seq in range(1000)
    ]
    assert checks(rows)["lateness"].observed == pytest.approx(0.04)


@pytest.mark.parametrize(("wait", "passed"), [(25, True), (26, False)])
def test_an_arrival_may_wait_for_a_user_as_long_as_it_may_be_late(wait, passed):
    assert checks([kept_waiting(seq, wait) for seq in range(1000)])["dropped"].passed is passed


def test_a_stray_drop_is_an_error_and_not_the_instruments_failure():
    assert checks([dropped(seq=0), *(record(seq=seq) for seq in range(1, 1000))])["dropped"].passed


def test_a_rate_below_the_plan_is_invalid():
    found = checks(steady(900), planned=1000)["achieved_rate"]
    assert not found.passed
    assert found.observed == 0.9
    assert "90.0 arrivals/s were dispatched, 100.0 were planned" in found.cause


def test_what_was_dropped_is_told_apart_from_what_was_sent():
    """The report's head says what was sent."""
    rows = [dropped(seq=seq) if seq < 40 else record(seq=seq) for seq in range(400)]
    found = checks(rows, planned=500)["achieved_rate"]
    assert found.observed == 0.8
    assert found.cause == (
        "40.0 arrivals/s were dispatched (4.0/s of them dropped, 36.0/s sent), 50.0 were planned"
    )


def test_arrivals_started_after_the_window_were_not_in_time():
    rows = [*steady(500), *(late(seq, 3000) for seq in range(500, 1000))]
    assert checks(rows, planned=1000)["achieved_rate"].observed == pytest.approx(0.7, abs=0.01)


def test_a_worker_that_fills_its_core_for_five_seconds_is_invalid():
    busy = [sample(second, cpu_s=0.95 if 3 <= second < 8 else 0.3) for second in range(1, 11)]
    found = checks(steady(10), samples=busy)["cpu"]
    assert not found.passed
    assert found.observed == pytest.approx(0.95)
    assert found.remedy == "raise --workers to 2"


def test_a_second_of_full_cpu_is_allowed():
    busy = [sample(second, cpu_s=1.0 if second == 4 else 0.5) for second in range(1, 11)]
    assert checks(steady(10), samples=busy)["cpu"].passed


def test_each_worker_is_looked_at_by_itself():
    samples = [sample(second, worker, cpu_s=0.95 * worker) for second in range(1, 11) for worker in (0, 1)]
    assert not checks(steady(10), samples=samples, run=run(workers=2))["cpu"].passed


def test_a_busy_warm_up_is_not_judged():
    samples = [sample(second, hub_lag_max_ns=ms(900) if second < 3 else 0) for second in range(1, 11)]
    assert checks(steady(), window=(3.5, 10.0), samples=samples)["hub_lag"].passed


@pytest.mark.parametrize(
    ("objective", "lag", "passed"),
    [
        ("response: p(99) < 500ms", 90, True),
        ("response: p(99) < 500ms", 110, False),
        ("itl: p(99) < 200ms", 50, False),
        ("itl: p(99) < 10ms", 19, True),
    ],
)
def test_neither_the_event_loop_nor_the_reader_may_be_away_for_long(objective, lag, passed):
    samples = [*HEALTHY[:-1], sample(10, hub_lag_max_ns=ms(lag), read_lag_max_ns=ms(lag))]
    found = checks(steady(10), [objective], samples=samples, run=run(stamps="kernel"))
    for name in ("hub_lag", "read_lag"):
        assert found[name].passed is passed
        assert bool(found[name].remedy) is not passed


@pytest.mark.parametrize(("stamps", "lag"), [("user", 900), ("kernel", 0)])
def test_a_reader_of_whom_nothing_is_known_is_not_judged(stamps, lag):
    samples = [sample(second, read_lag_max_ns=ms(lag)) for second in range(1, 11)]
    assert "read_lag" not in checks(steady(10), samples=samples, run=run(stamps=stamps))


@pytest.mark.parametrize(
    ("workers", "cpu_share", "advised"),
    [(1, 0.9, "to 2"), (8, 0.9, "to 9"), (8, 0.5, "to 16"), (1, 0.0, "to 2")],
)
def test_the_advice_is_always_more_workers_than_there_are(workers, cpu_share, advised):
    samples = [sample(second, worker, cpu_s=0.95) for second in range(1, 11) for worker in range(workers)]
    options = {"samples": samples, "run": run(workers=workers), "budgets": Budgets(cpu_share=cpu_share)}
    found = checks(steady(10), **options)["cpu"]
    assert found.remedy.endswith(advised)


@pytest.mark.parametrize(
    ("workers", "cpus", "advised"),
    [
        (1, 4, "raise --workers to 2"),
        (3, 4, "raise --workers to 4"),
        (1, 1, "lower the load, or spread it over more machines (--remote): this one has no core"),
        (2, 3, "raise --workers to 3, and lower the load"),
    ],
)
def test_no_more_workers_are_advised_than_there_are_cores(workers, cpus, advised):
    samples = [
        sample(second, worker, cpu_s=0.95, hub_lag_max_ns=ms(900))
        for second in range(1, 11)
        for worker in range(workers)
    ]
    budgets = Budgets(cpu_share=0.5) if workers == 2 else Budgets()
    on = run(workers=workers, host={"cpus": cpus})
    found = checks(steady(10), samples=samples, run=on, budgets=budgets)
    assert found["cpu"].remedy.startswith(advised)
    assert ("raise --workers" in found["hub_lag"].remedy) is (workers < cpus)
    assert ("--remote" in found["hub_lag"].remedy) is (workers >= cpus)


@pytest.mark.parametrize(
    ("stalls_ms", "expected"),
    [
        ([], 0),
        ([100], 0),  # 100 ms of 10 s are just what P99 lets go
        ([300], 0.2),
        ([300, 300], 0.25),
        ([20] * 50, 0.018),
        ([200, *[20] * 50], 0.1),
        ([100] * 50, 0.098),
    ],
)
def test_the_wait_for_the_event_loop_is_that_of_a_random_moment(stalls_ms, expected):
    samples = [*HEALTHY[:-1], sample(10, hub_stalls_ns=tuple(map(ms, stalls_ms)))]
    assert waited(samples, 0.99) == pytest.approx(expected)


@given(st.lists(st.integers(min_value=2, max_value=900), min_size=1, max_size=20))
def test_the_wait_agrees_with_its_definition(stalls_ms):
    samples = [*HEALTHY[:-1], sample(10, hub_stalls_ns=tuple(map(ms, stalls_ms)))]
    x = waited(samples, 0.99)
    later = sum(max(0.0, stall / 1000 - x) for stall in stalls_ms) / 10
    assert later == pytest.approx(0.01) if x else later <= 0.01 + 1e-9


def test_a_loop_that_is_often_away_is_invalid_though_never_for_long():
    samples = [sample(second, hub_lag_max_ns=ms(60), hub_stalls_ns=(ms(60),) * 8) for second in range(1, 11)]
    found = checks(steady(10), samples=samples)
    assert found["hub_lag"].passed
    assert not found["hub_lag_p99"].passed
    assert "--workers" in found["hub_lag_p99"].remedy


def test_a_worker_that_was_stopped_for_two_seconds_is_invalid():
    samples = [
        *SOUND[:4],
        sample(7, wall_s=3.0, hub_lag_max_ns=ms(2000), hub_stalls_ns=(ms(2000),)),
        *SOUND[7:],
    ]
    found = checks(steady(), samples=samples)
    assert not found["hub_lag"].passed
    assert found["hub_lag_p99"].observed == pytest.approx(1.9)


@pytest.mark.parametrize(("pause", "passed"), [(49, True), (51, False)])
def test_a_long_garbage_collection_is_invalid(pause, passed):
    samples = [*HEALTHY[:-1], sample(10, gc_pause_max_ns=ms(pause))]
    assert checks(steady(10), samples=samples)["gc_pause"].passed is passed


def test_a_worker_near_its_limit_of_open_files_is_invalid():
    samples = [*HEALTHY[:-1], sample(10, open_files=95, file_limit=100)]
    found = checks(steady(10), samples=samples)["files"]
    assert not found.passed
    assert found.observed == 0.95
    assert "files" not in checks(steady(10))  # no limit is known


def test_who_is_short_of_files_is_told_one_limit():
    refused = failure(seq=0, outcome="connect_error", error="connect: too many open files", status=None)
    samples = [*HEALTHY[:-1], sample(10, open_files=50, file_limit=50)]
    found = checks([refused, *(record(seq=seq) for seq in range(1, 1000))], samples=samples)
    assert found["files"].remedy == found["client_errors"].remedy
    assert found["files"].remedy.endswith("ulimit -n 65536")
    many = [*HEALTHY[:-1], sample(10, open_files=65_000, file_limit=65_536)]
    assert checks(steady(10), samples=many)["files"].remedy.endswith("ulimit -n 131072")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("connect: too many open files", "ulimit -n"),
        ("connect: cannot assign requested address", "ip_local_port_range"),
        ("connect: address already in use", "ip_local_port_range"),
        ("connect: no buffer space available", "memory"),
        ("connect: cannot allocate memory", "memory"),
    ],
)
def test_one_connection_that_this_machine_refused_is_invalid(error, remedy):
    refused = failure(seq=0, outcome="connect_error", error=error, status=None)
    found = checks([refused, *(record(seq=seq) for seq in range(1, 1000))])["client_errors"]
    assert not found.passed
    assert found.observed == 0.001
    assert error in found.cause
    assert remedy in found.remedy


NO_FILES = {"outcome": "connect_error", "error": "connect: too many open files", "status": None}


def test_what_this_machine_refused_is_counted_though_a_retry_went_well():
    rows = [
        row
        for seq in range(100)
        for row in (failure(seq=seq, final=False, **NO_FILES), record(seq=seq, attempt=1))
    ]
    found = checks(rows, manifest=manifest(200))["client_errors"]
    assert not found.passed
    assert found.cause == "100 of 200 attempts failed on this machine: connect: too many open files"
    assert "ulimit -n" in found.remedy


def test_a_retry_that_never_came_is_nobody_elses():
    rows = [failure(seq=0, final=False, **NO_FILES), *(record(seq=seq) for seq in range(1, 10))]
    assert checks(rows)["client_errors"].passed
    assert not checks(rows)["ledger"].passed


def test_what_this_machine_refused_outside_the_window_is_not_judged():
    rows = [failure(seq=0, **NO_FILES), failure(seq=1, final=False, **NO_FILES), record(seq=1, attempt=1)]
    rows += [record(seq=seq) for seq in range(2, 1000)]
    assert checks(rows, window=(1.0, 10.0))["client_errors"].passed
    assert not checks(rows)["client_errors"].passed


def test_a_connection_that_the_server_refused_is_its_own_error():
    refused = failure(seq=0, outcome="connect_error", error="connect: connection refused", status=None)
    assert checks([refused, *(record(seq=seq) for seq in range(1, 1000))])["client_errors"].passed


@pytest.mark.parametrize(
    ("in_flight", "passed"),
    [(10, True), (13, True), (7, True), (14, False), (6, False), (0, False)],
)
def test_mean_in_flight_must_be_rate_times_mean_time(in_flight, passed):
    samples = [sample(second, in_flight=in_flight) for second in range(1, 10)]
    found = checks(steady(), samples=samples)["littles_law"]
    # 10 % of 10, and the 2.5 that arrive in 25 ms
    assert found.budget == pytest.approx(3.5)
    assert found.passed is passed


def test_what_a_lost_worker_had_in_flight_is_no_riddle():
    samples = [sample(second, in_flight=50) for second in range(1, 10)]
    lost = manifest(1000, workers=[], lost=50, stop_reason="interrupted")
    assert "littles_law" not in checks(steady(), samples=samples, manifest=lost)


def test_each_worker_s_records_are_held_against_its_own_samples():
    samples = [sample(second, in_flight=10) for second in range(1, 10)]
    idle = [sample(second, worker=1) for second in range(1, 10)]
    books = manifest(1000).workers[0]
    both = manifest(1000, workers=[books, msgspec.structs.replace(books, worker=1)])
    options = {"manifest": both, "run": run(workers=2)}
    found = checks(steady(), samples=[*samples, *idle], **options)["littles_law"]
    assert found.observed == pytest.approx(0)
    busy = [sample(second, worker=1, in_flight=10) for second in range(1, 10)]
    assert not checks(steady(), samples=busy, **options)["littles_law"].passed


def test_a_session_is_in_flight_while_it_thinks():
    rows = [record(due_ns=0), record(turn=1, due_ns=ms(9000), started_ns=ms(9000))]
    samples = [sample(second, in_flight=1) for second in range(1, 10)]
    found = checks(rows, samples=samples)["littles_law"]
    assert found.observed == 0


@pytest.mark.parametrize(
    ("step", "passed"),
    [(0, True), (40, True), (60, False), (-60, False)],
)
def test_a_wall_clock_that_jumps_is_invalid(step, passed):
    samples = [
        sample(second, wall_clock_ns=ms(1000 * second + (step if second > 4 else 0)))
        for second in range(1, 11)
    ]
    found = checks(steady(10), samples=samples)["clock"]
    assert found.observed == pytest.approx(abs(step) / 1000)
    assert found.passed is passed


@pytest.mark.parametrize("away", [range(1, 11), range(2, 4)])
def test_a_clock_that_jumped_before_the_first_sample_or_there_and_back_in_the_warm_up_is_invalid(away):
    samples = [
        sample(second, wall_clock_ns=ms(1000 * second + 60 * (second in away))) for second in range(1, 11)
    ]
    assert not checks(steady(), window=(6.0, 10.0), samples=samples)["clock"].passed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (1.1e-8, "0 ms"),
        (1.26e-6, "0.001 ms"),
        (0.02504, "25 ms"),
        (0.9994, "999 ms"),
        (0.9998, "1 s"),
        (1.756, "1.76 s"),
        (3600, "3,600 s"),
    ],
)
def test_a_duration_is_told_in_digits_that_people_read(seconds, text):
    assert shown(seconds) == text


def test_a_clock_that_is_slewed_has_not_jumped():
    samples = [sample(second, wall_clock_ns=round(ms(1000.5 * second))) for second in range(1, 1001)]
    assert checks(steady(10), samples=samples)["clock"].observed == pytest.approx(0.0005)


def test_later_turns_are_no_arrivals():
    rows = [row for seq in range(1000) for row in (record(seq=seq), record(seq=seq, turn=1))]
    found = checks(rows, planned=2000)
    assert found["ledger"].passed
    assert found["achieved_rate"].observed == 0.5
    assert found["dropped"].n == 1000


def test_the_scenario_s_budgets_count():
    rows = [late(seq, 30) for seq in range(1000)]
    assert not checks(rows)["lateness"].passed
    found = checks(rows, budgets=Budgets(lateness_s=0.04, lateness_of_threshold=1.0))["lateness"]
    assert found.passed
    assert found.budget == 0.04


def test_a_worker_without_samples_has_not_proven_its_health():
    found = checks(steady(10), run=run(workers=2))["sampled"]
    assert not found.passed
    assert "1 of 2 workers" in found.cause
    assert "sampled" not in checks(steady(10), window=(0.0, 1.0), samples=[])


def streams(n, reads, chunks, took):
    def one(seq):
        start, end = ms(10 * seq), ms(10 * seq + took)
        stamps = [end - ms(took * (reads - 1 - chunk * reads // chunks) / reads) for chunk in range(chunks)]
        return stream(seq=seq, started_ns=start, chunk_ns=stamps, first_token_ns=stamps[0], ended_ns=end)

    return [one(seq) for seq in range(n)]


@pytest.mark.parametrize(
    ("reads", "chunks", "took", "passed"),
    [
        (1, 20, 400, False),
        (2, 20, 400, False),
        (2, 9, 400, False),
        (3, 9, 400, True),
        (10, 20, 400, True),
        (1, 20, 40, True),  # a fast server sends all in one piece
    ],
)
def test_streams_that_arrive_in_one_lump_are_invalid(reads, chunks, took, passed):
    assert checks(streams(20, reads, chunks, took))["lumps"].passed is passed


def told_last(chunks, apart, took, seq=0):
    """A stream whose chunks all come at its end, each so many milliseconds after the one before."""
    end = ms(10 * seq + took)
    stamps = [end - ms(apart * (chunks - 1 - chunk)) for chunk in range(chunks)]
    return stream(seq=seq, chunk_ns=stamps, first_token_ns=stamps[0], ended_ns=end)


@pytest.mark.parametrize(
    ("chunks", "apart", "took", "passed"),
    [
        (800, 0.002, 3300, False),  # 218 KB by a proxy that read them whole
        (800, 0.1, 3300, False),  # over a slow line, or written chunk by chunk
        (8, 5, 3000, True),  # a short answer to a long prompt
        (200, 0.4, 100, True),  # a fast server that began at once
        (800, 0.002, 50, True),  # a fast server sends all in one piece
    ],
)
def test_what_comes_all_at_the_end_is_a_lump_in_however_many_reads(chunks, apart, took, passed):
    found = checks([told_last(chunks, apart, took, seq) for seq in range(20)])["lumps"]
    assert found.passed is passed
    assert "kind: completion" in found.remedy or passed


@pytest.mark.parametrize(("reads", "passed"), [(5, False), (8, False), (9, True), (32, True)])
def test_streams_that_arrive_block_by_block_are_invalid(reads, passed):
    found = checks(streams(20, reads, 64, 400))["lumps"]
    assert found.passed is passed
    assert passed or found.cause == f"20 of 20 streams arrived in blocks of {64 / reads:.0f} chunks"
    assert passed or "budgets.lump_share: 1" in found.remedy


@pytest.mark.parametrize(("lumps", "passed"), [(10, True), (11, False)])
def test_half_of_the_streams_may_come_in_lumps(lumps, passed):
    rows = [told_last(16, 0, 400, seq) for seq in range(lumps)]
    rows += [told_last(16, 10, 400, seq) for seq in range(lumps, 20)]
    assert checks(rows)["lumps"].passed is passed


def test_short_streams_say_nothing_of_lumps():
    assert "lumps" not in checks(streams(20, 1, 4, 400))


def telemetry(**overrides):
    fields = {
        "records": 10,
        "spans": 20,
        "exported": 20,
        "dropped": 0,
        "failed": 0,
        "metric_points": 5,
        "metric_points_failed": 0,
        "destination": "traces.otlp.jsonl",
        "errors": [],
    }
    return TelemetryLedger(**(fields | overrides))


@pytest.mark.parametrize(
    ("overrides", "passed"),
    [
        ({}, True),
        ({"exported": 15, "dropped": 5}, True),
        ({"exported": 15, "failed": 5}, False),
        ({"exported": 19}, False),
        ({"records": 9}, False),
        ({"metric_points_failed": 1}, False),
    ],
)
def test_telemetry_must_tell_what_happened(overrides, passed):
    assert checks(steady(10), telemetry=telemetry(**overrides))["telemetry"].passed is passed


def test_telemetry_that_was_off_is_not_judged():
    assert "telemetry" not in checks(steady(10))


def test_every_check_is_explained_for_people():
    page = (Path(__file__).parents[2] / "docs" / "definitions.md").read_text()
    explained = re.findall(r"^\| `(\w+)` \| ", page.partition("## Is the run valid?")[2], flags=re.MULTILINE)
    known = {"samples": SOUND, "run": run(stamps="kernel")}
    found = checks(streams(20, 10, 20, 400), planned=20, telemetry=telemetry(), **known)
    assert list(found) == explained


def test_a_starved_client_blames_itself_and_no_proxy():
    starved = [sample(second, hub_lag_max_ns=ms(900)) for second in range(1, 11)]
    found = checks(streams(20, 1, 16, 400), samples=starved)
    assert not found["hub_lag"].passed
    assert "lumps" not in found
