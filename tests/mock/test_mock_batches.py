"""Claims about files and batches, as the openai SDK sees them, and about the lines of their files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from harness.mock.batches import answered_line, read_lines
from harness.mock.files import Files, page
from harness.mock.inward import Answer
from harness.testing import MockServer, mock_server

CHAT = "/v1/chat/completions"
SLOW = {"ttft": {"distribution": "fixed", "value": "60s"}, "itl": {"distribution": "fixed", "value": "0ms"}}


def line(custom_id: str, url: str = CHAT, **body: object) -> bytes:
    if url == CHAT:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


@pytest.fixture
def client(mock: MockServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mock.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def submitted(client: openai.OpenAI, *lines: bytes, endpoint: str = CHAT):
    file = client.files.create(file=("in.jsonl", b"\n".join(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def settled(client: openai.OpenAI, batch_id: str, patience_s: float = 20):
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        batch = client.batches.retrieve(batch_id)
        if batch.status in {"completed", "failed", "expired", "cancelled"}:
            return batch
        time.sleep(0.01)
    raise AssertionError(batch)


def lines_of(client: openai.OpenAI, file_id: str) -> dict[str, dict]:
    found = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    return {item["custom_id"]: item for item in found}


# -- files ------------------------------------------------------------------------------------------------


def test_a_file_is_given_back_as_it_was_sent_until_it_is_deleted(client: openai.OpenAI):
    content = bytes(range(256)) * 10
    file = client.files.create(file=("raw.bin", content), purpose="user_data")
    assert (file.bytes, file.filename, file.purpose) == (2560, "raw.bin", "user_data")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    assert file.id in {listed.id for listed in client.files.list(purpose="user_data")}
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_files_expire():
    files = Files()
    early = files.add(b"a", "a", "batch", 100, expires_at=110)
    late = files.add(b"b", "b", "batch", 100)
    assert [file.id for file in files.listed(109)] == [early.id, late.id]
    assert files.get(early.id, 110) is None
    assert [file.id for file in files.listed(110)] == [late.id]


def test_what_does_not_fit_is_refused():
    files = Files(capacity=5)
    body = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    form = body % (b"file", b"123456") + body % (b"purpose", b"batch") + b"--x--"
    refused = files.upload(form, "multipart/form-data; boundary=x", 0)
    assert getattr(refused, "status", None) == 413


def test_pages_follow_each_other():
    files = Files()
    ids = [files.add(b"", str(i), "batch", 0).id for i in range(5)]
    first = page(files.listed(0), {"limit": ["2"]})
    assert [file.id for file in first["data"]] == [ids[4], ids[3]]
    assert first["has_more"]
    rest = page(files.listed(0), {"after": [first["last_id"]], "limit": ["3"]})
    assert [file.id for file in rest["data"]] == [ids[2], ids[1], ids[0]]
    assert not rest["has_more"]
    assert [file.id for file in page(files.listed(0), {"order": ["asc"]})["data"]] == ids


# -- batches ----------------------------------------------------------------------------------------------


def test_a_batch_goes_from_validating_to_completed_and_every_line_is_answered(client: openai.OpenAI):
    batch = submitted(client, *[line(f"c{i}", max_tokens=i + 1) for i in range(40)])
    assert batch.status == "validating"
    batch = settled(client, batch.id)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"completed": 40, "failed": 0, "total": 40}
    assert batch.error_file_id is None
    output = lines_of(client, batch.output_file_id)
    assert output.keys() == {f"c{i}" for i in range(40)}
    said = [output[f"c{i}"]["response"]["body"]["usage"]["completion_tokens"] for i in range(40)]
    assert said == list(range(1, 41))
    assert batch.usage.output_tokens == sum(said)
    stages = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert stages == sorted(stages)
    assert batch.id in {listed.id for listed in client.batches.list()}


def test_each_line_leaves_its_truth(client: openai.OpenAI, mock: MockServer):
    batch = settled(client, submitted(client, line("a"), line("b")).id)
    found = [mock.truth_of(f"{batch.id}-{name}") for name in "ab"]
    assert [(entry["protocol"], entry["path"], entry["completion_tokens"]) for entry in found] == [
        ("batch", CHAT, 3)
    ] * 2


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"model": "m", "prompt": "hi", "max_tokens": 2}),
        ("/v1/embeddings", {"model": "m", "input": "hi", "dimensions": 4}),
        ("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 2}),
        ("/v1/images/generations", {"prompt": "hi", "size": "8x8"}),
    ],
)
def test_batches_ask_all_sorts_of_endpoints(client: openai.OpenAI, endpoint: str, body: dict):
    batch = settled(client, submitted(client, line("a", endpoint, **body), endpoint=endpoint).id)
    assert batch.status == "completed"
    answer = lines_of(client, batch.output_file_id)["a"]["response"]
    assert answer["status_code"] == 200
    assert (
        answer["body"]["usage"]["total_tokens"] == batch.usage.total_tokens
        or endpoint == "/v1/images/generations"
    )


def test_lines_that_are_refused_are_in_the_error_file(client: openai.OpenAI):
    batch = settled(client, submitted(client, line("good"), line("bad", messages=[])).id)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"completed": 1, "failed": 1, "total": 2}
    assert lines_of(client, batch.output_file_id).keys() == {"good"}
    refused = lines_of(client, batch.error_file_id)["bad"]["response"]
    assert refused["status_code"] == 422
    assert "error" in refused["body"]


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", "empty_file", 1),
        (b"{", "invalid_json_line", 1),
        (line("a") + b"\n" + line("a"), "duplicate_custom_id", 2),
        (line("a") + b"\n\n" + line("b", "/v1/embeddings"), "mismatched_endpoint", 3),
        (b'{"custom_id":"a","method":"GET","url":"/v1/chat/completions","body":{}}', "invalid_request", 1),
        (b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":[]}', "invalid_request", 1),
    ],
)
def test_a_file_with_mistakes_fails_its_batch_and_says_where(content: bytes, code: str, number: int):
    _, errors = read_lines(content, CHAT)
    assert [(error["code"], error["line"]) for error in errors] == [(code, number)]


def test_a_failed_batch_tells_its_mistakes(client: openai.OpenAI):
    batch = settled(client, submitted(client, b"nonsense").id)
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 1)]
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_a_batch_that_is_not_done_in_time_expires_and_keeps_what_it_has():
    faults = [{"fault": "hang", "requests": [2]}]
    with (
        mock_server(faults=faults, options=["--batch-window", "0.5"], drain_s=0.1) as mock,
        openai.OpenAI(base_url=mock.url, api_key="x", max_retries=0) as client,
    ):
        batch = settled(client, submitted(client, line("a"), line("b"), line("c")).id)
        assert batch.status == "expired"
        assert batch.expired_at is not None
        assert batch.request_counts.model_dump() == {"completed": 2, "failed": 1, "total": 3}
        assert len(lines_of(client, batch.output_file_id)) == 2
        (late,) = lines_of(client, batch.error_file_id).values()
        assert late["error"]["code"] == "batch_expired"
        assert late["response"] is None


def test_a_cancelled_batch_stops_its_lines():
    with (
        mock_server(SLOW, options=["--batch-stage", "0.01"]) as mock,
        openai.OpenAI(base_url=mock.url, api_key="x", max_retries=0) as client,
    ):
        batch = submitted(client, *[line(f"c{i}") for i in range(20)])
        while client.batches.retrieve(batch.id).status == "validating":
            time.sleep(0.005)
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = settled(client, batch.id)
        assert batch.status == "cancelled"
        assert batch.output_file_id is None
        assert {item["error"]["code"] for item in lines_of(client, batch.error_file_id).values()} == {
            "batch_cancelled"
        }
        assert mock.health()["in_flight"] == 0
        assert {entry["end"] for entry in mock.truth()} == {"client_gone"}


def test_a_line_whose_answer_broke_off_is_an_error():
    (a,), _ = read_lines(line("a"), CHAT)
    text, good = answered_line(a, Answer(200, {}, b'{"choices": [{"mess'))
    assert not good
    assert json.loads(text)["error"]["code"] == "server_error"


def test_files_and_batches_want_the_key():
    with mock_server(api_key="right") as mock:
        for path in ("/v1/files", "/v1/batches", "/v1/tasks/x", "/user/balance"):
            assert httpx.get(mock.url + path, trust_env=False).status_code == 401
        with openai.OpenAI(base_url=mock.url, api_key="right", max_retries=0) as client:
            assert settled(client, submitted(client, line("a")).id).request_counts.completed == 1


@pytest.mark.parametrize("purpose", ["user_data", None])
def test_a_batch_needs_a_file_that_is_meant_for_it(client: openai.OpenAI, purpose: str | None):
    file_id = "file-none"
    if purpose:
        file_id = client.files.create(file=("a", b"a"), purpose=purpose).id
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
