"""The mock in other people's tests: a context manager, and a pytest fixture to import.

    from harness.testing import mock_server

    def test_my_client():
        with mock_server(faults=[{"fault": "cut;after=3", "requests": [1]}]) as mock:
            my_client(mock.url)
            assert mock.truth()[0]["end"] == "reset"

In a conftest.py, `from harness.testing import mock` gives a session-wide fixture of the `fast` profile.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.mock.process import mock_process


class MockServer:
    """A running mock.

    Args:
        url: its base URL, without a path.
        pid: its process.
        verify: how its certificate is checked (httpx's `verify`).
    """

    def __init__(self, url: str, pid: int, *, verify: ssl.SSLContext | bool = True) -> None:
        self.url = url
        self.pid = pid
        # Loading the system's authorities takes longer than the request: only where they are needed.
        self._verify = verify if url.startswith("https:") else False

    def health(self) -> dict[str, Any]:
        """What the mock says of itself: profile, seed, requests in flight, its clock."""
        answer: dict[str, Any] = self._get("/health").json()
        return answer

    def position(self) -> int:
        """The present end of the truth log: what to give to `truth` later."""
        return int(self.health()["truth_next"])

    def truth(self, since: int | str = 0) -> list[dict[str, Any]]:
        """The finished requests in order of their ends, from a position of the log on (docs/mock.md)."""
        entries: list[dict[str, Any]] = []
        while True:
            page = self._get(f"/__truth?since={since}")
            entries.extend(json.loads(line) for line in page.content.splitlines())
            if not page.content:
                return entries
            since = page.headers["x-truth-next"]

    def truth_of(self, request_id: str) -> dict[str, Any]:
        """The newest finished request of that id.

        Raises:
            KeyError: the log has none.
        """
        found = [entry for entry in self.truth() if entry["request_id"] == request_id]
        if not found:
            raise KeyError(request_id)
        return found[-1]

    def _get(self, path: str) -> httpx.Response:
        answer = httpx.get(self.url + path, verify=self._verify, trust_env=False)
        return answer.raise_for_status()


@contextlib.contextmanager
def mock_server(
    profile: str | Path | Mapping[str, Any] = "fast",
    *,
    faults: Path | Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
    api_key: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    verify: ssl.SSLContext | bool = True,
    truth_file: Path | None = None,
    drain_s: float = 10.0,
    options: Sequence[str] = (),
) -> Iterator[MockServer]:
    """Run the mock in a process of its own on a free loopback port.

    Args:
        profile: a built-in profile's name, a file, or a profile's keys and values.
        faults: a faults file, or the entries of its list.
        seed: of latencies and chance faults.
        api_key: the only bearer key accepted.
        certificate: TLS certificate chain, with `key`.
        key: TLS private key.
        verify: how `truth` and `health` check that certificate (httpx's `verify`).
        truth_file: where the truth log is written at the end.
        drain_s: how long answers under way may go on at the end.
        options: further options of `harness mock`, as on its command line.

    Raises:
        ConfigError: a mistake in the arguments or files.
        EngineError: the mock did not start, or died.
    """
    with tempfile.TemporaryDirectory(prefix="harness-mock-") as folder:
        arguments = ["--seed", str(seed), "--drain", str(drain_s), *options]
        if isinstance(profile, Mapping):
            profile = _written(Path(folder, "profile.yaml"), profile)
        arguments += ["--profile", str(profile)]
        if faults is not None and not isinstance(faults, Path):
            faults = _written(Path(folder, "faults.yaml"), {"faults": list(faults)})
        known = {
            "--faults": faults,
            "--api-key": api_key,
            "--certificate": certificate,
            "--key": key,
            "--truth": truth_file,
        }
        for option, value in known.items():
            arguments += [] if value is None else [option, str(value)]
        with mock_process(*arguments) as process:
            yield MockServer(process.url, process.pid, verify=verify)


def _written(path: Path, value: object) -> Path:
    # JSON is YAML.
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def mock() -> Iterator[MockServer]:
    """A mock without delay, shared by the session's tests: tell requests apart by their `x-request-id`."""
    with mock_server() as server:
        yield server
