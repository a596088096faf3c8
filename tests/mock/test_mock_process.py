"""Claims about the mock's process: how it starts, says where it is, and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from harness.errors import ConfigError, EngineError
from harness.mock.process import mock_process
from harness.testing import mock_server

MOCK = [sys.executable, "-m", "harness.mock"]
COMPLETION = {"model": "m", "prompt": "hi", "max_tokens": 3}


def started(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [*MOCK, "--profile", "fast", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_one_line_when_it_listens_and_exits_0_on_a_signal(number: signal.Signals):
    process, line = started("--port", "0")
    said = json.loads(line)
    assert said["pid"] == process.pid
    assert httpx.get(said["url"] + "/health", trust_env=False).json()["pid"] == process.pid
    process.send_signal(number)
    assert ended(process) == (0, "", "")


def test_print_url_prints_the_bare_url():
    process, line = started("--port", "0", "--print-url")
    assert urlsplit(line).port
    process.terminate()
    assert ended(process)[0] == 0


def test_a_port_in_use_is_a_clear_error_with_exit_code_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process, line = started("--port", str(taken.getsockname()[1]))
        code, _, err = ended(process)
    assert (line, code) == ("", 2)
    assert "--port is" in err
    assert "in use" in err


def test_two_mocks_cannot_share_a_port():
    with mock_server() as mock:
        process, _ = started("--port", str(urlsplit(mock.url).port))
        assert ended(process)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--profile", "nonesuch"], "choose one of"),
        (["--faults", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--host", "203.0.113.1"], "cannot be listened on"),
        (["--certificate", "x.pem"], "--certificate and --key together"),
        (["--certificate", "x.pem", "--key", "y.pem"], "cannot be used"),
    ],
)
def test_mistakes_on_the_command_line_exit_2(arguments: list[str], hint: str):
    process, line = started("--port", "0", *arguments)
    code, _, err = ended(process)
    assert (line, code) == ("", 2)
    assert hint in err
    assert "Traceback" not in err


def test_sigterm_lets_streams_finish_and_refuses_new_connections():
    profile = {
        "ttft": {"distribution": "fixed", "value": "50ms"},
        "itl": {"distribution": "fixed", "value": "5ms"},
    }
    with mock_server(profile) as mock, httpx.Client(base_url=mock.url, trust_env=False) as http:
        request = COMPLETION | {"max_tokens": 60, "stream": True}
        with http.stream("POST", "/completions", json=request) as answer:
            os.kill(mock.pid, signal.SIGTERM)
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        assert len(lines) == 60 + 2
        with pytest.raises(httpx.ConnectError):
            httpx.get(mock.url + "/health", trust_env=False)
        _await_exit(mock.pid)


def test_what_hangs_does_not_outlive_the_drain(tmp_path: Path):
    truth_file = tmp_path / "truth.jsonl"
    failures: list[Exception] = []

    def hang(url: str) -> None:
        try:
            httpx.post(
                url + "/completions",
                json=COMPLETION,
                headers={"x-mock-fault": "hang"},
                trust_env=False,
                timeout=20,
            )
        except httpx.HTTPError as error:
            failures.append(error)

    with mock_server(truth_file=truth_file, drain_s=0.1) as mock:
        caller = threading.Thread(target=hang, args=(mock.url,))
        caller.start()
        while not mock.health()["in_flight"]:
            time.sleep(0.005)
    caller.join(20)
    head, row = (json.loads(line) for line in truth_file.read_text().splitlines())
    assert head["pid"] == mock.pid
    assert row["end"] == "shutdown"


def test_the_truth_file_holds_what_the_endpoint_told(tmp_path: Path):
    truth_file = tmp_path / "truth.jsonl"
    with mock_server(truth_file=truth_file) as mock:
        for _ in range(3):
            httpx.post(mock.url + "/completions", json=COMPLETION, trust_env=False)
        told = mock.truth()
    assert [json.loads(line) for line in truth_file.read_text().splitlines()[1:]] == told


def test_it_ends_with_its_parent_however_that_died():
    program = """
import time
from harness.mock.process import mock_process

with mock_process("--profile", "fast") as mock:
    print(mock.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    _await_exit(pid)


def _await_exit(pid: int) -> None:
    deadline = time.monotonic() + 15
    while _runs(pid):
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_mistaken_profile_is_the_callers_mistake():
    with pytest.raises(ConfigError, match="choose one of"), mock_process("--profile", "nonesuch"):
        pass


def test_a_mock_that_dies_is_missed():
    def lose_it() -> None:
        with mock_process("--profile", "fast") as mock:
            os.kill(mock.pid, signal.SIGKILL)
            _await_exit(mock.pid)

    with pytest.raises(EngineError, match="died"):
        lose_it()
