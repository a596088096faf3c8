"""Streams read by Locust's FastHttpUser, by its `iter_lines` or by its raw stream's `readline`.

BASELINE_BODY, BASELINE_STREAMS and BASELINE_RAMP_S say what to send; BASELINE_READ is `iter_lines` or
`readline`. Leaves one JSON line a stream in BASELINE_OUT, in nanoseconds of CLOCK_MONOTONIC.
"""

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from time import monotonic_ns

import gevent
from locust import FastHttpUser, task
from locust.exception import StopUser

BODY = os.environ["BASELINE_BODY"].encode()
STREAMS = int(os.environ["BASELINE_STREAMS"])
RAMP_S = float(os.environ["BASELINE_RAMP_S"])
OUT = Path(os.environ["BASELINE_OUT"])
ITER_LINES = os.environ["BASELINE_READ"] == "iter_lines"
PATH = "/v1/chat/completions"

_numbers = count()
_rows: list[str] = []


class Streamer(FastHttpUser):
    """Carries one stream."""

    @task
    def stream(self) -> None:
        """Take a turn in the ramp, read one stream, leave."""
        number = next(_numbers)
        gevent.sleep(RAMP_S * number / STREAMS)
        started_ns = monotonic_ns()
        stamps = [monotonic_ns() for line in self.lines(f"fast-{number}") if b'"content"' in line]
        row = {"id": f"fast-{number}", "started_ns": started_ns, "chunk_ns": stamps}
        _rows.append(json.dumps(row))
        if len(_rows) == STREAMS:
            OUT.write_text("\n".join(_rows))
            gevent.spawn(self.environment.runner.quit)
        raise StopUser

    def lines(self, request_id: str) -> Iterator[bytes]:
        """The answer's lines, as they come."""
        headers = {"content-type": "application/json", "x-request-id": request_id}
        if ITER_LINES:
            for line in self.client.iter_lines(PATH, method="POST", data=BODY, headers=headers):
                yield line.encode()
            return
        raw = self.client.post(PATH, data=BODY, headers=headers, stream=True).stream
        while line := raw.readline(b"\n"):
            yield line
