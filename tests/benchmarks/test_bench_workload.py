"""What the load generator pays for its schedule and its requests."""

from __future__ import annotations

from collections import deque

import pytest

from harness.workload.prompts import Corpus, workload
from harness.workload.scenario import Constant, Gamma, Poisson, Ramp, Scenario, Seconds, load, shipped
from harness.workload.schedule import arrivals, shard

PROCESSES = [Constant(rate=1000), Poisson(rate=1000), Gamma(rate=1000, cv=2), Ramp(start=0, end=2000)]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_walking_a_schedule_of_about_100_000_arrivals(benchmark, process):
    scenario = Scenario(arrivals=process, duration_s=Seconds(100))
    benchmark(lambda: deque(arrivals(scenario), maxlen=0))


def test_taking_one_of_four_shards_of_100_000_arrivals(benchmark):
    scenario = Scenario(arrivals=Poisson(rate=1000), duration_s=Seconds(100))
    benchmark(lambda: deque(shard(arrivals(scenario), 1, 4), maxlen=0))


@pytest.mark.parametrize("name", ["default", "stream-heavy"])
def test_building_the_requests_of_1_000_arrivals(benchmark, name):
    ask = workload(load(shipped(name)))
    benchmark(lambda: deque(map(ask, range(1000)), maxlen=0))


def test_setting_up_the_corpus(benchmark):
    benchmark(Corpus, 1)


def test_loading_a_scenario_file(benchmark):
    benchmark(load)
