import argparse
import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import peers

MS = 1_000_000
CLOSED = peers.Work("closed", stream=True, users=4, count=10)
WHOLE = dataclasses.replace(CLOSED, stream=False)
OPEN = dataclasses.replace(CLOSED, rate=20.0)
PEERS = sorted(set(peers.TOOLS) - {"harness", "wrk"})


@pytest.fixture
def place(tmp_path):
    return peers.Place("http://127.0.0.1:1", tmp_path, tmp_path / "cache")


def watched(returncode=0):
    usage = peers.Usage([0, 2000 * MS], [0.0, 2.0])
    return peers.Watched(0, 2000 * MS, returncode, usage, 5_000_000)


def test_the_figures_come_from_the_servers_log():
    truth = [
        {"received_ns": 500 * MS, "chunk_ns": [600 * MS, 700 * MS, 1000 * MS]},
        {"received_ns": 700 * MS, "chunk_ns": [900 * MS, 1200 * MS, 1500 * MS]},
    ]
    row = peers.judge("tool", CLOSED, watched(), peers.Said(), truth)
    assert row.per_s == pytest.approx(2.0)
    assert row.chunks_per_s == pytest.approx(6.0)
    assert row.in_flight == pytest.approx(0.5 + 0.8)
    assert row.cpu_us == pytest.approx(500_000)
    assert (row.start_s, row.end_s) == pytest.approx((0.5, 0.5))
    assert row.ttft_ms[0] == pytest.approx(150)
    assert row.itl_ms[0] == pytest.approx(300)


def test_a_probe_long_before_the_load_is_no_part_of_it():
    load = [{"received_ns": (5000 + at) * MS, "chunk_ns": []} for at in range(40)]
    probe = {"received_ns": 100 * MS, "chunk_ns": []}
    assert peers.without_probes([*load, probe]) == load
    assert peers.without_probes(load) == load


def test_a_pause_in_the_midst_of_the_load_stays_in_its_figures():
    load = [{"received_ns": (at + 9000 * (at > 20)) * MS, "chunk_ns": []} for at in range(40)]
    assert peers.without_probes(load) == load


@pytest.mark.parametrize(
    ("returncode", "told"),
    [
        (None, "not done within 60 s"),
        (3, "exit code 3: boom / bust"),
        (-9, "ended by SIGKILL: boom / bust"),
        (0, ""),
    ],
)
def test_a_run_that_does_not_count_says_why(place, returncode, told):
    (place.folder / "client.log").write_text("fine so far\nboom | bust\n-----\n")
    call = peers.Call(["tool"], peers.Said)
    assert peers.reason(watched(returncode), call, place.folder, 60) == told


def test_a_failed_verdict_is_no_failure_of_the_harness(place):
    call = peers.harness(CLOSED, place)
    assert {0, 1, 3, 4} == call.success


@pytest.mark.parametrize(
    ("tool", "work"),
    [
        ("genai-bench", WHOLE),
        ("genai-bench", OPEN),
        ("locust-fasthttp", OPEN),
        ("locust-requests", OPEN),
        ("wrk", CLOSED),
    ],
)
def test_what_a_tool_cannot_do_is_refused_with_a_reason(place, tool, work):
    with pytest.raises(peers.CannotError, match=r"\w"):
        peers.TOOLS[tool].adapter(work, place)


@pytest.mark.parametrize("tool", PEERS)
def test_a_tool_that_left_no_report_is_told_so(place, tool):
    with pytest.raises(FileNotFoundError, match="it left no"):
        peers.TOOLS[tool].adapter(CLOSED, place).said()


REPORTS = {
    "harness": (
        "runs/x/summary.json",
        {
            "summary": {
                "total": {
                    "distributions": {
                        name: {"quantiles": {"p50": {"value": p50}, "p99": {"value": None}}}
                        for name, p50 in (("ttft", 0.05), ("itl", 0.01))
                    }
                }
            }
        },
        ((50, None), (10, None)),
    ),
    "aiperf": (
        "profile_export_aiperf.json",
        {"time_to_first_token": {"p50": 50, "p99": 60}, "inter_chunk_latency": {"p50": 10, "p99": 11}},
        ((50, 60), (10, 11)),
    ),
    "evalscope": (
        "m/benchmark_percentile.json",
        [
            {"Percentiles": "50%", "TTFT (ms)": 50, "ITL (ms)": 10},
            {"Percentiles": "99%", "TTFT (ms)": 60, "ITL (ms)": 11},
        ],
        ((50, 60), (10, 11)),
    ),
    "inference-perf": (
        "report/summary_lifecycle_metrics.json",
        {
            "successes": {
                "latency": {
                    "time_to_first_token": {"median": 0.05, "p99": 0.06},
                    "inter_token_latency": {"median": 0.01, "p99": 0.011},
                }
            }
        },
        ((50, 60), (10, 11)),
    ),
    "genai-bench": (
        "report/D32_30_text-to-text_num_concurrency_4_time_1s.json",
        {
            "aggregated_metrics": {
                "stats": {"ttft": {"p50": 0.05, "p99": 0.06}, "tpot": {"p50": 0.01, "p99": 0.011}}
            }
        },
        ((50, 60), (10, 11)),
    ),
    "guidellm": (
        "guidellm.json",
        {
            "benchmarks": [
                {
                    "metrics": {
                        name: {"successful": {"percentiles": {"p50": p50, "p99": p99}}}
                        for name, p50, p99 in (
                            ("time_to_first_token_ms", 50, 60),
                            ("inter_token_latency_ms", 10, 11),
                        )
                    }
                }
            ]
        },
        ((50, 60), (10, 11)),
    ),
}


@pytest.mark.parametrize("tool", REPORTS)
def test_a_tools_report_is_read_in_milliseconds(place, tool):
    path, report, (ttft_ms, itl_ms) = REPORTS[tool]
    call = peers.TOOLS[tool].adapter(CLOSED, place)
    (place.folder / path).parent.mkdir(parents=True, exist_ok=True)
    (place.folder / path).write_text(json.dumps(report))
    said = call.said()
    assert said.ttft_ms == pytest.approx(ttft_ms)
    assert said.itl_ms == pytest.approx(itl_ms)
    assert said.itl_is_mean == (tool in {"genai-bench", "guidellm"})


def test_a_row_without_figures_is_as_wide_as_the_others():
    rows = [peers.Row("a", "w", "cannot: it has no legs"), peers.Row("b", "w", requests=3)]
    lines = peers.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "cannot: it has no legs" in lines[2]


def test_an_unknown_tool_is_named_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        peers.chosen("aiperf,abacus", list(peers.TOOLS), argparse.ArgumentParser())
    assert "no such name: abacus; there are harness" in capsys.readouterr().err


def test_the_tokenizer_is_where_a_hugging_face_cache_has_it(tmp_path):
    peers.write_tokenizer(tmp_path)
    snapshot = tmp_path / "hub" / "models--peers--tokenizer" / "snapshots" / "0"
    model = json.loads((snapshot / "tokenizer.json").read_text())["model"]
    merged = [each.replace(" ", "") for each in model["merges"]]
    assert set(merged) <= set(model["vocab"])
    assert {"token.", "tokenĠ"} <= set(model["vocab"])


def test_the_lead_is_over_the_fastest_llm_peer():
    def row(tool, chunks_per_s, why_not=""):
        return peers.Row(tool, "stream-zero", why_not, chunks_per_s=chunks_per_s)

    rows = [row("harness", 500.0), row("locust-fasthttp", 400.0), row("evalscope", 40.0), row("aiperf", 10.0)]
    assert peers.lead(rows) == (12.5, "evalscope")
    assert peers.lead([*rows[:2], row("evalscope", 0.0, "failed"), rows[3]]) == (50.0, "aiperf")
    assert peers.lead(rows[1:]) is None
    assert peers.lead(rows[:2]) is None
