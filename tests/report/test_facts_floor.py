import msgspec
import numpy as np
import pytest
from report import fake_run

from harness.analysis.floor import Floor
from harness.analysis.stats import distribution
from harness.report import facts
from harness.report.terminal import terminal


def floor(added_s: float) -> Floor:
    errors = {name: distribution(np.full(400, added_s), name, "s") for name in ("ttft", "response", "itl")}
    return Floor(
        run="r",
        profile="demo",
        window_s=(0.0, 3.0),
        rate_per_s=133.0,
        requests=400,
        unmatched=0,
        miscounted=0,
        added=errors,
        lateness=distribution(np.full(400, added_s), "lateness", "s"),
        hub_lag_max_s=0.001,
        cpu_share=0.1,
        mock_lateness_max_s=0.001,
    )


@pytest.mark.parametrize(("added_s", "marked"), [(0.0005, False), (10.0, True)])
def test_a_judged_time_below_three_times_the_floor_is_marked(added_s: float, marked: bool) -> None:
    report = msgspec.structs.replace(fake_run.report(), floor=floor(added_s))
    rows = facts.objective_rows(report)
    assert any("not resolvable" in row.observed for row in rows) is marked


def test_an_error_rate_has_no_floor() -> None:
    report = msgspec.structs.replace(fake_run.report(), floor=floor(10.0))
    errors = [row for row in facts.objective_rows(report) if row.expression.startswith("errors")]
    assert errors
    assert not any("not resolvable" in row.observed for row in errors)


def test_the_floor_stands_beside_the_results() -> None:
    report = msgspec.structs.replace(fake_run.report(), floor=floor(0.0005))
    assert "Noise floor" in terminal(report)
    assert "Noise floor" not in terminal(fake_run.report())
