"""pool.py: whoever raises the pool as the remedy says has a valid run."""

from __future__ import annotations

import math
import re
from random import Random

import pyarrow as pa
import pytest
from factories import dropped, manifest, ms, record, run, table

from harness.analysis.measures import measure
from harness.analysis.pool import remedy
from harness.analysis.validity import validate
from harness.slo.objectives import parse

WINDOW = (0.0, 10.0)


class Load:
    """A schedule, and how long each of its answers takes, however many users there are."""

    def __init__(self, due_s, busy_s, *, kinds=("completion",), workers=1, traffic=None):
        self.due_s, self.busy_s, self.kinds, self.workers = due_s, busy_s, kinds, workers
        self.traffic = traffic or [{"kind": kind, "weight": 1.0, "users": None} for kind in set(kinds)]

    def users(self, kind, most):
        """What one worker has of a kind's users, as Locust deals them out."""
        fixed = sum(each["users"] or 0 for each in self.traffic)
        own = [each for each in self.traffic if each["kind"] == kind]
        if own[0]["users"]:
            return own[0]["users"] // self.workers
        weights = sum(each["weight"] for each in self.traffic if not each["users"])
        return int((most - fixed) * own[0]["weight"] / weights) // self.workers

    def check(self, most, *, patience_s=0.0, window=WINDOW):
        """The check of dropped arrivals of a run with so many users."""
        free = {
            (worker, kind): [0.0] * self.users(kind, most)
            for worker in range(self.workers)
            for kind in set(self.kinds)
        }
        rows = [[] for _ in range(self.workers)]
        for seq, (due_s, busy_s) in enumerate(zip(self.due_s, self.busy_s, strict=True)):
            worker, kind = seq % self.workers, self.kinds[seq % len(self.kinds)]
            users = free[worker, kind]
            start_s = max(due_s, min(users, default=math.inf))
            if start_s > due_s + patience_s:
                rows[worker].append(dropped(seq=seq, kind=kind, due_ns=ms(1000 * due_s)))
                continue
            users[users.index(min(users))] = start_s + busy_s
            waited = ms(1000 * due_s) if start_s > due_s else None
            stamps = {"started_ns": ms(1000 * start_s), "ended_ns": ms(1000 * (start_s + busy_s))}
            rows[worker].append(
                record(seq=seq, kind=kind, due_ns=ms(1000 * due_s), queued_ns=waited, **stamps)
            )
        merged = pa.concat_tables([table(own, worker=worker) for worker, own in enumerate(rows)])
        scenario = {"max_in_flight": most, "traffic": self.traffic}
        found = validate(
            measure(merged),
            [parse("errors: rate < 60%")],
            window,
            run=run(scenario=scenario, workers=self.workers),
            manifest=manifest(len(merged)),
            samples=[],
        )
        return next(check for check in found.checks if check.name == "dropped")


def poisson(rate, seed=1):
    random, now_s, due_s = Random(seed), 0.0, []
    while (now_s := now_s + random.expovariate(rate)) < WINDOW[1]:
        due_s.append(now_s)
    return due_s


def exponential(n, mean_s, seed=2):
    random = Random(seed)
    return [random.expovariate(1 / mean_s) for _ in range(n)]


def even(rate):
    return [seq / rate for seq in range(int(WINDOW[1] * rate))]


STEADY = poisson(60)
BURST = sorted(even(5) + [3.0] * 100)
LOADS = {
    "poisson": Load(STEADY, exponential(len(STEADY), 0.3)),
    "a burst at once": Load(BURST, [0.25] * len(BURST)),
    "a burst that takes various times": Load(BURST, exponential(len(BURST), 0.3)),
    "four workers": Load(STEADY, exponential(len(STEADY), 0.3), workers=4),
    "four workers and a burst": Load(BURST, [0.25] * len(BURST), workers=4),
    "a kind of every tenth arrival": Load(
        even(60),
        exponential(600, 0.3),
        kinds=("stream", *("completion",) * 9),
        workers=2,
        traffic=[
            {"kind": "stream", "weight": 1.0, "users": None},
            {"kind": "completion", "weight": 9.0, "users": None},
        ],
    ),
    "a kind that is slower than its weight says": Load(
        even(60),
        [0.8 if seq % 10 == 0 else 0.1 for seq in range(600)],
        kinds=("stream", *("completion",) * 9),
        traffic=[
            {"kind": "stream", "weight": 1.0, "users": None},
            {"kind": "completion", "weight": 9.0, "users": None},
        ],
    ),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("patience_s", [0.0, 0.5])
def test_the_remedy_makes_the_run_valid(load, patience_s):
    found = load.check(16, patience_s=patience_s)
    assert not found.passed
    advised = re.fullmatch(r"raise max_in_flight to (\d+)", found.remedy)
    assert advised, found.remedy
    assert load.check(int(advised[1]), patience_s=patience_s).passed


@pytest.mark.parametrize(
    ("load", "most"),
    [("poisson", 55), ("a burst at once", 110), ("four workers", 100), ("four workers and a burst", 132)],
)
def test_the_remedy_asks_for_no_more_than_the_peak_and_four_standard_deviations(load, most):
    assert int(LOADS[load].check(16).remedy.split()[-1]) <= most


def test_where_a_kind_has_users_of_its_own_those_are_to_be_raised():
    load = Load(
        even(60),
        [0.5 if seq % 2 else 0.1 for seq in range(600)],
        kinds=("completion", "stream"),
        traffic=[
            {"kind": "completion", "weight": 1.0, "users": None},
            {"kind": "stream", "weight": 1.0, "users": 4},
        ],
    )
    found = load.check(20)
    advised = re.fullmatch(
        r"raise the `users` of kind stream to (\d+) and raise max_in_flight to (\d+)", found.remedy
    )
    assert advised, found.remedy
    load.traffic[1]["users"] = int(advised[1])
    assert load.check(int(advised[2])).passed


@pytest.mark.parametrize(("window", "fewest", "most"), [((5.0, 10.0), 30, 60), ((0.0, 10.0), 60, 120)])
def test_the_pool_is_for_the_window(window, fewest, most):
    """Three hundred a second in the first four seconds, then sixty."""
    due_s = [seq / 300 for seq in range(1200)] + [5 + seq / 60 for seq in range(300)]
    found = Load(due_s, [0.2] * 1200 + [0.5] * 300).check(16, window=window)
    assert fewest <= int(found.remedy.split()[-1]) <= most


def test_of_a_kind_that_was_never_served_nothing_is_known():
    rows = [dropped(seq=seq) for seq in range(100)]
    assert remedy(measure(table(rows)), WINDOW, run()) == ""
