"""Chat requests by each of Locust's two clients, timed line by line: what a locustfile has to do by hand.

PEER_BODY=JSON PEER_COUNT=N PEER_OUT=FILE locust -f benchmarks/baselines/locust_peers.py Fast --headless

Locust has no TTFT or ITL of its own, so this file leaves every one it saw, in milliseconds, as JSON.
"""

import json
import os
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from time import monotonic_ns

import gevent
from locust import FastHttpUser, HttpUser
from locust.exception import StopUser

REQUEST = json.loads(os.environ["PEER_BODY"])
COUNT = int(os.environ["PEER_COUNT"])
OUT = Path(os.environ["PEER_OUT"])
PATH = "/v1/chat/completions"

_claims = count(1)
_ended = count(1)
_ttft_ms: list[float] = []
_itl_ms: list[float] = []


def keep(started_ns: int, lines: Iterator[bytes | str]) -> None:
    """Stamp every line that holds a token as it is handed over."""
    stamps = [
        monotonic_ns() for line in lines if '"content"' in (line if isinstance(line, str) else line.decode())
    ]
    _ttft_ms.append((stamps[0] - started_ns) / 1e6)
    _itl_ms.extend((later - earlier) / 1e6 for earlier, later in pairwise(stamps))


def chat(user: "Fast | Requests") -> None:
    """One request, if any is left; the last one to end writes the file and ends the run."""
    if next(_claims) > COUNT:
        raise StopUser
    started_ns = monotonic_ns()
    if REQUEST.get("stream"):
        keep(started_ns, user.lines())
    else:
        user.client.post(PATH, json=REQUEST)
    if next(_ended) == COUNT:
        OUT.write_text(json.dumps({"ttft_ms": _ttft_ms, "itl_ms": _itl_ms}))
        gevent.spawn(user.environment.runner.quit)


class Fast(FastHttpUser):
    """By geventhttpclient."""

    tasks = [chat]  # noqa: RUF012 - Locust declares it, and not as a ClassVar

    def lines(self) -> Iterator[str]:
        """The answer's lines, as FastHttpUser hands them out."""
        return self.client.iter_lines(PATH, method="POST", json=REQUEST)


class Requests(HttpUser):
    """By requests."""

    tasks = [chat]  # noqa: RUF012 - Locust declares it, and not as a ClassVar

    def lines(self) -> Iterator[bytes]:
        """The answer's lines, as requests hands them out."""
        return self.client.post(PATH, json=REQUEST, stream=True).iter_lines()
