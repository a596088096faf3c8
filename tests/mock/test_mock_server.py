"""Claims about the running mock, seen by httpx and checked against its truth log."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import h2.connection
import h2.errors
import h2.events
import httpx
import pytest
import trustme

from harness.testing import MockServer, mock_server

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}
PATHS = [("/chat/completions", CHAT), ("/completions", COMPLETION)]


def client(mock: MockServer, *, http2: bool = False) -> httpx.Client:
    return httpx.Client(base_url=mock.url, trust_env=False, timeout=20, http1=not http2, http2=http2)


def named(**headers: str) -> dict[str, str]:
    return {"x-request-id": uuid.uuid4().hex, **{k.replace("_", "-"): v for k, v in headers.items()}}


def data_of(lines: list[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(("path", "body"), PATHS)
def test_whole_answers_come_with_and_without_v1_on_both_wires(
    mock: MockServer, http2: bool, prefix: str, path: str, body: dict
):
    headers = named()
    with client(mock, http2=http2) as http:
        answer = http.post(prefix + path, json=body | {"max_tokens": 4}, headers=headers)
    assert answer.status_code == 200
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert answer.headers["x-request-id"] == headers["x-request-id"]
    assert answer.json()["usage"]["completion_tokens"] == 4
    truth = mock.truth_of(headers["x-request-id"])
    assert truth["protocol"] == ("2" if http2 else "1.1")
    assert truth["path"] == prefix + path
    assert truth["end"] == "complete"
    assert truth["completion_tokens"] == 4


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize(("path", "body"), PATHS)
def test_streams_agree_with_the_truth_log_in_tokens_and_in_time(
    mock: MockServer, http2: bool, path: str, body: dict
):
    headers = named()
    stamps, lines = [], []
    with client(mock, http2=http2) as http:
        asked_ns = time.monotonic_ns()
        request = body | {"max_tokens": 6, "stream": True}
        with http.stream("POST", path, json=request, headers=headers) as answer:
            for line in answer.iter_lines():
                stamps.append(time.monotonic_ns())
                lines.append(line)
    events = data_of(lines)
    assert events[-1] == "[DONE]"
    truth = mock.truth_of(headers["x-request-id"])
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 6
    assert truth["completion_tokens"] == len(truth["chunk_ns"]) == 6
    assert truth["finish_reason"] == "length"
    in_order = [asked_ns, truth["arrived_ns"], truth["headers_ns"], *truth["chunk_ns"], truth["ended_ns"]]
    assert in_order == sorted(in_order)
    tokens_seen_ns = [
        stamp
        for line, stamp in zip(lines, stamps, strict=True)
        if line.startswith("data: {") and _token(json.loads(line[6:]))
    ]
    assert all(seen >= sent for seen, sent in zip(tokens_seen_ns, truth["chunk_ns"], strict=True))


def _token(event: dict) -> str:
    choice = event["choices"][0] if event["choices"] else {}
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def test_the_line_dialect_sends_one_json_object_a_line(mock: MockServer):
    with client(mock) as http:
        answer = http.post("/v1/completions/stream", json=COMPLETION | {"max_tokens": 3})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert len(lines) == 4
    assert lines[-1]["choices"][0]["finish_reason"] == "length"
    assert lines[-1]["usage"]["completion_tokens"] == 3


def test_the_same_question_is_answered_in_the_same_words(mock: MockServer):
    headers = named()
    with client(mock) as http:
        first, second = (http.post("/completions", json=COMPLETION, headers=headers) for _ in range(2))
    assert first.json()["choices"] == second.json()["choices"]


def test_an_id_is_minted_for_a_request_that_has_none(mock: MockServer):
    with client(mock) as http:
        minted = http.post("/completions", json=COMPLETION).headers["x-request-id"]
    assert mock.truth_of(minted)["request_id"] == minted


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/models", 200),
        ("GET", "/health", 200),
        ("GET", "/nothing", 404),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/__truth?since=x", 400),
    ],
)
def test_other_paths_answer_in_json(mock: MockServer, method: str, path: str, status: int):
    with client(mock) as http:
        answer = http.request(method, path)
    assert answer.status_code == status
    assert ("error" in answer.json()) == (status >= 400)


def test_bad_requests_are_refused_and_logged(mock: MockServer):
    headers = named()
    with client(mock) as http:
        answer = http.post("/chat/completions", content=b"{", headers=headers)
    assert answer.status_code == 400
    assert mock.truth_of(headers["x-request-id"])["status"] == 400


def test_a_fault_that_does_not_fit_the_answer_is_refused(mock: MockServer):
    with client(mock) as http:
        answer = http.post("/completions", json=COMPLETION, headers=named(x_mock_fault="no_done"))
    assert answer.status_code == 400
    assert "is not for this answer" in answer.json()["error"]["message"]


def test_a_repeated_prompt_is_cached(mock: MockServer):
    body = {"model": "m", "prompt": uuid.uuid4().hex * 20}
    with client(mock) as http:
        usages = [http.post("/completions", json=body).json()["usage"] for _ in range(2)]
    assert [usage["prompt_cache_hit_tokens"] for usage in usages] == [0, 192]


def test_tokens_are_paced_by_due_times_that_do_not_drift():
    profile = {
        "ttft": {"distribution": "fixed", "value": "50ms"},
        "itl": {"distribution": "fixed", "value": "1ms"},
    }
    headers = named()
    with mock_server(profile) as mock, client(mock) as http:
        http.post("/completions", json=COMPLETION | {"max_tokens": 401, "stream": True}, headers=headers)
        truth = mock.truth_of(headers["x-request-id"])
    offsets = [stamp - truth["arrived_ns"] for stamp in truth["chunk_ns"]]
    late = [offset - (50 + i) * 1_000_000 for i, offset in enumerate(offsets)]
    assert min(late) >= 0
    assert max(late) <= truth["lateness_max_ns"]
    # Were delays added up, each gap's half a millisecond would be found at the end 400 times over.
    assert min(late[300:]) < 100_000_000


def test_a_whole_answer_takes_as_long_as_its_tokens():
    profile = {
        "ttft": {"distribution": "fixed", "value": "30ms"},
        "itl": {"distribution": "fixed", "value": "2ms"},
    }
    with mock_server(profile) as mock, client(mock) as http:
        http.post("/completions", json=COMPLETION | {"max_tokens": 11})
        truth = mock.truth()[0]
    assert truth["ended_ns"] - truth["arrived_ns"] >= 50_000_000
    assert truth["headers_ns"] == truth["ended_ns"]


SLOW = {
    "ttft": {"distribution": "fixed", "value": "10ms"},
    "itl": {"distribution": "fixed", "value": "10ms"},
}


def await_idle(mock: MockServer) -> None:
    deadline = time.monotonic() + 5
    while mock.health()["in_flight"]:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("http2", [False, True])
def test_a_client_that_closes_its_connection_ends_the_generation_at_once(http2: bool):
    body = COMPLETION | {"max_tokens": 10_000, "stream": True}
    with mock_server(SLOW) as mock:
        with client(mock, http2=http2) as http, http.stream("POST", "/completions", json=body) as answer:
            next(answer.iter_lines())
        await_idle(mock)
        truth = mock.truth()[0]
    assert truth["end"] == "client_gone"
    assert 1 <= truth["completion_tokens"] < 10_000


def test_a_cancelled_http2_stream_ends_its_generation_and_no_other():
    body = json.dumps(COMPLETION | {"max_tokens": 20, "stream": True}).encode()
    with mock_server(SLOW) as mock:
        address = urlsplit(mock.url)
        wire = h2.connection.H2Connection()
        wire.initiate_connection()
        head = [(":method", "POST"), (":path", "/completions"), (":scheme", "http"), (":authority", "mock")]
        for stream in (1, 3):
            wire.send_headers(stream, [*head, ("x-request-id", f"stream-{stream}")])
            wire.send_data(stream, body, end_stream=True)
        open_streams = {1, 3}
        with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
            sock.sendall(wire.data_to_send())
            while open_streams:
                for event in wire.receive_data(sock.recv(65536)):
                    if (
                        isinstance(event, h2.events.DataReceived)
                        and event.stream_id == 1
                        and 1 in open_streams
                    ):
                        wire.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
                        open_streams.discard(1)
                    if isinstance(event, h2.events.StreamEnded):
                        open_streams.discard(event.stream_id)
                sock.sendall(wire.data_to_send())
        ends = {entry["request_id"]: entry["end"] for entry in mock.truth()}
    assert ends == {"stream-1": "client_gone", "stream-3": "complete"}


def test_chance_faults_of_a_file_are_in_the_truth_log():
    entries = [
        {"fault": "status;code=503", "probability": 0.5},
        {"fault": "status;code=402", "requests": [1]},
    ]
    with mock_server(faults=entries, seed=9) as mock, client(mock) as http:
        seen = []
        for i in range(60):
            seen.append(http.post("/completions", json=COMPLETION, headers=named()).status_code)
            assert mock.position() == i + 1
        truth = mock.truth()
    assert [entry["status"] for entry in truth] == seen
    assert [bool(entry["fault"]) for entry in truth] == [status != 200 for status in seen]
    assert seen[0] in {402, 503}
    assert 10 < seen.count(503) < 50


def test_a_demanded_key_is_demanded_everywhere_but_on_the_control_plane():
    with mock_server(api_key="right") as mock, client(mock) as http:
        for key, status in [(None, 401), ("wrong", 401), ("right", 200)]:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            assert http.post("/completions", json=COMPLETION, headers=headers).status_code == status
            answer = http.get("/models", headers=headers)
            assert answer.status_code == status
        assert [entry["status"] for entry in mock.truth()] == [401, 401, 200]


@pytest.mark.parametrize("http2", [False, True])
def test_tls_negotiates_both_protocols(tmp_path: Path, http2: bool):
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trust = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    with (
        mock_server(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem", verify=trust) as mock,
        httpx.Client(base_url=mock.url, verify=trust, trust_env=False, http2=http2) as http,
    ):
        assert mock.url.startswith("https://")
        answer = http.post("/completions", json=COMPLETION)
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert len(mock.truth()) == 1


def test_many_requests_on_one_http2_connection_are_answered_together():
    slow = {
        "ttft": {"distribution": "fixed", "value": "200ms"},
        "itl": {"distribution": "fixed", "value": "0s"},
    }

    async def ask(url: str) -> list[str]:
        async with httpx.AsyncClient(http1=False, http2=True, base_url=url, trust_env=False) as http:
            answers = await asyncio.gather(*(http.post("/completions", json=COMPLETION) for _ in range(50)))
            return [answer.http_version for answer in answers]

    with mock_server(slow) as mock:
        assert asyncio.run(ask(mock.url)) == ["HTTP/2"] * 50
        truth = mock.truth()
    assert max(entry["arrived_ns"] for entry in truth) < min(entry["ended_ns"] for entry in truth)
