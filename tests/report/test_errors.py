"""A run that failed says of what, in every form of the report."""

from __future__ import annotations

import msgspec
import pytest
from report import fake_run
from report.test_caveats import FORMS

from harness.record import NO_USER, Outcome
from harness.report import facts
from harness.report.facts import RunReport
from harness.slo.verdict import State

REFUSED = "HTTP 401 invalid_request_error"


def refused(*, dropped: int = 0, target: str = "http://127.0.0.1:8017", mock: bool = False) -> RunReport:
    """A run with a wrong key, whose last arrivals may have found no user."""
    rows = [
        msgspec.structs.replace(row, outcome=Outcome.HTTP_ERROR, status=401, error=REFUSED)
        for row in fake_run.records(rate=40, faults=0.0)
    ]
    for place, row in enumerate(rows[-dropped:] if dropped else [], len(rows) - dropped):
        rows[place] = msgspec.structs.replace(
            row, outcome=Outcome.DROPPED, started_ns=None, ended_ns=None, error=NO_USER
        )
    report = fake_run.assemble(rows)
    return msgspec.structs.replace(report, run=msgspec.structs.replace(report.run, target=target, mock=mock))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_what_the_server_said_and_what_finds_it_out(form: str) -> None:
    text = FORMS[form](refused())
    assert f"No request succeeded: {REFUSED}. Try `harness doctor --target http://127.0.0.1:8017`" in text


@pytest.mark.parametrize("form", FORMS)
def test_where_some_succeeded_every_form_still_counts_the_errors(form: str) -> None:
    report = fake_run.report(State.FAIL)
    text = FORMS[form](report)
    assert "No request succeeded" not in text
    for error, n in report.summary.total.errors.items():
        assert error in text
        assert str(n) in text


def test_the_bundled_mock_needs_no_doctor() -> None:
    assert facts.caveats(refused(mock=True)) == [f"No request succeeded: {REFUSED}."]


def test_a_target_is_quoted_for_the_shell() -> None:
    (said,) = facts.caveats(refused(target="http://x/a;rm b"))
    assert "--target 'http://x/a;rm b'`" in said


def test_arrivals_for_want_of_a_user_do_not_hide_what_held_the_users() -> None:
    report = refused(dropped=900)
    assert next(iter(report.summary.total.errors)) == NO_USER
    (said,) = facts.caveats(report)
    assert said.startswith(f"No request succeeded: {REFUSED}. ")


@pytest.mark.parametrize(
    ("form", "heading"),
    [
        ("terminal", "Latency"),
        ("markdown", "### Latency"),
        ("html", 'id="latency"'),
        ("html", 'id="batches"'),
    ],
)
def test_what_was_never_answered_has_no_table_of_latencies(form: str, heading: str) -> None:
    assert heading in FORMS[form](fake_run.report(State.FAIL))
    assert heading not in FORMS[form](refused())


def test_rare_errors_are_summed_up() -> None:
    total = fake_run.report(State.FAIL).summary.total
    many = {f"error {at}": 20 - at for at in range(8)}
    *told, rest = facts.error_rows(msgspec.structs.replace(total, errors=many))
    assert told[0] == ("20", "error 0")
    assert len(told) == 5
    assert rest == ("42", "3 other errors: see report.html")
