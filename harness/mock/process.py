"""The mock as a process of its own, started and ended by this one."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from harness.errors import ConfigError, EngineError

_PATIENCE_S = 20.0


class MockProcess(NamedTuple):
    """A mock that is listening."""

    url: str
    """Base URL, without a path."""
    pid: int
    certificate: str | None = None
    """File of its certificate; None without TLS."""


@contextlib.contextmanager
def mock_process(*arguments: str) -> Iterator[MockProcess]:
    """Run `harness mock` on a free loopback port; it drains and ends with the context, or with this process.

    Args:
        arguments: of the command line: `"--profile", "demo", "--seed", "1"`.

    Raises:
        ConfigError: the mock refuses its arguments or files.
        EngineError: it does not start, or it died before the context's end.
    """
    command = [sys.executable, "-m", "harness.mock", "--port", "0", "--die-with-parent", *arguments]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            # Ctrl-C in the terminal is for the load generator, whose requests are to be answered to the end.
            start_new_session=True,
        ) as process,
    ):
        try:
            yield _await_url(process, log)
        finally:
            _end(process)
        if process.returncode:
            raise EngineError(f"the mock died (exit code {process.returncode}): {_tail(log)}")


def _await_url(process: subprocess.Popen[bytes], log: IO[bytes]) -> MockProcess:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
    line = process.stdout.readline() if ready else b""
    if line:
        return MockProcess(**json.loads(line))
    if not ready:
        raise EngineError(f"the mock did not start within {_PATIENCE_S:g} s: {_tail(log)}")
    if process.wait() == 2:
        raise ConfigError("mock", "", None, _tail(log).removeprefix("harness mock: "))
    raise EngineError(f"the mock did not start (exit code {process.returncode}): {_tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-2000:].decode(errors="replace").strip()
