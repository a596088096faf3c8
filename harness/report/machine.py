"""The report for machines: summary.json, with keys that stay.

    schema      1; raised when a key changes its meaning or goes
    verdict     state, exit_code, reason, objectives (slo.verdict.Judged each, with `resolvable`:
                whether the instrument is fine enough for it; null if that is not known, or it is no time),
                by_hand (the flags that had it judged otherwise than planned), caveats (sentences)
    validity    valid, checks (analysis.validity.Check each)
    summary     analysis.summary.Summary: window_s, arrivals, total, kinds, batch, slowest, failed
    manifest    record.Manifest: the books
    telemetry   record.TelemetryLedger, or null
    truth       analysis.truth.Truth: the bundled mock's own figures, or null for other targets
    floor       analysis.floor.Floor: the instrument's own error, or null if it was not calibrated
    run         record.Run: the header; with the scenario it holds all that is needed to repeat the run

Times are seconds, shares are of one, `n` counts what a figure rests on, a figure that cannot be given
is null. No prompt and no answer is in it.
"""

from __future__ import annotations

import msgspec

from harness.report import facts
from harness.report.facts import RunReport

SCHEMA = 1


def to_json(report: RunReport) -> bytes:
    """The bytes of summary.json, indented, ending in a newline."""
    verdict = report.verdict
    document = {
        "schema": SCHEMA,
        "verdict": {
            "state": verdict.state,
            "exit_code": verdict.exit_code,
            "reason": verdict.reason,
            "objectives": [
                {**msgspec.structs.asdict(each), "resolvable": facts.resolved(each, report.floor)}
                for each in verdict.objectives
            ],
            "by_hand": report.by_hand,
            "caveats": facts.caveats(report),
        },
        "validity": {
            "valid": verdict.validity.valid,
            "checks": verdict.validity.checks,
        },
        "summary": report.summary,
        "manifest": report.manifest,
        "telemetry": report.telemetry,
        "truth": report.truth,
        "floor": report.floor,
        "run": report.run,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
