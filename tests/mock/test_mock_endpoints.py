"""Claims about the endpoints beside chat on the running mock, as the openai SDK and httpx see them."""

from __future__ import annotations

import base64
import io
import itertools
import wave
from collections.abc import Iterator

import httpx
import openai
import pytest

from harness.testing import MockServer, mock_server


@pytest.fixture
def client(mock: MockServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mock.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def get(mock: MockServer, path: str) -> httpx.Response:
    return httpx.get(mock.url + path, trust_env=False)


def post(mock: MockServer, path: str, body: dict, **headers: str) -> httpx.Response:
    return httpx.post(mock.url + path, json=body, headers=headers, trust_env=False)


def test_embeddings_are_what_the_sdk_unpacks(client: openai.OpenAI):
    packed = client.embeddings.create(model="e", input=["a", "b"], dimensions=4)
    plain = client.embeddings.create(model="e", input=["a", "b"], dimensions=4, encoding_format="float")
    assert [item.embedding for item in packed.data] == [item.embedding for item in plain.data]
    assert packed.usage.prompt_tokens == 2
    assert len(client.embeddings.create(model="e", input="a").data[0].embedding) == 1536


def test_images_come_in_the_answer_or_by_a_link(client: openai.OpenAI):
    inside = client.images.generate(model="i", prompt="a cat", size="64x32")
    linked = client.images.generate(model="i", prompt="a cat", size="64x32", response_format="url")
    picture = httpx.get(linked.data[0].url, trust_env=False)
    assert picture.headers["content-type"] == "image/png"
    assert base64.b64decode(inside.data[0].b64_json) == picture.content


def test_images_stream(client: openai.OpenAI):
    with client.images.generate(model="i", prompt="a", stream=True, partial_images=1) as events:
        kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


def test_what_was_spoken_can_be_transcribed(client: openai.OpenAI):
    with client.audio.speech.with_streaming_response.create(
        model="tts", voice="alloy", input="hello " * 10, response_format="wav"
    ) as answer:
        sound = answer.read()
    with wave.open(io.BytesIO(sound)) as parsed:
        seconds = parsed.getnframes() / parsed.getframerate()
    assert seconds == pytest.approx(4.08)
    whole = client.audio.transcriptions.create(model="w", file=("a.wav", sound))
    verbose = client.audio.transcriptions.create(
        model="w", file=("a.wav", sound), response_format="verbose_json"
    )
    assert (verbose.duration, verbose.text) == (seconds, whole.text)
    with client.audio.transcriptions.create(model="w", file=("a.wav", sound), stream=True) as events:
        *deltas, done = events
    assert "".join(event.delta for event in deltas) == done.text == whole.text
    assert (
        client.audio.transcriptions.create(model="w", file=("a.wav", sound), response_format="text").strip()
        == whole.text
    )


def test_speech_streams_as_events(client: openai.OpenAI):
    with client.audio.speech.with_streaming_response.create(
        model="tts", voice="alloy", input="hello", stream_format="sse"
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert '"speech.audio.done"' in lines[-1]


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/embeddings", {"model": "e", "input": "a"}, 0),
        ("/images/generations", {"prompt": "a", "size": "1024x1024"}, 272),
        ("/audio/speech", {"model": "e", "input": "a" * 36, "voice": "v"}, 10),
    ],
)
def test_they_leave_their_truth_and_meet_faults(mock: MockServer, path: str, body: dict, tokens: int):
    name = f"truth-of{path}"
    answer = post(mock, f"/v1{path}", body, **{"x-request-id": name})
    assert answer.headers["x-request-id"] == name
    entry = mock.truth_of(name)
    assert (entry["status"], entry["end"], entry["completion_tokens"]) == (200, "complete", tokens)
    refused = post(mock, path, body, **{"x-mock-fault": "status;code=429"})
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"


def test_speech_can_be_cut_off_but_has_no_events_to_break(mock: MockServer):
    body = {"model": "e", "input": "a" * 36, "voice": "v"}
    with pytest.raises(httpx.HTTPError):
        post(mock, "/audio/speech", body, **{"x-mock-fault": "cut;after=3"})
    for fault in ("error_event", "no_done", "keepalive", "malformed", "finish", "no_finish"):
        assert post(mock, "/audio/speech", body, **{"x-mock-fault": fault}).status_code == 400


def test_the_balance_is_deepseeks(mock: MockServer):
    balance = get(mock, "/user/balance").json()
    assert balance["is_available"] is True
    assert balance["balance_infos"][0] == {
        "currency": "USD",
        "total_balance": "110.00",
        "granted_balance": "10.00",
        "topped_up_balance": "100.00",
    }


def test_metrics_agree_with_the_truth():
    slow = {
        "ttft": {"distribution": "fixed", "value": "30ms"},
        "itl": {"distribution": "fixed", "value": "12ms"},
    }
    with mock_server(slow) as mock:
        chat = {"model": 'a "b"', "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        post(mock, "/chat/completions", chat | {"stream": True})
        before = parsed(get(mock, "/metrics").text)
        post(mock, "/chat/completions", chat | {"stream": True})
        post(mock, "/chat/completions", chat)
        post(mock, "/chat/completions", chat, **{"x-mock-fault": "status;code=500"})
        after = parsed(get(mock, "/v1/metrics").text)
        first, second, whole, *_ = mock.truth()
    label = 'engine="0",model_name="a \\"b\\""'
    assert before[f"vllm:generation_tokens_total{{{label}}}"] == 4
    assert after[f"vllm:generation_tokens_total{{{label}}}"] == 12
    assert after[f'vllm:request_success_total{{{label},finished_reason="length"}}'] == 3
    assert after[f"vllm:time_to_first_token_seconds_count{{{label}}}"] == 3
    firsts = [
        (first, first["chunk_ns"][0]),
        (second, second["chunk_ns"][0]),
        (whole, whole["prefill_end_ns"]),
    ]
    waited_s = sum(first_ns - entry["arrived_ns"] for entry, first_ns in firsts) / 1e9
    assert after[f"vllm:time_to_first_token_seconds_sum{{{label}}}"] == pytest.approx(waited_s)
    assert after[f"vllm:inter_token_latency_seconds_count{{{label}}}"] == 6
    gaps = [b - a for entry in (first, second) for a, b in itertools.pairwise(entry["chunk_ns"])]
    short = sum(gap <= 10_000_000 for gap in gaps)
    assert after[f'vllm:inter_token_latency_seconds_bucket{{{label},le="0.01"}}'] == short
    assert after[f'vllm:inter_token_latency_seconds_bucket{{{label},le="+Inf"}}'] == 6
    assert after[f"vllm:e2e_request_latency_seconds_count{{{label}}}"] == 3


def parsed(text: str) -> dict[str, float]:
    """Series to value; each series once, and each of a family that says what it is."""
    series: dict[str, float] = {}
    families: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            families[name] = kind
        elif not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            assert name not in series
            series[name] = float(value)
            family = name.partition("{")[0]
            stem = next(
                (family.removesuffix(end) for end in ("_bucket", "_count", "_sum") if family.endswith(end)),
                "",
            )
            assert family in families or families[stem] == "histogram"
    return series


def test_requests_that_run_are_counted_while_they_do():
    slow = {"ttft": {"distribution": "fixed", "value": "5s"}, "itl": {"distribution": "fixed", "value": "0s"}}
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with mock_server(slow, drain_s=0.1) as mock:
        for _ in range(3):
            assert post(mock, "/chat/completions", chat, prefer="respond-async").status_code == 202
        running: set[float] = set()
        while running != {3.0}:
            running = {
                value for name, value in parsed(get(mock, "/metrics").text).items() if "_running" in name
            }


def test_under_an_engine_they_queue_like_everything_else():
    engine = {"engine": {"step": {"base": "2ms"}, "batch": 1}}
    picture = {"prompt": "a", "size": "256x256"}
    with mock_server(engine) as mock:
        post(mock, "/images/generations", picture, **{"x-request-id": "whole"})
        post(
            mock,
            "/images/generations",
            picture | {"stream": True, "partial_images": 1},
            **{"x-request-id": "parts"},
        )
        post(mock, "/embeddings", {"model": "e", "input": "a"}, **{"x-request-id": "vector"})
        whole, parts, vector = (mock.truth_of(name) for name in ("whole", "parts", "vector"))
    assert whole["ended_ns"] - whole["arrived_ns"] >= 17 * 2_000_000
    first, last = (stamp - parts["arrived_ns"] for stamp in parts["chunk_ns"])
    assert first >= 9 * 2_000_000
    assert last >= 17 * 2_000_000
    assert vector["ended_ns"] - vector["arrived_ns"] >= 2_000_000


def test_a_position_beyond_all_reason_is_refused(mock: MockServer):
    assert get(mock, f"/__truth?since={'9' * 18}").status_code == 200
    assert get(mock, f"/__truth?since={'9' * 19}").status_code == 400
