"""Claims about the engine's model: queueing theory where it has the answer, vLLM's rules elsewhere."""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.mock.engine import Engine, Job, Refused, Token
from harness.mock.latency import Engine as Settings
from harness.mock.latency import Seconds, StepTime, load_profile

MS = 1_000_000
NS = 1_000_000_000
Arrivals = Sequence[tuple[int, Job]]


def step(
    base: float = 0.0, sequence: float = 0.0, kv_token: float = 0.0, prefill_token: float = 0.0
) -> StepTime:
    return StepTime(Seconds(base), Seconds(sequence), Seconds(kv_token), Seconds(prefill_token))


def poisson(jobs: Iterable[Job], mean_gap_ns: float, rng: random.Random) -> list[tuple[int, Job]]:
    now, arrivals = 0.0, []
    for job in jobs:
        now += rng.expovariate(1 / mean_gap_ns)
        arrivals.append((round(now), job))
    return arrivals


def simulate(engine: Engine, arrivals: Arrivals) -> tuple[dict[int, Token], dict[int, Refused]]:
    """Each finished job's last token, and the refusals."""
    last: dict[int, Token] = {}
    refused: dict[int, Refused] = {}
    for at_ns, job in arrivals:
        last.update((token.key, token) for token in engine.step(at_ns))
        answer = engine.arrive(at_ns, job)
        if answer is not None:
            refused[job.key] = answer
    while engine.next_ns is not None:
        last.update((token.key, token) for token in engine.step(engine.next_ns))
    return last, refused


def mean_wait_ns(engine: Engine, arrivals: Arrivals) -> float:
    last, _ = simulate(engine, arrivals)
    return statistics.fmean(last[job.key].admitted_ns - at_ns for at_ns, job in arrivals)


def mean_sojourn_ns(engine: Engine, arrivals: Arrivals) -> float:
    last, _ = simulate(engine, arrivals)
    return statistics.fmean(last[job.key].at_ns - at_ns for at_ns, job in arrivals)


def mean_gap_ns(arrivals: Arrivals) -> float:
    """As drawn: theory is asked about the very load that was simulated, which halves the error of chance."""
    return arrivals[-1][0] / len(arrivals)


def geometric(mean: float, rng: random.Random) -> int:
    return 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / mean))


# -- queueing theory (formulas: Kleinrock, Queueing Systems I and II) ---------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_one_sequence_at_a_time_waits_as_m_d_1(load: float):
    service_ns = 10 * MS
    arrivals = poisson((Job(i, 1, 1) for i in range(100_000)), service_ns / load, random.Random(1))
    wait_ns = mean_wait_ns(Engine(Settings(step(base=0.01), batch=1)), arrivals)
    rho = service_ns / mean_gap_ns(arrivals)
    assert wait_ns == pytest.approx(rho * service_ns / (2 * (1 - rho)), rel=0.03)


def test_one_prompt_at_a_time_waits_as_pollaczek_and_khinchine_say():
    rng = random.Random(2)
    prompts = [rng.choice((100, 200, 3000)) for _ in range(100_000)]
    jobs = (Job(i, prompt, 1) for i, prompt in enumerate(prompts))
    arrivals = poisson(jobs, 1100 * 1000 / 0.5, rng)
    one_at_a_time = Settings(step(prefill_token=1e-6), batch=1, step_tokens=10_000)
    wait_ns = mean_wait_ns(Engine(one_at_a_time), arrivals)
    second_moment = statistics.fmean((prompt * 1000) ** 2 for prompt in prompts)
    rho = statistics.fmean(prompts) * 1000 / mean_gap_ns(arrivals)
    assert wait_ns == pytest.approx(second_moment / mean_gap_ns(arrivals) / (2 * (1 - rho)), rel=0.03)


def erlang_c(servers: int, offered: float) -> float:
    terms = [offered**k / math.factorial(k) for k in range(servers + 1)]
    waiting = terms[-1] / (1 - offered / servers)
    return waiting / (sum(terms[:-1]) + waiting)


def waits_of_servers(servers: int, arrivals_ns: Sequence[float], services_ns: Sequence[float]) -> list[float]:
    """How long each arrival waits for a server: Kiefer and Wolfowitz's recursion."""
    free_ns = [0.0] * servers
    waits = []
    for arrived_ns, service_ns in zip(arrivals_ns, services_ns, strict=True):
        begun_ns = max(arrived_ns, free_ns[0])
        heapq.heapreplace(free_ns, begun_ns + service_ns)
        waits.append(begun_ns - arrived_ns)
    return waits


@pytest.mark.parametrize(
    ("batch", "load", "jobs"), [(1, 0.7, 200_000), (2, 0.7, 200_000), (4, 0.7, 200_000), (16, 0.8, 1_500_000)]
)
def test_a_batch_waits_as_m_m_c(batch: int, load: float, jobs: int):
    """By way of so many servers: the engine is cheaply compared with them, and they with Erlang C."""
    rng = random.Random(1)
    lengths = [geometric(100, rng) for _ in range(jobs)]
    services_ns = [length * MS for length in lengths]
    rate = batch * load / (100 * MS)
    arrivals_ns = list(accumulate(rng.expovariate(rate) for _ in range(jobs)))
    waits_ns = waits_of_servers(batch, arrivals_ns, services_ns)
    offered = sum(services_ns) / arrivals_ns[-1]
    erlang_ns = erlang_c(batch, offered) * statistics.fmean(services_ns) / (batch - offered)
    assert statistics.fmean(waits_ns) == pytest.approx(erlang_ns, rel=0.03)

    some = 3000
    arrivals = [(round(arrivals_ns[i]), Job(i, 1, lengths[i])) for i in range(some)]
    wait_ns = mean_wait_ns(Engine(Settings(step(base=0.001), batch=batch)), arrivals)
    # Who finds a free place in a batch under way waits for the end of its step: half of one.
    half_ns = 0.5 * MS if batch > 1 else 0.0
    assert wait_ns == pytest.approx(statistics.fmean(waits_ns[:some]) + half_ns, rel=0.01)


def test_without_a_queue_as_many_are_refused_as_erlang_b_says():
    rng = random.Random(4)
    lengths = [geometric(40, rng) for _ in range(40_000)]
    arrivals = poisson((Job(i, 1, n) for i, n in enumerate(lengths)), 40 * MS / 2.5, rng)
    _, refused = simulate(Engine(Settings(step(base=0.001), batch=3, queue=0)), arrivals)
    offered = statistics.fmean(lengths) * MS / mean_gap_ns(arrivals)
    terms = [offered**k / math.factorial(k) for k in range(4)]
    assert len(refused) / len(arrivals) == pytest.approx(terms[-1] / sum(terms), rel=0.03)
    assert {answer.status for answer in refused.values()} == {503}


@pytest.mark.parametrize("load", [0.4, 0.7])
@pytest.mark.parametrize("lengths", [(40,), (20, 20, 20, 100)])
def test_steps_that_grow_with_the_batch_share_the_engine_as_m_g_1_ps(lengths: Sequence[int], load: float):
    """The mean depends on the mean length alone, whatever its spread."""
    rng = random.Random(1)
    drawn = [rng.choice(lengths) for _ in range(25_000)]
    arrivals = poisson((Job(i, 1, n) for i, n in enumerate(drawn)), 40 * 100_000 / load, rng)
    shared = Settings(step(sequence=1e-4, prefill_token=1e-4), batch=10_000, step_tokens=10_000)
    sojourn_ns = mean_sojourn_ns(Engine(shared), arrivals)
    service_ns = statistics.fmean(drawn) * 100_000
    assert sojourn_ns == pytest.approx(service_ns / (1 - service_ns / mean_gap_ns(arrivals)), rel=0.03)


@pytest.mark.parametrize("batch", [1, 8, 32, 256])
def test_a_full_batch_delivers_its_tokens_at_the_rate_of_its_steps(batch: int):
    output, rounds = 50, 10
    engine = Engine(Settings(step(0.006, 2e-5, 5e-8, 3e-5), batch=batch, step_tokens=100 * batch))
    jobs = [(0, Job(i, 100, output)) for i in range(rounds * batch)]
    last, _ = simulate(engine, jobs)
    took_s = max(token.at_ns for token in last.values()) / NS
    prefill_s = 0.006 + 100 * 3e-5 * batch
    decode_s = sum(0.006 + batch * (2e-5 + 5e-8 * (100 + i)) for i in range(output - 1))
    assert took_s == pytest.approx(rounds * (prefill_s + decode_s), rel=0.03)


def test_jitter_keeps_the_mean_and_has_the_stated_spread():
    engine = Engine(Settings(step(base=0.01), jitter=0.2), seed=1)
    engine.arrive(0, Job(1, 1, 20_000))
    at_ns = [0]
    while engine.next_ns is not None:
        at_ns += [token.at_ns for token in engine.step(engine.next_ns)]
    gaps = [after - before for before, after in pairwise(at_ns)]
    assert statistics.fmean(gaps) == pytest.approx(10 * MS, rel=0.01)
    assert statistics.stdev(map(math.log, gaps)) == pytest.approx(0.2, rel=0.03)


# -- the rules of continuous batching -----------------------------------------------------------------------


def times_ms(engine: Engine, *arrivals: tuple[float, Job]) -> dict[int, list[float]]:
    """When each job's tokens come, in milliseconds."""
    tokens: list[Token] = []
    for at_ms, job in arrivals:
        tokens += engine.step(round(at_ms * MS))
        assert engine.arrive(round(at_ms * MS), job) is None
    while engine.next_ns is not None:
        tokens += engine.step(engine.next_ns)
    found: dict[int, list[float]] = {}
    for token in tokens:
        found.setdefault(token.key, []).append(token.at_ns / MS)
    return found


def test_an_arrival_joins_the_batch_at_the_next_step():
    engine = Engine(Settings(step(base=0.010)))
    assert times_ms(engine, (0, Job(1, 5, 4)), (12, Job(2, 5, 2))) == {1: [10, 20, 30, 40], 2: [30, 40]}


def test_a_long_prompt_is_computed_in_chunks_beside_others_tokens():
    engine = Engine(Settings(step(base=0.010, prefill_token=1e-5), step_tokens=101))
    found = times_ms(engine, (0, Job(1, 100, 6)), (1, Job(2, 250, 1)))
    # Three steps compute 100, 100 and 50 tokens of the second prompt; each gives the first one token.
    assert found == {1: [11, 22, 33, 43.5, 53.5, 63.5], 2: [43.5]}


def test_a_cached_prefix_shortens_the_prefill_by_its_tokens():
    engine = Engine(Settings(step(prefill_token=1e-5)))
    assert times_ms(engine, (0, Job(1, 1000, 1))) == {1: [10]}
    assert times_ms(engine, (100, Job(2, 1000, 1, cached_tokens=640))) == {2: [103.6]}


def test_of_a_prompt_that_is_cached_whole_the_last_token_is_computed():
    engine = Engine(Settings(step(prefill_token=1e-3)))
    assert times_ms(engine, (0, Job(1, 640, 1, cached_tokens=640))) == {1: [1]}


def test_steps_grow_with_the_tokens_in_the_kv_cache():
    engine = Engine(Settings(step(base=0.010, kv_token=1e-6)))
    assert times_ms(engine, (0, Job(1, 1000, 3))) == {1: [10, 21, 32.001]}


def test_the_youngest_is_preempted_when_blocks_run_out_and_starts_over():
    engine = Engine(Settings(step(base=0.010), kv_blocks=4, block_tokens=2, step_tokens=100))
    found = times_ms(engine, (0, Job(1, 3, 5)), (1, Job(2, 2, 3)))
    # The first takes the last block, so that the second loses its own after its first token; when the first
    # has finished, the second's prompt and token are computed again, which gives its next token.
    assert engine.preemptions == 1
    assert found == {1: [10, 20, 30, 40, 50], 2: [20, 60, 70]}


def test_a_waiting_request_holds_back_those_behind_it():
    engine = Engine(Settings(step(base=0.010), kv_blocks=4, block_tokens=1))
    found = times_ms(engine, (0, Job(1, 2, 2)), (1, Job(2, 3, 1)), (2, Job(3, 1, 1)))
    assert found == {1: [10, 20], 2: [30], 3: [30]}


def test_beyond_the_accounts_concurrency_429():
    engine = Engine(Settings(step(base=0.010), concurrency=2))
    answers = [engine.arrive(0, Job(i, 1, 5)) for i in range(3)]
    assert [answer and answer.status for answer in answers] == [None, None, 429]
    engine.step(50 * MS)
    assert engine.arrive(60 * MS, Job(4, 1, 1)) is None


@pytest.mark.parametrize("status", [429, 503])
def test_beyond_the_queue_the_stated_status(status: int):
    engine = Engine(Settings(step(base=0.010), batch=1, queue=2, queue_status=status))
    answers = [engine.arrive(0, Job(i, 1, 5)) for i in range(4)]
    assert [answer and answer.status for answer in answers] == [None, None, None, status]


def test_what_can_never_fit_is_refused_with_400():
    engine = Engine(Settings(step(base=0.010), kv_blocks=10, block_tokens=16))
    assert engine.arrive(0, Job(1, 100, 60)) is None
    refused = engine.arrive(0, Job(2, 100, 61))
    assert refused is not None
    assert refused.status == 400
    assert "160 tokens" in refused.reason


def test_who_leaves_frees_slot_and_blocks_for_the_next_step():
    engine = Engine(Settings(step(base=0.010), batch=1, kv_blocks=100))
    engine.arrive(0, Job(1, 100, 100))
    engine.arrive(0, Job(2, 1, 1))
    engine.leave(5 * MS, 1)
    assert (engine.running, engine.waiting, engine.kv_usage) == (0, 1, 0.0)
    assert engine.step(100 * MS) == [Token(2, 20 * MS, 10 * MS)]


def test_who_leaves_the_queue_is_never_run():
    engine = Engine(Settings(step(base=0.010), batch=1))
    for key in (1, 2, 3):
        engine.arrive(0, Job(key, 1, 1))
    engine.leave(1 * MS, 2)
    engine.leave(1 * MS, 99)
    assert [token.key for token in engine.step(100 * MS)] == [1, 3]


jobs = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 60), st.integers(1, 20), st.integers(0, 60), st.booleans()),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(jobs, st.integers(1, 6), st.integers(1, 40), st.integers(1, 8), st.integers(0, 10))
def test_whatever_comes_no_token_is_lost_and_no_block_is_leaked(
    drawn: list[tuple[int, int, int, int, bool]], batch: int, step_tokens: int, block_tokens: int, jitter: int
):
    engine = Engine(
        Settings(
            step(0.002, 1e-4, 1e-6, 1e-5),
            jitter=jitter / 10,
            batch=batch,
            step_tokens=step_tokens,
            kv_blocks=-(-80 // block_tokens),
            block_tokens=block_tokens,
        )
    )
    now, tokens, staying, left = 0, [], {}, set()
    for key, (gap_ms, prompt, output, cached, leaves) in enumerate(drawn):
        now += gap_ms * MS
        tokens += engine.step(now)
        assert engine.arrive(now, Job(key, prompt, output, min(cached, prompt))) is None
        if leaves:
            engine.leave(now, key)
            left.add(key)
        else:
            staying[key] = output
        assert 0.0 <= engine.kv_usage <= 1.0
        assert engine.running <= batch
    while engine.next_ns is not None:
        tokens += engine.step(engine.next_ns)
    times = [token.at_ns for token in tokens]
    assert times == sorted(times)
    assert {key: sum(token.key == key for token in tokens) for key in staying} == staying
    assert not left & {token.key for token in tokens}
    assert (engine.running, engine.waiting, engine.kv_usage) == (0, 0, 0.0)


def test_the_same_seed_and_arrivals_repeat_every_token():
    def tokens(seed: int) -> list[Token]:
        engine = Engine(Settings(step(0.01), jitter=0.3), seed=seed)
        for key in range(20):
            engine.arrive(0, Job(key, 10, 10))
        return engine.step(60 * NS)

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


# -- profiles -----------------------------------------------------------------------------------------------


def decode_ms(profile: str, streams: int) -> float:
    """The gap between tokens with that many streams of 300 tokens of context under way."""
    chosen = load_profile(profile).engine
    assert chosen is not None
    engine = Engine(chosen, seed=1)
    for key in range(streams):
        assert engine.arrive(0, Job(key, 300, 60)) is None
    last: list[int] = []
    while engine.next_ns is not None:
        last += [token.at_ns for token in engine.step(engine.next_ns) if token.key == 0]
    return (last[-1] - last[9]) / 50 / MS


@pytest.mark.parametrize(
    ("profile", "streams", "low_ms", "high_ms"),
    [
        ("vllm-h100-8b", 1, 6.2, 6.7),
        ("vllm-h100-8b", 4, 6.3, 6.9),
        ("deepseek-7b", 1, 11, 13),
        ("deepseek-67b", 1, 22, 26),
        ("deepseek-flash", 1, 13, 17),
        ("deepseek-v4-pro", 1, 25, 31),
        ("deepseek-v4-pro", 500, 41, 50),
    ],
)
def test_built_in_engines_decode_at_the_documented_speed(
    profile: str, streams: int, low_ms: float, high_ms: float
):
    assert low_ms < decode_ms(profile, streams) < high_ms


@pytest.mark.parametrize(("profile", "limit"), [("deepseek-flash", 2500), ("deepseek-v4-pro", 500)])
def test_hosted_models_refuse_beyond_their_documented_concurrency(profile: str, limit: int):
    chosen = load_profile(profile).engine
    assert chosen is not None
    engine = Engine(chosen)
    answers = [engine.arrive(0, Job(key, 10, 10)) for key in range(limit + 1)]
    assert [answer.status for answer in answers if answer] == [429]


@pytest.mark.parametrize(
    ("engine", "key", "hint"),
    [
        ("{batch: 4}", "engine.step", "missing"),
        ("{step: {base: 5}}", "engine.step.base", "with its unit"),
        ("{step: {base: 5ms, each: 1ms}}", "engine.step.each", "known here: `base`"),
        ("{step: {base: 5ms}, batch: 0}", "engine.batch", ">= 1"),
        ("{step: {base: 5ms}, queue_status: 500}", "engine.queue_status", "one of `429`, `503`"),
        ("{step: {base: 5ms}, jitter: -1}", "engine.jitter", ">= 0"),
        ("{step: {sequence: 0s}}", "engine.step", "longer than nothing"),
    ],
)
def test_mistakes_in_an_engine_are_named_with_their_key(tmp_path: Path, engine: str, key: str, hint: str):
    path = tmp_path / "mine.yaml"
    path.write_text(f"engine: {engine}")
    with pytest.raises(ConfigError, match=hint) as caught:
        load_profile(str(path))
    assert caught.value.key == key
