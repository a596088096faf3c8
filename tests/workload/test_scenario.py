"""Claims about scenario files: what they mean, and how they fail."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import get_args

import jsonschema
import msgspec
import pytest
import yaml
from factories import record, table
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from harness import preflight
from harness.analysis import budgets as analysis
from harness.errors import ConfigError
from harness.workload import scenario as scenarios
from harness.workload.prompts import workload
from harness.workload.scenario import (
    Closed,
    Fixed,
    Poisson,
    Replay,
    Scenario,
    Seconds,
    Steps,
    check,
    from_builtins,
    load,
    override,
    schema,
    seconds,
    shipped,
    to_builtins,
)
from harness.workload.schedule import arrivals, planned

EXAMPLES = sorted(shipped("default").parent.glob("*.yaml"))
REPOSITORY = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "load.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def blame(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text))
    return caught.value


# -- examples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_shipped_example_loads_and_asks_something(path):
    scenario = load(path)
    assert scenario.name == path.stem
    assert workload(scenario)(0)
    assert (planned(scenario) is None) == isinstance(scenario.arrivals, Closed)


def test_the_examples_show_every_kind_every_process_bursts_and_sessions():
    shown = [load(path) for path in EXAMPLES]
    assert {entry.kind for each in shown for entry in each.traffic} == {"completion", "stream", "batch"}
    assert {type(each.arrivals) for each in shown} == set(get_args(scenarios.Arrivals))
    assert any(each.bursts for each in shown)
    assert any(entry.turns != 1 for each in shown for entry in each.traffic)


def test_without_a_path_the_default_is_loaded():
    assert load() == load(shipped("default")) == load(Path("default"))


def test_the_default_has_enough_requests_to_decide_both_default_objectives():
    scenario = load()
    ask = workload(scenario)
    requests = [request for arrival in arrivals(scenario) for request in ask(arrival.seq)]
    assert scenario.duration_s == 30
    assert scenario.arrivals == Poisson(rate=120)
    assert len(requests) > 3600
    assert {request.kind for request in requests} == {"completion", "stream", "batch"}
    assert scenario.objectives == Scenario().objectives


@pytest.mark.parametrize("seed", range(20))
def test_the_default_has_enough_requests_whatever_the_seed(seed):
    scenario = override(load(), seed=seed)
    ask = workload(scenario)
    assert sum(len(ask(arrival.seq)) for arrival in arrivals(scenario)) > 3600


def test_the_deepseek_example_has_enough_streams_to_decide_a_p99():
    scenario = load(shipped("deepseek"))
    ask = workload(scenario)
    kinds = [ask(arrival.seq)[0].kind for arrival in arrivals(scenario)]
    assert kinds.count("stream") >= 299


def test_an_unknown_example_lists_those_there_are():
    with pytest.raises(ConfigError, match="did you mean `smoke`") as caught:
        load(Path("smok"))
    assert "default" in caught.value.remedy


def test_paths_are_resolved_against_the_scenario_file(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n')
    (tmp_path / "t.csv").write_text("timestamp\n1\n")
    (tmp_path / "f.yaml").write_text("{}")
    text = """
traffic: [{kind: completion, prompt: {source: jsonl, path: p.jsonl}}]
arrivals: {process: replay, path: ./t.csv}
mock: {profile: f.yaml, faults: f.yaml}
objectives: [f.yaml, "errors: rate < 1%"]
"""
    scenario = load(write(tmp_path, text))
    assert scenario.traffic[0].prompt.path == str(tmp_path / "p.jsonl")
    assert scenario.arrivals.path == str(tmp_path / "t.csv")
    assert scenario.mock.faults == scenario.mock.profile == scenario.objectives[0] == str(tmp_path / "f.yaml")
    assert scenario.objectives[1] == "errors: rate < 1%"


# -- mistakes in one key --------------------------------------------------------------------------------

ONE_KEY = [
    ("durations: 30s", "durations", "30s", "did you mean `duration`"),
    ("zzz: 1", "zzz", 1, "known here: `name`, `description`, `target`"),
    ("duration: 30", "duration", 30, "did you mean `30s`"),
    ("duration: 30 days", "duration", "30 days", "with its unit: `250ms`"),
    ("duration: -5s", "duration", "-5s", "with its unit"),
    ("duration: [1s]", "duration", ["1s"], "with its unit"),
    ("duration: 0s", "duration", "0s", "longer than 0s"),
    ("seed: '1'", "seed", "1", "expected a whole number, got text"),
    ("seed: -1", "seed", -1, "expected a whole number >= 0"),
    ("count: 0", "count", 0, ">= 1"),
    ("name: a/b", "name", "a/b", "write letters, digits, `.`, `_` and `-`"),
    ("name: ''", "name", "", "beginning with a letter or a digit"),
    ("telemetry: 1", "telemetry", 1, "expected true or false, got a whole number"),
    ("dialect: chaat", "dialect", "chaat", "did you mean `chat`"),
    ("models: [a]", "models", ["a"], "expected a mapping, got a list"),
    ("models: {a: 0}", "models.a", 0, "expected a number > 0"),
    ("models: {a: 1, gpt-4.1: -1, c: -2}", "models.gpt-4.1", -1, "expected a number > 0"),
    ("models: {a: 1, b: many}", "models.b", "many", "expected a number, got text"),
    ("models: {1: 1}", "models", 1, 'write "1" in quotes'),
    ("traffic: []", "traffic", [], "a list of length >= 1"),
    ("traffic: [{weight: 1}]", "traffic[0].kind", None, "is missing; it is one of `batch`, `completion`"),
    ("traffic: [{kind: streem}]", "traffic[0].kind", "streem", "did you mean `stream`"),
    ("traffic: [{kind: stream, wait: 1}]", "traffic[0].wait", 1, "did you mean `weight`"),
    ("traffic: [{kind: stream}, {kind: stream, weight: -1}]", "traffic[1].weight", -1, "a number >= 0"),
    ("traffic: [{kind: stream, weight: .inf}]", "traffic[0].weight", float("inf"), "finite"),
    ("traffic: [{kind: batch, size: 5000}]", "traffic[0].size", 5000, "<= 1000"),
    (
        "traffic: [{kind: stream, output: {distribution: uniform, low: 0, high: 9}}]",
        "traffic[0].output.low",
        0,
        "a whole number >= 1",
    ),
    (
        "traffic: [{kind: stream, prompt: {source: synthetic, tokens: {distribution: uniform, lo: 1}}}]",
        "traffic[0].prompt.tokens.lo",
        1,
        "did you mean `low`? known here: `distribution`, `low`, `high`",
    ),
    (
        "traffic: [{kind: stream, parameters: {temperature: 3}}]",
        "traffic[0].parameters.temperature",
        3,
        "a number <= 2",
    ),
    (
        "traffic: [{kind: stream, parameters: {max_tokens: 3}}]",
        "traffic[0].parameters.max_tokens",
        3,
        "unknown key",
    ),
    (
        "traffic: [{kind: stream, prompt: hello}]",
        "traffic[0].prompt",
        "hello",
        "expected a mapping, got text",
    ),
    ("traffic: [{kind: stream, tags: {a: 1}}]", "traffic[0].tags.a", 1, "expected text"),
    ("arrivals: {rate: 3}", "arrivals.process", None, "it is one of `closed`, `constant`, `poisson`"),
    ("arrivals: {process: poison, rate: 3}", "arrivals.process", "poison", "did you mean `poisson`"),
    ("arrivals: {process: poisson}", "arrivals.rate", None, "is missing"),
    ("arrivals: {process: poisson, rte: 3}", "arrivals.rte", 3, "did you mean `rate`"),
    ("arrivals: {process: poisson, rate: 0}", "arrivals.rate", 0, "a number > 0"),
    ("arrivals: {process: poisson, rate: .nan}", "arrivals.rate", None, "finite"),
    ("arrivals: 3", "arrivals", 3, "expected a mapping"),
    ("arrivals: {process: steps, steps: [{rate: 1, for: 5}]}", "arrivals.steps[0].for", 5, "`5s`"),
    ("retries: {statuses: [200]}", "retries.statuses[0]", 200, ">= 400"),
    ("retries: {outcomes: [ok]}", "retries.outcomes[0]", "ok", "it is one of `connect_error`"),
    ("budgets: {latenes: 1ms}", "budgets.latenes", "1ms", "did you mean `lateness`"),
    ("budgets: {lateness: 10}", "budgets.lateness", 10, "did you mean `10s`"),
    ("budgets: {dropped_share: 2}", "budgets.dropped_share", 2, "a number <= 1"),
    ("window: all", "window", "all", "it is one of `auto`"),
    ("window: [1s]", "window", ["1s"], "expected a list of length 2"),
    ("window: [1s, 5]", "window[1]", 5, "did you mean `5s`"),
    ("steady_state: mser", "steady_state", "mser", "did you mean `mser5`"),
    ("bursts: [{at: 5s}]", "bursts[0].count", None, "is missing"),
    ("traffic: [{kind: stream, turns: 0}]", "traffic[0].turns", 0, ">= 1"),
    (
        "traffic: [{kind: stream, turns: two}]",
        "traffic[0].turns",
        "two",
        "a whole number or a mapping, got text",
    ),
    ("arrivals: {process: sine, rate: 3, amplitude: 2}", "arrivals.amplitude", 2, "a number <= 1"),
    ("arrivals: {process: replay, path: x, format: csv}", "arrivals.format", "csv", "it is one of `azure`"),
]


@pytest.mark.parametrize(("text", "key", "value", "remedy"), ONE_KEY, ids=[row[0] for row in ONE_KEY])
def test_a_mistake_names_file_key_value_and_remedy(tmp_path, text, key, value, remedy):
    error = blame(tmp_path, text)
    assert error.source == str(tmp_path / "load.yaml")
    assert error.key == key
    if value is not None:
        assert error.value == value
    assert remedy in error.remedy
    assert key in str(error)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("api_key: sk-123", "api_key"),
        ("traffic: [{kind: stream, parameters: {extra: {Authorization: sk-123}}}]", "extra.Authorization"),
        ("traffic: [{kind: stream, tags: {access-token: sk-123}}]", "traffic[0].tags.access-token"),
        ("mock: {password: sk-123}", "mock.password"),
        ("target: 'https://me:sk-123@api.example.org'", "target"),
        ("target: 'https://api.example.org?api_key=sk-123'", "target"),
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path, text, key):
    error = blame(tmp_path, f"{text}\nduration: 1s\n")
    assert error.key.endswith(key)
    assert "HARNESS_API_KEY" in error.remedy
    assert "sk-123" not in str(error)


@pytest.mark.parametrize("target", ["ftp://me:sk-123@api.example.org", "https://me:sk-123@", "me:sk-123@x"])
def test_a_secret_in_a_target_that_is_no_url_is_not_repeated(tmp_path, target):
    error = blame(tmp_path, f"target: '{target}'\nduration: 1s\n")
    assert error.key == "target"
    assert "sk-123" not in str(error)


@pytest.mark.parametrize("name", ["max_tokens", "tokens", "token_budget", "user", "monkey", "keyboard"])
def test_words_that_merely_contain_a_secret_s_name_are_no_secrets(name):
    scenarios.blame.screen({name: 1}, "file")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1, 2\nb: 3\n", "line 2, column 2"),
        ("name: a\nname: b\n", "line 2, column 1"),
        ("mock:\n  profile: demo\n  profile: fast\n", "line 3, column 3"),
        ("a:\n\tb: 1\n", "line 2, column 1"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1, column 4"),
        ("{[a]: 1}\n", "line 1, column 2"),
    ],
)
def test_bad_yaml_is_located_by_line_and_column(tmp_path, text, place):
    error = blame(tmp_path, text)
    assert f"is not valid YAML: {place}" in error.remedy


@pytest.mark.parametrize("text", ["", "- a\n", "just words\n", "a: \x01\n", "a: 2024-13-41\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    assert blame(tmp_path, text).key == ""


def test_a_file_that_contains_itself_is_refused(tmp_path):
    assert "nested too deeply" in blame(tmp_path, "tags: &a [*a]\n").remedy


def test_a_file_that_is_not_utf8_or_not_there_is_refused(tmp_path):
    path = tmp_path / "load.yaml"
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        load(path)
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(path)


def told(tmp_path, text):
    error = blame(tmp_path, text)
    return {each.key: each.remedy for each in (error, *error.others)}


def test_all_mistakes_of_form_are_told_at_once(tmp_path):
    found = told(
        tmp_path,
        """
        durations: 5s
        duration: 5 sec
        traffic:
          - {kind: stream, wait: 1, output: {distribution: uniform, low: 1, hgh: 3}}
          - {kind: strem, weight: heavy}
        arrivals: {process: poisson, rate: -5}
        mock: {profle: fast}
        """,
    )
    assert list(found) == [
        *("durations", "duration", "traffic[0].wait", "traffic[0].output.hgh", "traffic[1].kind"),
        *("traffic[1].weight", "arrivals.rate", "mock.profle"),
    ]


def test_a_misspelt_key_is_not_told_to_be_missing_as_well(tmp_path):
    assert list(told(tmp_path, "duration: 5s\narrivals: {process: poisson, rte: 3}")) == ["arrivals.rte"]


def test_all_mistakes_between_keys_and_all_missing_files_are_told_at_once(tmp_path):
    found = told(
        tmp_path,
        """
        duration: 5s
        warm_up: 9s
        target: nowhere
        traffic: [{kind: stream, users: 200, prompt: {source: jsonl, path: gone.jsonl}}]
        objectives: [gone.yaml]
        """,
    )
    assert list(found) == [*("target", "warm_up", "max_in_flight", "objectives[0]", "traffic[0].prompt.path")]


# -- mistakes between keys ------------------------------------------------------------------------------

UNIFORM = "{distribution: uniform, low: 9, high: 3}"
BETWEEN_KEYS = [
    ("duration: 5s\ntimeouts: {idle: 0ms}", "timeouts.idle", "longer than 0s"),
    ("name: a", "duration", "`duration: 30s`, or `count: 1000`"),
    ("arrivals: {process: closed, users: 2}", "duration", "when does it end?"),
    ("arrivals: {process: ramp, start: 1, end: 2}\ncount: 5", "duration", "a ramp needs one"),
    ("arrivals: {process: ramp, start: 0, end: 0}\nduration: 1s", "arrivals.end", "no arrivals"),
    ("arrivals: {process: steps, steps: [{rate: 0, for: 1s}]}", "arrivals.steps", "a `rate` above 0"),
    ("arrivals: {process: steps, steps: [{rate: 1, for: 0s}]}", "arrivals.steps[0].for", "longer than 0s"),
    ("arrivals: {process: steps, steps: [{rate: 1, for: 1s}]}\nduration: 2s", "duration", "last 1s in all"),
    ("arrivals: {process: steps, steps: [{rate: 1, for: 1s}]}\nwarm_up: 1s", "warm_up", "which is 1s"),
    ("arrivals: {process: replay, path: gone.csv}", "arrivals.path", "there is no file"),
    ("duration: 5s\nwarm_up: 5s", "warm_up", "shorter than the duration, which is 5s"),
    ("duration: 5s\ntarget: api.deepseek.com", "target", "https://api.deepseek.com"),
    ("duration: 5s\ntarget: 'https://x:99999'", "target", "base URL"),
    ("duration: 5s\ntarget: 'ftp://x'", "target", "base URL"),
    ("duration: 5s\nmodels: {}", "models", "name at least one model"),
    ("duration: 5s\ntraffic: [{kind: stream, weight: 0}]", "traffic", "`weight` above 0"),
    ("duration: 5s\ntraffic: [{kind: stream, size: 3}]", "traffic[0].size", "only kind `batch`"),
    ("duration: 5s\ntraffic: [{kind: stream, model: ' '}]", "traffic[0].model", "name a model"),
    (f"duration: 5s\ntraffic: [{{kind: stream, output: {UNIFORM}}}]", "traffic[0].output.low", "which is 3"),
    (
        f"duration: 5s\ntraffic: [{{kind: stream, prompt: {{source: synthetic, tokens: {UNIFORM}}}}}]",
        "traffic[0].prompt.tokens.low",
        "which is 3",
    ),
    (
        "duration: 5s\ntraffic: [{kind: batch, dialect: completions-lines}]",
        "traffic[0].dialect",
        "only streams",
    ),
    ("duration: 5s\ndialect: completions-lines", "traffic[0].dialect", "kind `completion` takes `chat`"),
    (
        "duration: 5s\ntraffic: [{kind: stream, parameters: {extra: {model: x}}}]",
        "traffic[0].parameters.extra.model",
        "sets this itself",
    ),
    (
        "duration: 5s\ntraffic: [{kind: stream, prompt: {source: jsonl, path: gone.jsonl}}]",
        "traffic[0].prompt.path",
        "there is no file",
    ),
    ("duration: 5s\ntraffic: [{kind: stream, users: 200}]", "max_in_flight", "ask for 200 users"),
    (
        "duration: 5s\ntraffic: [{kind: stream, users: 3}]\narrivals: {process: closed, users: 2}",
        "arrivals.users",
        "ask for 3 users",
    ),
    ("duration: 5s\nretries: {backoff: 30s}", "retries.backoff_max", "not be shorter than"),
    ("duration: 5s\nbudgets: {cpu_span: 0s}", "budgets.cpu_span", "longer than 0s"),
    ("duration: 9s\nwindow: [5s, 5s]", "window", "must end after it begins"),
    ("duration: 9s\nwindow: [5s, 10s]", "window", "not end after the arrivals do, at 9s"),
    ("duration: 9s\nwarm_up: 2s\nwindow: [1s, 5s]", "window", "not begin in the warm-up, which takes 2s"),
    ("duration: 9s\nsteady_state: mser5\nwindow: [1s, 5s]", "steady_state", "the window is fixed"),
    ("duration: 9s\nbursts: [{at: 8s, count: 3, over: 2s}]", "bursts[0].at", "before the arrivals do, at 9s"),
    (
        "duration: 9s\narrivals: {process: closed, users: 2}\nbursts: [{at: 1s, count: 3}]",
        "bursts",
        "a closed model has no schedule",
    ),
    (
        "duration: 9s\narrivals: {process: sine, rate: 1, amplitude: 1, period: 0s}",
        "arrivals.period",
        "longer than 0s",
    ),
    (
        "arrivals: {process: replay, path: gone.csv, format: azure, unit: ms}",
        "arrivals.unit",
        "only format `columns` has one",
    ),
    ("duration: 9s\ntraffic: [{kind: batch, turns: 2}]", "traffic[0].turns", "kind `completion` or `stream`"),
    (
        "duration: 9s\ntraffic: [{kind: stream, turns: 2, prompt: {source: jsonl, path: p}}]",
        "traffic[0].turns",
        "synthetic prompts",
    ),
    ("duration: 9s\ntraffic: [{kind: stream, think_time: 2s}]", "traffic[0].think_time", "set `turns`"),
    (
        f"duration: 9s\ntraffic: [{{kind: stream, turns: {UNIFORM}}}]",
        "traffic[0].turns.low",
        "which is 3",
    ),
    ("duration: 5s\nobjectives: ['']", "objectives[0]", "ttft: p(99)"),
    ("duration: 5s\nobjectives: [slo.yaml]", "objectives[0]", "there is no file"),
    ("duration: 5s\nmock: {faults: gone.yaml}", "mock.faults", "there is no file"),
    ("duration: 5s\nmock: {profile: gone.yaml}", "mock.profile", "there is no file"),
]


@pytest.mark.parametrize(("text", "key", "remedy"), BETWEEN_KEYS, ids=[row[0] for row in BETWEEN_KEYS])
def test_keys_that_do_not_fit_together_are_refused(tmp_path, text, key, remedy):
    error = blame(tmp_path, text)
    assert error.key == key
    assert remedy in error.remedy


# -- durations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("250ms", 0.25), ("30s", 30), ("2m", 120), ("1h", 3600), ("1.5h", 5400), (".5s", 0.5), (" 7 s ", 7)],
)
def test_durations_are_a_number_and_a_unit(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1 s s", "1d", "1e3s", "1m30s", "\u0663s", "infs"])
def test_other_texts_are_no_durations(text):
    with pytest.raises(ValueError, match="a duration is text with its unit"):
        seconds(text)


# -- there and back -------------------------------------------------------------------------------------


@given(
    duration=st.floats(min_value=1e-9, max_value=1e9).map(Seconds),
    rate=st.floats(min_value=1e-6, max_value=1e6),
    seed=st.integers(min_value=0, max_value=2**63),
    weights=st.dictionaries(st.text(min_size=1), st.floats(min_value=1e-3, max_value=1e3), min_size=1),
)
def test_a_scenario_survives_json_exactly(duration, rate, seed, weights):
    weights = {name: weight for name, weight in weights.items() if not scenarios.blame.is_secret(name)}
    before = Scenario(
        duration_s=duration, arrivals=Poisson(rate=rate), seed=seed, models=weights or {"m": 1.0}
    )
    after = from_builtins(json.loads(json.dumps(to_builtins(before))))
    assert after == before
    assert isinstance(after.duration_s, Seconds)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_survives_json_exactly(path):
    scenario = load(path)
    plain = to_builtins(scenario)
    assert json.loads(json.dumps(plain)) == plain
    assert from_builtins(plain) == scenario


def test_a_scenario_from_another_machine_is_read_though_its_files_are_not_here():
    plain = {"arrivals": {"process": "replay", "path": "/nowhere/trace.csv"}}
    assert from_builtins(plain).arrivals == Replay(path="/nowhere/trace.csv")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *(("5", "5s"), ("5 sec", "5s"), ("5secs", "5s"), ("1.5 seconds", "1.5s"), ("5 S", "5s")),
        *(("5min", "5m"), ("2 Minutes", "2m"), ("1hr", "1h"), ("3 hours", "3h"), ("250 msec", "250ms")),
    ],
)
def test_a_duration_in_other_words_is_told_in_ours(text, meant):
    with pytest.raises(ValueError, match=f"did you mean `{re.escape(meant)}`"):
        seconds(text)
    assert seconds(meant) > 0


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost"),
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("box:8000", "http://box:8000"),
        ("api.openai.com", "https://api.openai.com"),
        ("api.openai.com/v1", "https://api.openai.com/v1"),
        ("mok", "mock"),
    ],
)
def test_a_target_without_a_scheme_is_told_with_it(tmp_path, target, meant):
    assert f"did you mean `{meant}`?" in blame(tmp_path, f"target: '{target}'\nduration: 1s").remedy


@pytest.mark.parametrize("target", ["host:8000@x", "ftp://x", "two words", "?", "x:y", "a.b?key=sk-123"])
def test_what_is_no_host_is_taken_for_none(tmp_path, target):
    assert "did you mean" not in blame(tmp_path, f"target: '{target}'\nduration: 1s").remedy


# -- the command line -----------------------------------------------------------------------------------


def test_without_flags_nothing_changes():
    assert override(load()) == load()


def test_each_flag_changes_its_key():
    changed = override(
        load(),
        target="http://127.0.0.1:1",
        rate=7,
        users=9,
        duration="2m",
        count=11,
        seed=13,
        thresholds=["ttft: p(99) < 1s"],
    )
    assert changed.target == "http://127.0.0.1:1"
    assert changed.arrivals == Poisson(rate=7)
    assert changed.max_in_flight == 9
    assert changed.duration_s == 120
    assert changed.count == 11
    assert changed.seed == 13
    assert changed.objectives == (*load().objectives, "ttft: p(99) < 1s")


def test_a_sine_s_rate_can_be_set_from_the_command_line():
    sine = scenarios.Sine(rate=5, amplitude=0.5, period_s=Seconds(10))
    changed = override(Scenario(arrivals=sine, duration_s=Seconds(9)), rate=7)
    assert changed.arrivals == msgspec.structs.replace(sine, rate=7)


def test_users_of_a_closed_model_are_its_users():
    changed = override(load(shipped("closed")), users=3)
    assert changed.arrivals.users == 3
    assert changed.max_in_flight == load(shipped("closed")).max_in_flight


def test_a_threshold_replaces_the_objective_with_the_same_left_side():
    changed = override(load(), thresholds=["response:p( 99 ) <= 2s"])
    assert changed.objectives == ("errors: rate < 0.1%", "response:p( 99 ) <= 2s")


def test_an_openslo_file_among_the_thresholds_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = override(load(), thresholds=["slo.yaml"])
    assert changed.objectives == (*load().objectives, str(tmp_path / "slo.yaml"))


FLAGS = [
    ("default", {"rate": 0}, "--rate"),
    ("default", {"rate": float("nan")}, "--rate"),
    ("default", {"users": 0}, "--users"),
    ("default", {"count": 0}, "--count"),
    ("default", {"seed": -1}, "--seed"),
    ("default", {"duration": "30"}, "--duration"),
    ("default", {"target": "nowhere"}, "--target"),
    ("default", {"thresholds": [" "]}, "--threshold"),
    ("stream-heavy", {"duration": "1s"}, "--duration"),
    ("closed", {"rate": 5}, "--rate"),
    ("ramp", {"rate": 5}, "--rate"),
    ("mooncake", {"rate": 5}, "--rate"),
]


@pytest.mark.parametrize(("name", "flags", "source"), FLAGS, ids=str)
def test_a_flag_s_mistake_names_the_flag(name, flags, source):
    with pytest.raises(ConfigError) as caught:
        override(load(shipped(name)), **flags)
    assert caught.value.source == source


@pytest.mark.parametrize(("name", "key"), [("stream-heavy", "warm_up"), ("bursts", "bursts[0].at")])
def test_a_duration_too_short_for_the_scenario_says_where_that_can_be_changed(name, key):
    with pytest.raises(ConfigError) as caught:
        override(load(shipped(name)), duration="5s")
    assert caught.value.key == key
    assert "harness scenario check SCENARIO > mine.yaml" in caught.value.remedy


# -- the schema -----------------------------------------------------------------------------------------


def test_the_schema_is_valid_draft_2020_12():
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(json.dumps(schema())) == schema()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_schema_accepts_every_example(path):
    jsonschema.validate(yaml.safe_load(path.read_text()), schema(), jsonschema.Draft202012Validator)
    jsonschema.validate(to_builtins(load(path)), schema(), jsonschema.Draft202012Validator)


@pytest.mark.parametrize("text", ["durations: 30s", "duration: 30", "arrivals: {process: x}", "count: 0"])
def test_the_schema_refuses_what_loading_refuses(text):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), schema(), jsonschema.Draft202012Validator)


KEYS = [
    (name, key, described)
    for name, definition in schema()["$defs"].items()
    for key, described in definition["properties"].items()
    if len(described.get("enum", "many")) > 1  # the tag of a union: its documentation is the section itself
]


@pytest.mark.parametrize(("name", "key", "described"), KEYS, ids=[f"{row[0]}.{row[1]}" for row in KEYS])
def test_every_key_is_described_in_the_schema_and_in_the_documentation(name, key, described):
    assert described["description"]
    documentation = (REPOSITORY / "docs" / "scenarios.md").read_text(encoding="utf-8")
    heading = {"Scenario": "Top level"}.get(name, name)
    section = documentation.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    row = next(line for line in section.splitlines() if line.startswith(f"| `{key}` |"))
    assert described["description"] in row
    default = described.get("default")
    if isinstance(default, int | float | str) and default != "":
        shown = default if isinstance(default, str) else json.dumps(default)
        assert f"| `{shown}` |" in row


DOCUMENTATION = (REPOSITORY / "docs" / "scenarios.md").read_text(encoding="utf-8")
SHOWN = DOCUMENTATION.split("```yaml\n")[1:]
"""Each example, and what follows it up to the next one."""


@pytest.mark.parametrize("shown", SHOWN, ids=lambda text: text.split("\n```")[0])
def test_every_example_of_the_documentation_is_a_valid_scenario(tmp_path, shown):
    example, *following = re.split(r"```(?:json|csv)?\n", shown)
    ends = re.search("^(duration|count):|process: (steps|replay)", example, re.MULTILINE)
    file = write(tmp_path, example if ends else "duration: 2m\n" + example)
    if named := re.search(r"path: ([^,}]+)", example):
        trace = tmp_path / named[1]
        trace.parent.mkdir(parents=True, exist_ok=True)
        if trace.suffix == ".parquet":
            parquet.write_table(table([record()]), trace)
        else:
            trace.write_text(following[1])
    preflight.check(load(file), str(file))


def test_the_documentation_has_an_example_of_every_process_and_every_trace_format():
    examples = [example.split("```", 1)[0] for example in SHOWN]
    processes = {kind.__struct_config__.tag for kind in get_args(scenarios.Arrivals)}
    assert processes == {name for name in processes if any(f"process: {name}" in each for each in examples)}
    for word in ("format: mooncake", "format: azure", "format: burstgpt", "format: run-log", "column: "):
        assert any(word in each for each in examples), word
    for word in ("scale: ", "bursts:", "turns: ", "think_time: "):
        assert any(word in each for each in examples), word


def test_the_documentation_lists_the_ready_scenarios():
    listed = re.findall(r"^\| `([a-z-]+)` \| ", DOCUMENTATION.split("## Top level")[0], re.MULTILINE)
    assert sorted(listed) == [path.stem for path in EXAMPLES]


def test_the_budgets_and_their_defaults_are_those_of_the_analysis():
    stated = msgspec.structs.asdict(Scenario().budgets)
    assert stated == dataclasses.asdict(analysis.Budgets())
    found = dataclasses.asdict(analysis.budgets(stated))
    assert found == stated
    assert {type(value) for value in found.values()} == {int, float}


def test_every_part_of_a_scenario_is_frozen_and_refuses_unknown_keys():
    for struct in scenarios._Section.__subclasses__():
        assert struct.__struct_config__.frozen
        assert struct.__struct_config__.forbid_unknown_fields


def test_checking_a_good_scenario_is_silent():
    check(
        Scenario(duration_s=Seconds(1), traffic=(scenarios.Traffic(kind="stream", output=Fixed(tokens=1)),)),
        "x",
    )
    check(
        Scenario(arrivals=Steps(steps=(scenarios.Step(rate=1, for_s=Seconds(2)),)), duration_s=Seconds(2)),
        "x",
    )
    check(msgspec.structs.replace(load(), warm_up_s=Seconds(29)), "x")
