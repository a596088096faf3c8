"""Claims about the fit of a mock's profile to a run: it finds what the run was made with."""

from __future__ import annotations

import math
import random
from pathlib import Path

import factories
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from harness.analysis.fit import Fit, distribution, fit, profile_text
from harness.cli import main
from harness.errors import ConfigError
from harness.mock.engine import Engine, Job
from harness.mock.latency import Engine as Settings
from harness.mock.latency import Fixed, LogNormal, Profile, Quantiles, Seconds, StepTime, draw_s, load_profile
from harness.record import Usage

MS = 1_000_000


def observed(settings: Settings, *, requests: int, rate: float, delay_ms: float = 4.0) -> pa.Table:
    """A run against that engine: Poisson arrivals, 30 % of prompts half cached, noise of 0.3 ms on stamps."""
    rng = random.Random(1)
    engine = Engine(settings, seed=1)
    at_ns, jobs, chunks = 0, {}, {}
    for key in range(requests):
        at_ns += round(rng.expovariate(rate) * 1e9)
        prompt = rng.randint(50, 1500)
        job = Job(key, prompt, rng.randint(5, 120), int(0.5 * prompt) if rng.random() < 0.3 else 0)
        for token in engine.step(at_ns):
            chunks.setdefault(token.key, []).append(token.at_ns)
        assert engine.arrive(at_ns, job) is None
        jobs[key] = (at_ns, job)
    while engine.next_ns is not None:
        for token in engine.step(engine.next_ns):
            chunks.setdefault(token.key, []).append(token.at_ns)
    records = []
    for key, (sent_ns, job) in jobs.items():
        noise = (round(abs(rng.gauss(0, 0.3)) * MS) for _ in chunks[key])
        seen = np.maximum.accumulate(
            [stamp + round(delay_ms * MS) + more for stamp, more in zip(chunks[key], noise, strict=True)]
        ).tolist()
        usage = Usage(job.prompt_tokens, len(seen), cached=job.cached_tokens)
        records.append(
            factories.stream(
                seq=key,
                due_ns=sent_ns,
                sent_ns=sent_ns,
                first_token_ns=seen[0],
                chunk_ns=seen,
                ended_ns=seen[-1],
                usage=usage,
            )
        )
    return factories.table(records)


def saved(found: Fit, folder: Path) -> Profile:
    path = folder / "fitted.yaml"
    path.write_text(profile_text(found, "a-run"))
    return load_profile(str(path))


H100 = Settings(
    StepTime(Seconds(0.0064), Seconds(1e-4), Seconds(5.2e-8), Seconds(3.2e-5)), jitter=0.05, step_tokens=8192
)


def test_the_shares_of_an_engines_step_are_found(tmp_path: Path):
    found = fit(observed(H100, requests=1500, rate=10), "run")
    assert found.engine is not None
    truth = {"base": 6.4e-3, "sequence": 1e-4, "kv_token": 5.2e-8, "prefill_token": 3.2e-5}
    assert set(found.engine) == set(truth)
    for name, value_s in truth.items():
        share = found.engine[name]
        assert share.value_s == pytest.approx(value_s, rel=0.1), name
        assert share.low_s <= value_s * 1.01, name
        assert share.high_s >= value_s * 0.99, name
    assert found.explained > 0.8
    assert found.ttft.mean_s == pytest.approx(0.004, abs=0.0015)
    profile = saved(found, tmp_path)
    assert profile.engine is not None
    assert profile.engine.step.base_s == pytest.approx(found.engine["base"].value_s, rel=1e-3)


def test_a_fitted_engine_replays_the_run_it_was_fitted_to(tmp_path: Path):
    """Means and tails of TTFT and gaps, at the same load; and at twice the load, which it never saw."""
    profile = saved(fit(observed(H100, requests=1200, rate=10), "run"), tmp_path)
    assert profile.engine is not None
    assert isinstance(profile.ttft, Fixed)
    delay_ms = profile.ttft.value_s * 1e3
    for rate in (10, 20):
        real = observed(H100, requests=600, rate=rate)
        replayed = observed(profile.engine, requests=600, rate=rate, delay_ms=delay_ms)
        for of in (_ttft_s, _gaps_s):
            for share in (0.5, 0.9):
                expected = pytest.approx(np.quantile(of(real), share), rel=0.1)
                assert np.quantile(of(replayed), share) == expected


def _ttft_s(table: pa.Table) -> np.ndarray:
    return (table.column("first_token_ns").to_numpy() - table.column("sent_ns").to_numpy()) / 1e9


def _gaps_s(table: pa.Table) -> np.ndarray:
    return np.concatenate([np.diff(chunks) for chunks in table.column("chunk_ns").to_pylist()]) / 1e9


def plain(requests: int = 400, tokens: int = 30) -> pa.Table:
    """A run against a service whose latency does not depend on us."""
    rng = random.Random(2)
    ttft, itl = LogNormal(Seconds(0.8), 0.4), LogNormal(Seconds(0.015), 0.5)
    records = []
    for seq in range(requests):
        sent_ns = seq * 200 * MS
        stamps = [sent_ns + round(draw_s(ttft, rng) * 1e9)]
        for _ in range(tokens - 1):
            stamps.append(stamps[-1] + round(draw_s(itl, rng) * 1e9))
        usage = Usage(rng.randint(10, 500), tokens)
        records.append(
            factories.stream(
                seq=seq,
                due_ns=sent_ns,
                sent_ns=sent_ns,
                first_token_ns=stamps[0],
                chunk_ns=stamps,
                ended_ns=stamps[-1],
                usage=usage,
            )
        )
    return factories.table(records)


def test_where_load_does_not_show_the_distributions_are_found(tmp_path: Path):
    found = fit(plain(), "run")
    assert found.engine is None
    profile = saved(found, tmp_path)
    assert isinstance(profile.ttft, LogNormal)
    assert isinstance(profile.itl, LogNormal)
    assert profile.ttft.median_s == pytest.approx(0.8, rel=0.1)
    assert profile.ttft.sigma == pytest.approx(0.4, rel=0.1)
    assert profile.itl.median_s == pytest.approx(0.015, rel=0.03)
    assert profile.itl.sigma == pytest.approx(0.5, rel=0.03)
    assert profile.output_tokens == 30
    assert "not identifiable" in profile_text(found, "a-run")


def test_a_run_with_too_few_streams_is_refused_with_the_number_needed():
    with pytest.raises(ConfigError, match=r"streams is 12: .* at least 30"):
        fit(plain(requests=12), "runs/x")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.full(100, 0.01), "fixed"),
        (np.zeros(100), "fixed"),
        (np.exp(np.random.default_rng(1).normal(-4, 0.3, 2000)), "lognormal"),
        (np.concatenate([np.full(500, 0.1), np.full(500, 1.0)]), "quantiles"),
        (np.concatenate([np.zeros(300), np.full(700, 0.02)]), "quantiles"),
    ],
)
def test_the_simplest_distribution_that_is_close_is_taken(values: np.ndarray, kind: str):
    assert distribution(values).kind == kind


def test_draws_from_fitted_quantiles_have_the_quantiles_of_the_run():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0.1, 0.01, 700), rng.normal(1.0, 0.1, 300)])
    points = distribution(values).parameters["points"]
    assert isinstance(points, list)
    drawn_from = Quantiles([(share, Seconds(at_s)) for share, at_s in points])
    draws = random.Random(4)
    drawn = np.array([draw_s(drawn_from, draws) for _ in range(20_000)])
    for share in (0.05, 0.25, 0.5, 0.9, 0.99):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(values, share), rel=0.05)
    assert math.isclose(drawn.mean(), values.mean(), rel_tol=0.02)


def test_the_command_prints_a_profile_for_a_run(tmp_path: Path):
    run = tmp_path / "20260101T000000Z-mine"
    run.mkdir()
    pq.write_table(plain(), run / "requests.parquet")
    told = CliRunner().invoke(main, ["mock", "fit", str(run)])
    assert told.exit_code == 0, told.output
    path = tmp_path / "mine.yaml"
    path.write_text(told.stdout)
    assert load_profile(str(path)).description == "fitted to 20260101T000000Z-mine"
    assert CliRunner().invoke(main, ["mock", "fit", str(tmp_path)]).exit_code == 2
