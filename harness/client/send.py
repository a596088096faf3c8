"""One request, start to end -> Record; never raises for a remote fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from typing import Protocol

import gevent
import msgspec
import tenacity
from gevent import GreenletExit

from harness.client.answer import Said, Stream, held_ns, read_body, retry_after_s, status_fault
from harness.client.call import Call, prepare
from harness.client.exchange import Exchange, Limits, limits
from harness.client.http2 import Mux
from harness.clock import now_ns
from harness.record import Outcome, Record, Usage
from harness.workload.scenario import Retries, Timeouts

__all__ = ["Log", "Policy", "Wire", "policy", "prepare", "send_batch", "sender"]

Log = Callable[[Record], None]

_OK = Outcome.OK  # looking up a member costs more than a call in Python 3.11
_NOTHING: Said = (_OK, "", None, None)


class Wire(Protocol):
    """A connection to the target: `http1.Connection` or `http2.Mux`."""

    wire: str

    def exchange(self, exchange: Exchange, call: Call) -> None:
        """Send, and wait for the end."""

    def drop(self, exchange: Exchange) -> None:
        """Give an exchange up."""


class Policy(msgspec.Struct, frozen=True):
    """How long to wait and how often to try. Made by `policy`."""

    limits: Limits
    retries: Retries | None
    """None: one attempt, and no machinery."""
    random: Random
    sleep: Callable[[float], None]


def policy(
    timeouts: Timeouts,
    retries: Retries,
    random: Random,
    sleep: Callable[[float], None] = gevent.sleep,
) -> Policy:
    """A virtual user's policy.

    Args:
        timeouts: the scenario's.
        retries: the scenario's.
        random: a seeded source for the jitter.
        sleep: how to wait, in seconds; must yield to the hub.
    """
    return Policy(limits(timeouts), retries if retries.attempts > 1 else None, random, sleep)


Send = Callable[[Wire, Call, int | None, int, Policy, Log], Record]
"""Sends a prepared request, and logs one record an attempt.

Args:
    connection: who carries it.
    call: from `prepare`.
    due_ns: when it was due, in nanoseconds since the origin; None in a closed loop.
    origin_ns: the run's start on `clock.now_ns`; all stamps in records count from it.
    policy: timeouts and retries.
    log: given each attempt's record, in order.

Returns:
    The final attempt's record.

Raises:
    GreenletExit: the virtual user was killed; the record that says so is logged before.
"""


def sender(policy: Policy) -> Send:
    """How to send under a policy: once, or again if it says so."""
    return _send_once if policy.retries is None else _send_with_retries


def send_batch(
    mux: Mux,
    calls: Sequence[Call],
    *,
    due_ns: int | None,
    origin_ns: int,
    policy: Policy,
    log: Log,
) -> list[Record]:
    """Send prepared requests at once over one HTTP/2 connection, and wait for all.

    Returns:
        The final records, in the order of the calls.

    Raises:
        GreenletExit: as `Send`; every request under way has been logged.
    """
    send = sender(policy)
    each = [gevent.spawn(send, mux, call, due_ns, origin_ns, policy, log) for call in calls]
    try:
        gevent.joinall(each)
    except BaseException:  # a kill: the requests must end, and be logged, before the batch does
        gevent.killall(each)
        raise
    return [greenlet.get() for greenlet in each]


def _send_once(  # noqa: PLR0917 - by keyword, so many arguments cost a call more
    connection: Wire,
    call: Call,
    due_ns: int | None,
    origin_ns: int,
    policy: Policy,
    log: Log,
    number: int = 0,
) -> Record:
    """One attempt."""
    stream = Stream(call) if call.streams else None
    exchange = Exchange(policy.limits, now_ns(), stream)
    try:
        connection.exchange(exchange, call)
    except GreenletExit:
        connection.drop(exchange)
        exchange.finish(now_ns(), Outcome.CANCELLED, "cut off: the run ended first")
        log(_record(connection.wire, call, number, exchange, stream, due_ns, origin_ns))
        raise
    except BaseException:  # a bug, or a timeout of the caller's: leave no half-read connection behind
        connection.drop(exchange)
        raise
    record = _record(connection.wire, call, number, exchange, stream, due_ns, origin_ns)
    log(record)
    return record


def _record(  # noqa: PLR0917 - as `_send_once`
    wire: str,
    call: Call,
    number: int,
    exchange: Exchange,
    stream: Stream | None,
    due_ns: int | None,
    origin_ns: int,
) -> Record:
    """The exchange and its answer as one record."""
    request = call.request
    outcome, error, finish_reason, usage = _judge(exchange, stream, call)
    first_event_ns = first_token_ns = first_content_ns = None
    chunk_ns: Sequence[int] = ()
    if stream is not None:
        if usage is None and outcome is _OK:
            usage = _estimate(stream, call)
        first_event_ns, first_token_ns = stream.first_event_ns, stream.first_token_ns
        first_content_ns = stream.first_content_ns
        chunk_ns = [stamp_ns - origin_ns for stamp_ns in stream.chunk_ns]
    sent = exchange.bytes_out > 0
    asked_s = None if exchange.status == 200 else retry_after_s(exchange.header(b"retry-after"))

    # By position, in Record's order: by keyword, so many fields cost ten times as much.
    return Record(
        request.seq,
        request.index,
        number,  # attempt
        True,  # final
        request.id,
        request.kind,
        request.dialect,
        request.model,
        request.session,
        request.turn,
        call.trace_id if sent else "",
        call.span_id if sent else "",
        due_ns,
        exchange.started_ns - origin_ns,
        None if exchange.connected_ns is None else exchange.connected_ns - origin_ns,
        None if exchange.sent_ns is None else exchange.sent_ns - origin_ns,
        None if exchange.headers_ns is None else exchange.headers_ns - origin_ns,
        None if first_event_ns is None else first_event_ns - origin_ns,
        None if first_token_ns is None else first_token_ns - origin_ns,
        None if first_content_ns is None else first_content_ns - origin_ns,
        chunk_ns,
        None if exchange.ended_ns is None else exchange.ended_ns - origin_ns,
        held_ns(exchange, stream),
        exchange.status,
        outcome,
        error,
        finish_reason,
        usage,
        asked_s,  # retry_after_s
        exchange.reused,
        wire,
        exchange.bytes_in,
        exchange.bytes_out,
        request.tags,
    )


def _send_with_retries(  # noqa: PLR0917 - as `_send_once`
    connection: Wire,
    call: Call,
    due_ns: int | None,
    origin_ns: int,
    policy: Policy,
    log: Log,
) -> Record:
    """Exponential backoff with full jitter; tenacity holds the policy.

    An attempt's record is logged when the next one starts, so that a kill while waiting can still
    make it the final one.
    """
    retries = policy.retries
    assert retries is not None
    held: list[Record] = []
    numbers = count()

    def once() -> Record:
        while held:
            log(held.pop())
        number = next(numbers)
        this_call = call if number == 0 else call.again()
        record = _send_once(connection, this_call, due_ns, origin_ns, policy, held.append, number)
        if number + 1 < retries.attempts and _retriable(record, retries):
            held[0] = record = msgspec.structs.replace(record, final=False)
        return record

    def wait(state: tenacity.RetryCallState) -> float:
        ceiling_s = min(retries.backoff_max_s, retries.backoff_s * 2 ** (state.attempt_number - 1))
        asked_s = held[-1].retry_after_s if retries.honour_retry_after else None
        return max(policy.random.uniform(0, ceiling_s), asked_s or 0.0)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(retries.attempts),
        retry=tenacity.retry_if_result(lambda record: not record.final),
        wait=wait,
        sleep=policy.sleep,
    )
    try:
        record = retrying(once)
    except GreenletExit:
        for waiting in held:
            log(msgspec.structs.replace(waiting, final=True))
        raise
    log(record)
    return record


def _retriable(record: Record, retries: Retries) -> bool:
    return record.outcome in retries.outcomes or (
        record.outcome in {Outcome.HTTP_ERROR, Outcome.REFUSED_BY_SERVER}
        and record.status in retries.statuses
    )


def _judge(exchange: Exchange, stream: Stream | None, call: Call) -> Said:
    """Read what is still unread, and say how the attempt ended.

    A status that is an error comes first, then what the wire saw, then what the answer said.
    """
    status = exchange.status
    if status == 200 and stream is None and exchange.outcome is None:
        return read_body(exchange, call.dialect.decode_body)  # as most do
    said = _NOTHING
    if stream is not None:
        if status is not None and status < 300:
            exchange.digest()
            stream.end(exchange)
        said = stream.said
    elif status is not None and status < 300 and exchange.outcome is None:
        said = read_body(exchange, call.dialect.decode_body)
    outcome, error, finish_reason, usage = said
    fault = None if status == 200 else status_fault(exchange)
    if fault is not None:
        outcome, error = fault
    # An error the server named before it hung up says more than the hanging up.
    elif exchange.outcome is not None and outcome is not Outcome.IN_BAND_ERROR:
        outcome, error = exchange.outcome, exchange.error
    return outcome, error, finish_reason, usage


def _estimate(stream: Stream, call: Call) -> Usage:
    """Of a stream whose server did not count: one token a chunk."""
    return Usage(prompt=call.request.prompt_tokens, completion=len(stream.chunk_ns), source="estimate")
