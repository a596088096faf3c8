"""Claims about answers that are asked for later."""

from __future__ import annotations

import time

import httpx
import pytest

from harness.mock.tasks import in_background
from harness.testing import MockServer, mock_server

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
LATER = {"prefer": "respond-async"}


def client(mock: MockServer) -> httpx.Client:
    return httpx.Client(base_url=mock.url, trust_env=False, timeout=20)


def settled(http: httpx.Client, place: str) -> dict:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        task = http.get(place).raise_for_status().json()
        if task["status"] in {"completed", "failed"}:
            return task
        time.sleep(0.01)
    raise AssertionError(task)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/completions", {"model": "m", "prompt": "hi", "max_tokens": 4}),
        ("/v1/responses", {"model": "m", "input": "hi", "max_output_tokens": 4}),
        ("/embeddings", {"model": "m", "input": "hi", "dimensions": 2}),
        ("/v1/images/generations", {"prompt": "a", "size": "4x4"}),
    ],
)
def test_the_result_of_a_task_is_the_answer(mock: MockServer, path: str, body: dict):
    with client(mock) as http:
        accepted = http.post(path, json=body, headers=LATER)
        assert accepted.status_code == 202
        assert accepted.headers["preference-applied"] == "respond-async"
        assert accepted.json()["status"] == "queued"
        task = settled(http, accepted.headers["location"])
        at_once = http.post(path, json=body).json()
    assert task["status"] == "completed"
    assert task["result"].keys() == at_once.keys()
    assert task["created_at"] <= task["started_at"] <= task["ended_at"]


def test_a_task_may_be_asked_for_in_the_body_and_leaves_its_truth(mock: MockServer):
    with client(mock) as http:
        headers = {"x-request-id": "a-task"}
        accepted = http.post("/chat/completions", json=CHAT | {"background": True}, headers=headers)
        task = settled(http, f"/tasks/{accepted.json()['id']}")
        assert task["result"]["usage"]["completion_tokens"] == 4
        told = http.post("/chat/completions", json=CHAT | {"background": False})
        assert told.status_code == 200
    truth = mock.truth_of("a-task")
    assert (truth["protocol"], truth["completion_tokens"]) == ("task", 4)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("status;code=503", "Server Overloaded"),
        ("cut;after=1", "not whole JSON"),
        ("reset", "not whole JSON"),
    ],
)
def test_an_answer_that_fails_is_a_task_that_failed(mock: MockServer, fault: str, message: str):
    with client(mock) as http:
        accepted = http.post("/chat/completions", json=CHAT, headers={**LATER, "x-mock-fault": fault})
        task = settled(http, accepted.headers["location"])
    assert task["status"] == "failed"
    assert task["result"] is None
    assert message in task["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status"), [({"stream": True}, 400), ({"messages": []}, 422), ({"background": "yes"}, 422)]
)
def test_what_cannot_become_a_task_is_refused_at_once(mock: MockServer, change: dict, status: int):
    with client(mock) as http:
        assert http.post("/chat/completions", json=CHAT | change, headers=LATER).status_code == status


def test_tasks_beyond_the_slots_wait_in_a_queue():
    slow = {
        "ttft": {"distribution": "fixed", "value": "300ms"},
        "itl": {"distribution": "fixed", "value": "0s"},
    }
    with mock_server(slow, options=["--task-slots", "1"]) as mock, client(mock) as http:
        places = [http.post("/chat/completions", json=CHAT, headers=LATER).headers["location"] for _ in "ab"]
        while (first := http.get(places[0]).json())["status"] == "queued":
            pass
        assert first["status"] == "running"
        assert http.get(places[1]).json()["status"] == "queued"
        assert [settled(http, place)["status"] for place in places] == ["completed"] * 2
        one, two = mock.truth()
        assert two["arrived_ns"] >= one["ended_ns"]


@pytest.mark.parametrize(
    ("body", "prefer", "expected"),
    [
        (b"{}", None, False),
        (b"{}", "respond-async, wait=10", True),
        (b'{"background": true}', None, True),
        (b'{"background": null}', None, False),
        (b'{"content": "\\"background\\": true"}', None, False),
        (b'{"background": tru', None, False),
        (b'{"stream": "yes"}', None, False),
    ],
)
def test_a_task_is_what_asks_to_be_one(body: bytes, prefer: str | None, expected: bool):
    assert in_background(body, prefer) is expected


def test_there_is_no_task_that_nobody_asked_for(mock: MockServer):
    with client(mock) as http:
        assert http.get("/v1/tasks/task_none").status_code == 404
        assert http.post("/v1/tasks/task_none").status_code == 405
