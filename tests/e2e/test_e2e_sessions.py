"""A session is one arrival: its turns follow each other, each after its user has thought."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from launching import assert_books_balance, harness, only_run, rows, spans_of, write_scenario

SESSIONS, TURNS, THINK_NS = 10, 3, 200_000_000


def test_each_next_turn_is_due_when_its_user_has_thought_and_one_span_holds_the_session(
    mock_url: str, tmp_path: Path
) -> None:
    traffic = {"kind": "stream", "turns": TURNS, "think_time": "200ms"}
    arrivals = {"process": "constant", "rate": 10}
    scenario = write_scenario(tmp_path, traffic=[traffic], arrivals=arrivals, count=SESSIONS, warm_up="0s")
    runs = tmp_path / "runs"
    harness("run", scenario, "--target", mock_url, "--runs", runs, cwd=tmp_path)
    folder = only_run(runs)
    books = assert_books_balance(folder)
    assert (books.planned, books.finished, books.records) == (SESSIONS, SESSIONS, SESSIONS * TURNS)
    sessions: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows(folder), key=lambda row: row["turn"]):
        sessions.setdefault(row["session"], []).append(row)
    assert len(sessions) == SESSIONS
    for name, turns in sessions.items():
        assert [row["turn"] for row in turns] == list(range(TURNS))
        assert [row["request_id"] for row in turns] == [name, f"{name}.t1", f"{name}.t2"]
        assert {row["outcome"] for row in turns} == {"ok"}
        assert len({row["seq"] for row in turns}) == 1
        for earlier, later in pairwise(turns):
            assert later["due_ns"] == earlier["ended_ns"] + THINK_NS
            assert later["started_ns"] >= later["due_ns"]
            assert later["prompt_tokens"] > earlier["prompt_tokens"]  # the conversation so far

    spans = list(spans_of(folder))
    roots = {(span["traceId"], span["spanId"]): span for span in spans if span["name"] == "session"}
    assert len(roots) == SESSIONS
    for span in spans:
        if span["name"] == "session":
            continue
        (link,) = span["links"]
        root = roots[link["traceId"], link["spanId"]]
        assert int(root["startTimeUnixNano"]) <= int(span["startTimeUnixNano"])
        assert int(span["endTimeUnixNano"]) <= int(root["endTimeUnixNano"])
    assert len(spans) == SESSIONS * (TURNS + 1)
