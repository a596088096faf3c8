"""Claims about the client, by answers in the formats that real servers document: captures/README.md.

What each answer says was read off the format's description, not off the client; nothing here knows
the bundled mock. However the network cuts the bytes, the record says the same.
"""

from __future__ import annotations

import http.client
import io
import socket as names
from itertools import pairwise
from pathlib import Path

import gevent
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Peer, attempt, serving

from harness.record import Outcome, Record, Usage

CAPTURES = Path(__file__).parent / "captures"


class Said(msgspec.Struct, frozen=True):
    """What an answer says, as far as a record keeps it."""

    outcome: Outcome = Outcome.OK
    error: str = ""
    status: int = 200
    finish: str | None = "stop"
    usage: Usage | None = None
    chunks: int = 0
    retry_after_s: float | None = None
    waits: bool = False
    """Keep-alives precede the answer."""
    thinks: bool = False
    """Reasoning precedes the content."""


def failed(status: int, name: str = "", **more) -> Said:
    """An answer under an error status; 429 is a refusal."""
    outcome = Outcome.REFUSED_BY_SERVER if status == 429 else Outcome.HTTP_ERROR
    return Said(outcome, f"HTTP {status} {name}".strip(), status, None, **more)


def broken(
    error: str, chunks: int = 0, finish: str | None = None, usage: Usage | None = None, **more
) -> Said:
    """A stream under status 200 that says that it failed."""
    return Said(Outcome.IN_BAND_ERROR, error, 200, finish, usage, chunks, **more)


def counted(chunks: int) -> Usage:
    """What is said of a stream without usage: the prompt's planned tokens, and one token a chunk."""
    return Usage(prompt=2, completion=chunks, source="estimate")


SAID = {
    "azure-429": failed(429, retry_after_s=13.0),
    "azure-asynchronous-filter-stream": Said(chunks=1, usage=counted(1)),
    "azure-chat-stream": Said(chunks=2, usage=Usage(12, 2, 0, 0)),
    "azure-content-filter-400": failed(400, "content_filter"),
    "cloudflare-520": failed(520),
    "cloudflare-524-page": failed(524),
    "deepseek-402": failed(402, "invalid_request_error"),
    "deepseek-429": failed(429, "rate_limit_reached"),
    "deepseek-503": failed(503, "service_unavailable_error"),
    "deepseek-chat": Said(usage=Usage(74, 7, 64), waits=True),
    "deepseek-chat-stream": Said(chunks=3, usage=Usage(18, 4, 0), waits=True),
    "deepseek-chat-without-wait": Said(usage=Usage(74, 7, 64)),
    "deepseek-insufficient-system-resource-stream": broken(
        "finish reason insufficient_system_resource", 2, "insufficient_system_resource", Usage(18, 2, 0)
    ),
    "deepseek-keep-alive-then-cut-stream": Said(
        Outcome.CUT, "connection closed in mid-answer", finish=None, waits=True
    ),
    "deepseek-reasoner-stream": Said(chunks=5, usage=Usage(146, 9, 128, 6), thinks=True),
    "groq-429": failed(429, "rate_limit_exceeded", retry_after_s=2.5),
    "groq-chat-include-usage-stream": Said(chunks=2, usage=Usage(18, 2, None, 1), thinks=True),
    "groq-chat-stream": Said(chunks=2, usage=Usage(18, 2)),
    "groq-error-in-stream": broken("error event: unnamed", 1, "stop"),
    "http10-hop-crlf-stream": Said(chunks=2, usage=Usage(9, 2), waits=True),
    "litellm-429": failed(429, "throttling_error", retry_after_s=7.0),
    "litellm-500": failed(500),
    "litellm-chat-stream": Said(chunks=2, usage=Usage(13, 2, 0, 0)),
    "litellm-error-in-stream": broken("error event: unnamed", 1),
    "llama-cpp-503": failed(503, "unavailable_error"),
    "llama-cpp-chat-stream": Said(chunks=3, usage=Usage(28, 3, 24)),
    "llama-cpp-chat-timings-on-finish-stream": Said(chunks=2, usage=counted(2), finish="length", thinks=True),
    "llama-cpp-error-field-in-stream": Said(
        Outcome.CUT, "stream ended without [DONE]", finish=None, chunks=1
    ),
    "llama-cpp-error-in-stream": broken("error event: server_error"),
    "mistral-429": failed(429, "service_tier_capacity_exceeded"),
    "mistral-chat-stream": Said(chunks=2, usage=Usage(10, 3)),
    "mistral-thinking": Said(usage=Usage(10, 5)),
    "mistral-thinking-stream": Said(chunks=4, usage=Usage(10, 5), finish="model_length", thinks=True),
    "nginx-502": failed(502),
    "nginx-503-retry-at-a-past-date": failed(503, retry_after_s=0.0),
    "nginx-504": failed(504),
    "nginx-gzip-lump-stream": Said(chunks=2, usage=Usage(9, 2)),
    "nginx-gzip-stream": Said(chunks=2, usage=Usage(9, 2)),
    "ollama-404": failed(404, "not_found_error"),
    "ollama-chat": Said(usage=Usage(26, 3)),
    "ollama-chat-stream": Said(chunks=4, usage=Usage(26, 5), thinks=True),
    "openai-429": failed(429, "rate_limit_exceeded", retry_after_s=2.0),
    "openai-chat": Said(usage=Usage(19, 10, 0, 0)),
    "openai-chat-content-filter-stream": Said(chunks=2, usage=Usage(25, 2, 0, 0), finish="content_filter"),
    "openai-chat-refusal-stream": Said(chunks=3, usage=Usage(83, 4, 0, 0)),
    "openai-chat-stream": Said(chunks=3, usage=Usage(19, 3, 0, 0)),
    "openai-chat-tools-stream": Said(chunks=6, usage=Usage(69, 17, 0, 0), finish="tool_calls"),
    "openai-chat-two-choices-stream": Said(chunks=2, usage=Usage(1040, 258, 1024, 256), finish="length"),
    "openai-completions": Said(usage=Usage(5, 7), finish="length"),
    "openai-completions-stream": Said(chunks=4, usage=Usage(5, 4), finish="length"),
    "openai-insufficient-quota": failed(429, "insufficient_quota"),
    "openrouter-chat-stream": Said(chunks=2, usage=Usage(9, 2, 0, 1), waits=True, thinks=True),
    "openrouter-error-in-stream": broken("error event: server_error", 1, "error", waits=True),
    "proxy-page-under-200": Said(Outcome.MALFORMED, "not the dialect's JSON but text/html", finish=None),
    "sglang-chat-stream": Said(chunks=3, usage=Usage(17, 3, 11, 1), thinks=True),
    "sglang-error-in-stream": broken("error event: BadRequestError"),
    "tgi-429": failed(429),
    "tgi-chat-stream": Said(chunks=3, usage=Usage(37, 4)),
    "tgi-error-in-stream": broken("error event: unnamed", 1),
    "together-chat-stream": Said(chunks=2, usage=Usage(39, 3, 0), finish="eos"),
    "vllm-400": failed(400, "BadRequestError"),
    "vllm-abort-stream": broken("finish reason abort", 1, "abort"),
    "vllm-chat-reasoning-stream": Said(chunks=2, usage=Usage(16, 2), finish="length", thinks=True),
    "vllm-chat-stream": Said(chunks=3, usage=Usage(16, 4, 16), thinks=True),
    "vllm-completions": Said(usage=Usage(6, 3), finish="length"),
    "vllm-completions-stream": Said(chunks=3, usage=Usage(6, 3)),
    "vllm-error-in-stream": broken("error event: InternalServerError", 1),
    "vllm-flat-error-in-stream": broken("error event: BadRequestError"),
    "vllm-flat-error-under-200": Said(Outcome.IN_BAND_ERROR, "error body: BadRequestError", finish=None),
}
BYTES = {path.stem: path.read_bytes() for path in sorted(CAPTURES.glob("*.http"))}


def heard(name: str, edges: list[int]) -> Record:
    """The record of a request that is answered with a capture, written in pieces between the edges."""
    answer = BYTES[name]

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.sock.setsockopt(names.IPPROTO_TCP, names.TCP_NODELAY, 1)
        for start, end in pairwise(edges):
            peer.send(answer[start:end])
            gevent.idle()  # until the client has read it: sleep(0) would let pieces gather

    dialect = "completions" if "-completions" in name else "chat"
    with serving(script) as server:
        return attempt(server.url, stream=name.endswith("-stream"), dialect=dialect)


def check(name: str, record: Record) -> None:
    """The record says what the answer said."""
    said = SAID[name]
    expected = (said.outcome, said.error, said.status, said.finish, said.usage, said.chunks)
    found = (record.outcome, record.error, record.status, record.finish_reason, record.usage)
    assert (*found, len(record.chunk_ns)) == expected
    assert record.retry_after_s == said.retry_after_s
    assert record.bytes_in == len(BYTES[name])
    assert said.waits or record.held_ns == 0


def test_every_capture_has_its_meaning():
    assert set(BYTES) == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_a_capture_is_http_to_another_parser_too(name):
    class Wire:
        def makefile(self, _mode: str) -> io.BytesIO:
            return io.BytesIO(BYTES[name])

    response = http.client.HTTPResponse(Wire())
    response.begin()
    assert response.status == SAID[name].status
    if "-then-cut-" in name:
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    else:
        assert response.read()


@pytest.mark.parametrize("name", SAID)
def test_an_answer_in_one_piece_is_understood(name):
    check(name, heard(name, [0, len(BYTES[name])]))


@pytest.mark.parametrize("name", SAID)
def test_an_answer_byte_by_byte_means_the_same(name):
    record = heard(name, list(range(len(BYTES[name]) + 1)))
    check(name, record)
    said = SAID[name]
    assert (record.held_ns > 0) == said.waits
    assert said.thinks == (
        record.first_content_ns is not None and record.first_token_ns < record.first_content_ns
    )


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(SAID)), st.lists(st.floats(0, 1), max_size=9))
def test_an_answer_cut_anywhere_means_the_same(name, cuts):
    size = len(BYTES[name])
    check(name, heard(name, [0, *sorted({round(cut * size) for cut in cuts} - {0, size}), size]))
