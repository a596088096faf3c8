"""Claims about faults on each wire, HTTP/1.1 and HTTP/2, plain and TLS, as the harness's client sees them."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import gevent
import pytest
from msgspec.structs import astuple, replace

from harness.client import target
from harness.client.call import Call, prepare
from harness.client.http1 import Connection
from harness.client.http2 import Mux
from harness.client.send import policy, sender
from harness.clock import now_ns
from harness.record import Outcome, Record
from harness.testing import MockServer
from harness.workload.prompts import Request
from harness.workload.scenario import Retries, Seconds, Timeouts

WIRES = ("http/1.1", "http/1.1 in TLS", "h2", "h2 in TLS")
TOKENS = 6


class Faulty(Call, frozen=True):
    """A request that asks for its fault, if it is to have one."""

    fault: str = ""

    def fields(self) -> list[tuple[str, str]]:
        return [*super().fields(), *([("x-mock-fault", self.fault)] if self.fault else [])]


class Seen(NamedTuple):
    """What the client made of an answer, and the mock's truth about it."""

    record: Record
    truth: dict


class Client:
    """The harness's client on one wire."""

    def __init__(self, mock: MockServer, wire: str, certificate: str | None) -> None:
        http2 = wire.startswith("h2")
        tls = None
        if certificate is not None:
            tls = ssl.create_default_context(cafile=certificate)
            tls.set_alpn_protocols(["h2" if http2 else "http/1.1"])
        self.mock = mock
        self.wire = wire
        self.line = (Mux if http2 else Connection)(target.parse(mock.url), tls=tls)

    def ask(self, fault: str, *, stream: bool = True) -> Seen:
        request_id = uuid.uuid4().hex
        return Seen(self.send(fault, request_id, stream=stream), self.truth_of(request_id))

    def unasked(self) -> Seen:
        """A request that leaves its fault to the mock."""
        return self.ask("")

    def send(self, fault: str, request_id: str, *, stream: bool = True) -> Record:
        timeouts = Timeouts(connect_s=Seconds(5), idle_s=Seconds(1), total_s=Seconds(10))
        rules = policy(timeouts, Retries(), random.Random(7), lambda _: None)
        call = self.call(fault, request_id, stream=stream)
        return sender(rules)(self.line, call, None, now_ns(), rules, lambda _: None)

    def call(self, fault: str, request_id: str, *, stream: bool) -> Faulty:
        request = Request(
            seq=0,
            index=0,
            id=request_id,
            session="s",
            turn=0,
            kind="stream" if stream else "completion",
            dialect="chat",
            model="m",
            prompt="hello",
            messages=None,
            max_tokens=TOKENS,
            stream=stream,
            parameters={},
            prompt_tokens=2,
            tags={},
        )
        plain = prepare(request, self.line.target)
        if fault:
            line, _, rest = plain.http1.partition(b"\r\n")
            plain = replace(plain, http1=b"%b\r\nx-mock-fault: %b\r\n%b" % (line, fault.encode(), rest))
        return Faulty(*astuple(plain), fault=fault)

    def truth_of(self, request_id: str) -> dict:
        deadline_s = time.monotonic() + 5
        while True:
            with contextlib.suppress(KeyError):
                return self.mock.truth_of(request_id)
            assert time.monotonic() < deadline_s, request_id


@contextlib.contextmanager
def mock_with(*arguments: str) -> Iterator[tuple[MockServer, str | None]]:
    """A mock, and its certificate's file; it is to end cleanly, its faults notwithstanding."""
    command = [sys.executable, "-m", "harness.mock", "--port", "0", "--profile", "fast", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = json.loads(process.stdout.readline())
        trusted = ssl.create_default_context(cafile=told.get("certificate"))
        try:
            yield MockServer(told["url"], told["pid"], verify=trusted), told.get("certificate")
        finally:
            process.terminate()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def mocks() -> Iterator[dict[bool, tuple[MockServer, str | None]]]:
    """By whether they speak TLS."""
    with mock_with() as plain, mock_with("--certificate", "self-signed") as secure:
        yield {False: plain, True: secure}


@pytest.fixture(params=WIRES)
def client(request: pytest.FixtureRequest, mocks) -> Iterator[Client]:
    mock, certificate = mocks["TLS" in request.param]
    made = Client(mock, request.param, certificate)
    yield made
    made.line.close()


def assert_lives_on(client: Client) -> None:
    """Whatever was broken, the next request on the same line is answered."""
    assert client.ask("split").record.outcome == Outcome.OK


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "tokens", "error", "end"),
    [
        ("reset", None, "connection reset before the response", "reset"),
        ("hang;seconds=0.1", None, "connection closed before the response", "close"),
        ("cut;after=2", 2, "connection reset in mid-answer", "reset"),
        ("cut;after=2;how=close", 2, "connection closed in mid-answer", "close"),
        ("cut;after=2;inside=true", 2, "connection reset in mid-answer", "reset"),
        ("cut;after=0;inside=true;how=close", 0, "connection closed in mid-answer", "close"),
    ],
)
def test_a_broken_connection_is_a_cut_on_every_wire(
    client: Client, fault: str, tokens: int | None, error: str, end: str, *, stream: bool
):
    status = None if tokens is None else 200
    record, truth = client.ask(fault, stream=stream)
    assert (record.outcome, record.error, record.status) == (Outcome.CUT, error, status)
    assert (truth["fault"], truth["end"], truth["status"]) == (fault, end, status)
    assert len(record.chunk_ns) == len(truth["chunk_ns"]) == (tokens or 0 if stream else 0)
    assert_lives_on(client)


@pytest.mark.parametrize("stream", [True, False])
def test_a_reset_in_the_head_leaves_no_head_on_any_wire(client: Client, stream: bool):
    record, truth = client.ask("reset;stage=head", stream=stream)
    # Half a record and half a frame are nothing that a client could show.
    where = "in the response head" if client.wire == "http/1.1" else "before the response"
    assert (record.outcome, record.error) == (Outcome.CUT, f"connection reset {where}")
    assert (truth["status"], truth["end"], truth["completion_tokens"]) == (None, "reset", 0)
    assert_lives_on(client)


@pytest.mark.parametrize("stream", [True, False])
def test_a_slow_head_delays_the_answer_on_every_wire(client: Client, stream: bool):
    record, truth = client.ask("slow_head;pause=0.001", stream=stream)
    assert (record.outcome, len(record.chunk_ns)) == (Outcome.OK, TOKENS if stream else 0)
    assert truth["end"] == "complete"
    assert record.headers_ns - record.sent_ns > 100_000_000
    assert truth["headers_ns"] - truth["arrived_ns"] > 100_000_000
    assert_lives_on(client)


@pytest.mark.parametrize("wire", ["h2", "h2 in TLS"])
@pytest.mark.parametrize(
    ("faults", "outcomes"),
    [
        (["slow_head;pause=0.001"] * 3, [Outcome.OK] * 3),
        (["slow_head;pause=0.001", "split", "slow_head;pause=0.0005"], [Outcome.OK] * 3),
        (["cut;after=2;how=stream", "slow_head;pause=0.001", "split"], [Outcome.CUT, Outcome.OK, Outcome.OK]),
        (["cut;after=2;inside=true", "slow_head;pause=0.001", "hang"], [Outcome.CUT] * 3),
    ],
)
def test_faults_meet_on_one_connection(mocks, wire: str, faults: list[str], outcomes: list[Outcome]):
    mock, certificate = mocks["TLS" in wire]
    client = Client(mock, wire, certificate)
    assert_lives_on(client)
    # Not `ask`: what is cut off with the connection may never have reached the mock, nor its truth.
    asking = [gevent.spawn(client.send, fault, uuid.uuid4().hex) for fault in faults]
    gevent.joinall(asking, timeout=10, raise_error=True)
    assert [greenlet.value.outcome for greenlet in asking] == outcomes
    assert_lives_on(client)
    client.line.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("by", "outcomes"),
    [
        (10, {"stream": Outcome.CUT, "whole": Outcome.CUT, "h2": Outcome.MALFORMED}),
        (-10, {"stream": Outcome.CUT, "whole": Outcome.MALFORMED, "h2": Outcome.MALFORMED}),
    ],
)
def test_a_wrong_length_is_found_out_on_every_wire(client: Client, by: int, outcomes: dict, stream: bool):
    record, truth = client.ask(f"length;by={by}", stream=stream)
    kind = "h2" if client.wire.startswith("h2") else "stream" if stream else "whole"
    assert record.outcome == outcomes[kind]
    assert (truth["end"], truth["completion_tokens"]) == ("complete", TOKENS)
    assert_lives_on(client)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("hang", Outcome.STALLED),
        ("split", Outcome.OK),
        ("merge;events=4", Outcome.OK),
        ("gzip;events=4", Outcome.OK),
        ("stall;after=2;seconds=2", Outcome.STALLED),
        ("keepalive;seconds=0.1;every=0.05", Outcome.OK),
        ("no_done", Outcome.CUT),
        ("malformed;after=2", Outcome.MALFORMED),
        ("error_event;after=2", Outcome.IN_BAND_ERROR),
        ("html", Outcome.MALFORMED),
        ("slow;factor=2", Outcome.OK),
        ("finish", Outcome.IN_BAND_ERROR),
        ("no_finish", Outcome.CUT),
        ("whitespace", Outcome.OK),
        ("status;code=429;retry_after=1", Outcome.REFUSED_BY_SERVER),
    ],
)
def test_what_is_wrong_with_the_answer_itself_is_the_same_on_every_wire(
    client: Client, fault: str, outcome: Outcome
):
    record, truth = client.ask(fault)
    assert record.outcome == outcome, record.error
    assert truth["fault"] == fault
    assert len(record.chunk_ns) == len(truth["chunk_ns"])
    assert_lives_on(client)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after", [0, 2])
def test_a_reset_stream_ends_alone_on_http2_and_means_nothing_elsewhere(
    client: Client, after: int, stream: bool
):
    record, truth = client.ask(f"cut;after={after};how=stream", stream=stream)
    if not client.wire.startswith("h2"):
        assert record.status == 400
        return
    assert (record.outcome, record.error) == (Outcome.CUT, "stream reset (internal error) in mid-answer")
    assert (truth["end"], truth["completion_tokens"]) == ("reset", after if stream else 0)
    again = client.ask("split").record
    assert (again.outcome, again.reused_connection) == (Outcome.OK, True)


def test_a_rules_fault_that_means_nothing_on_a_wire_is_told_once_and_not_applied(tmp_path, capfd):
    path = tmp_path / "faults.yaml"
    path.write_text(json.dumps({"faults": [{"fault": "cut;how=stream", "probability": 1}]}))
    with mock_with("--faults", str(path)) as (mock, _):
        plain, framed = Client(mock, "http/1.1", None), Client(mock, "h2", None)
        unharmed = [plain.unasked() for _ in range(2)]
        cut = framed.unasked()
        plain.line.close()
        framed.line.close()
    assert [(seen.record.outcome, seen.truth["fault"]) for seen in unharmed] == [(Outcome.OK, "")] * 2
    assert (cut.record.outcome, cut.truth["fault"]) == (Outcome.CUT, "cut;how=stream")
    told = [line for line in capfd.readouterr().err.splitlines() if "harness mock" in line]
    assert len(told) == 1
    assert "cut;how=stream" in told[0]
    assert "HTTP/1.1" in told[0]


@pytest.mark.parametrize("wire", ["http/1.1", "h2"])
def test_while_nobody_listens_open_lines_are_dismissed_and_new_ones_refused(wire: str, tmp_path):
    """On HTTP/2 the dismissal is a GOAWAY."""
    path = tmp_path / "faults.yaml"
    path.write_text(json.dumps({"faults": [{"fault": "refuse", "at": "500ms..2s"}]}))
    with mock_with("--faults", str(path)) as (mock, _):
        client = Client(mock, wire, None)
        assert client.ask("split").record.outcome == Outcome.OK
        wait_until_listening(mock, whether=False)
        gevent.sleep(0.1)  # The client reads the server's goodbye.
        refused = client.send("split", "r").error
        wait_until_listening(mock, whether=True)
        assert client.ask("split").record.outcome == Outcome.OK
        client.line.close()
    assert refused == "connect: connection refused"


def wait_until_listening(mock: MockServer, *, whether: bool) -> None:
    address, deadline_s = urlsplit(mock.url), time.monotonic() + 5
    while True:
        assert time.monotonic() < deadline_s
        with socket.socket() as probe:
            if (probe.connect_ex((address.hostname, address.port)) == 0) is whether:
                return


@pytest.mark.parametrize("wire", WIRES)
def test_a_client_that_stays_keeps_no_mock_from_ending(wire: str):
    """It is at rest while this process waits, and does not even read the goodbye."""
    tls = ["--certificate", "self-signed"] if "TLS" in wire else []
    with mock_with("--drain", "0.2", *tls) as (mock, certificate):
        client = Client(mock, wire, certificate)
        assert client.ask("split").record.outcome == Outcome.OK
    client.line.close()


@pytest.mark.parametrize("wire", ["http/1.1 in TLS", "h2 in TLS"])
def test_an_expired_certificate_is_a_connect_error(wire: str):
    with mock_with("--certificate", "expired") as (mock, certificate):
        record = Client(mock, wire, certificate).send("split", "r")
    assert (record.outcome, record.error) == (Outcome.CONNECT_ERROR, "TLS: certificate has expired")
