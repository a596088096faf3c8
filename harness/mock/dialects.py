"""Which reader and which writer each generating endpoint has."""

from __future__ import annotations

from collections.abc import Sequence

from harness.mock import api, messages, questions, responses
from harness.mock.generation import Said
from harness.mock.plan import Plan
from harness.mock.questions import Endpoint, Question, Refusal


def read(endpoint: Endpoint, body: bytes) -> Question | Refusal:
    """Understand a request's body."""
    if endpoint is Endpoint.RESPONSES:
        return responses.read(body)
    if endpoint is Endpoint.MESSAGES:
        return messages.read(body)
    return questions.read(endpoint, body)


def answer(
    question: Question,
    said: Sequence[Said],
    *,
    request_id: str,
    created: int,
    cached_tokens: int,
    token_offsets_ns: Sequence[int],
    fingerprint: str,
) -> Plan:
    """Write an answer out, as `api.answer` does, in the endpoint's own shapes."""
    if question.endpoint is Endpoint.MESSAGES:
        return messages.answer(
            question,
            said[0],
            request_id=request_id,
            cached_tokens=cached_tokens,
            token_offsets_ns=token_offsets_ns,
        )
    if question.endpoint is Endpoint.RESPONSES:
        return responses.answer(
            question,
            said[0],
            request_id=request_id,
            created=created,
            cached_tokens=cached_tokens,
            token_offsets_ns=token_offsets_ns,
        )
    return api.answer(
        question,
        said,
        request_id=request_id,
        created=created,
        cached_tokens=cached_tokens,
        token_offsets_ns=token_offsets_ns,
        fingerprint=fingerprint,
    )
