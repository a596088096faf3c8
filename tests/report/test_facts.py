"""facts.py: what is said, in words that are true and as the reader knows them."""

from __future__ import annotations

import msgspec
import pytest
from report import fake_run

from harness.report import facts
from harness.slo.objectives import parse
from harness.slo.verdict import State, Verdict


@pytest.mark.parametrize("name", ["ttft: p(99) < 1s", "stream.ttft: p(99) < 1s", "response: p(99) < 1s"])
@pytest.mark.parametrize("state", [State.FAIL, State.INCONCLUSIVE])
def test_the_headline_leaves_identifiers_as_they_are_written(name: str, state: State) -> None:
    report = fake_run.report(State.FAIL)
    (first, *_) = report.verdict.objectives
    judged = msgspec.structs.replace(first, objective=parse(name))
    reason = f"{judged.objective.name}: 9 of 9 requests are bad"
    verdict = Verdict(state, 1, [judged], report.verdict.validity, reason)
    assert facts.headline(msgspec.structs.replace(report, verdict=verdict)) == f"{reason}."


@pytest.mark.parametrize("state", [State.PASS, State.INVALID])
def test_other_headlines_are_sentences(state: State) -> None:
    assert facts.headline(fake_run.report(state))[0].isupper()


def test_the_command_to_repeat_a_run_is_quoted_for_the_shell() -> None:
    report = fake_run.report()
    assert facts.repeat_command(report) == (
        "harness run runs/20260130T101500Z-default/scenario.yaml --seed 7 --workers 2 --target mock"
    )
    run = msgspec.structs.replace(report.run, target="http://x/a b", mock=False)
    elsewhere = msgspec.structs.replace(report, run=run, folder="my runs/1")
    assert facts.repeat_command(elsewhere).startswith("harness run 'my runs/1/scenario.yaml' ")
    assert facts.repeat_command(elsewhere).endswith(" --target 'http://x/a b'")


def test_a_commit_is_said_to_be_of_the_folder_the_run_was_started_in() -> None:
    run = fake_run.report().run
    assert facts.commit_line(run) == "e3eca26, of the folder that the run was started in"
    assert facts.commit_line(msgspec.structs.replace(run, git_commit="")).startswith("none, ")
