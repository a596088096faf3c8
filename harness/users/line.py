"""A virtual user's line to the target: HTTP/1.1 for single requests, one HTTP/2 connection for batches."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol

import msgspec

from harness.client.call import Call
from harness.client.http1 import Connection
from harness.client.http2 import Mux
from harness.client.send import Policy, policy, send_batch, sender
from harness.client.target import Target, api_key, parse
from harness.client.transport import tls_context
from harness.record import Kind, Record
from harness.workload.scenario import Scenario

Log = Callable[[Record], None]


class Line(Protocol):
    """One virtual user's connection, and how it carries an arrival."""

    def carry(self, calls: Sequence[Call], due_ns: int | None, origin_ns: int, log: Log) -> Sequence[Record]:
        """Send an arrival's requests and wait for all; log every attempt; give the final records."""

    def close(self) -> None:
        """Close the connection."""


class Lines(msgspec.Struct, frozen=True):
    """What all lines of one process have in common. Made by `lines`."""

    target: Target
    policy: Policy
    tls: dict[str, ssl.SSLContext]
    """One shared context a protocol: each costs some 20 ms to make."""

    def line(self, kind: Kind) -> Line:
        """A line for a virtual user of this kind; it connects when it is first used."""
        if kind is Kind.BATCH:
            return _BatchLine(Mux(self.target, tls=self.tls.get(Mux.wire)), self.policy)
        return _SingleLine(Connection(self.target, tls=self.tls.get(Connection.wire)), self.policy)


def lines(url: str, scenario: Scenario, environ: Mapping[str, str], *, worker: int) -> Lines:
    """Make the lines' common part for one worker.

    Args:
        url: the target's base URL.
        scenario: says timeouts and retries.
        environ: holds the key.
        worker: salts the retries' jitter, so that workers do not retry in step.

    Raises:
        ConfigError: the URL or the key cannot be used.
    """
    target = parse(url, key=api_key(url, environ))
    names = (Connection.wire, Mux.wire) if target.scheme == "https" else ()
    return Lines(
        target=target,
        policy=policy(scenario.timeouts, scenario.retries, Random(f"{scenario.seed} {worker}")),
        tls={name: tls_context(name) for name in names},
    )


class _SingleLine:
    def __init__(self, connection: Connection, policy: Policy) -> None:
        self._connection = connection
        self._policy = policy
        self._send = sender(policy)

    def carry(self, calls: Sequence[Call], due_ns: int | None, origin_ns: int, log: Log) -> Sequence[Record]:
        (call,) = calls
        return (self._send(self._connection, call, due_ns, origin_ns, self._policy, log),)

    def close(self) -> None:
        self._connection.close()


class _BatchLine:
    def __init__(self, mux: Mux, policy: Policy) -> None:
        self._mux = mux
        self._policy = policy

    def carry(self, calls: Sequence[Call], due_ns: int | None, origin_ns: int, log: Log) -> Sequence[Record]:
        return send_batch(self._mux, calls, due_ns=due_ns, origin_ns=origin_ns, policy=self._policy, log=log)

    def close(self) -> None:
        self._mux.close()
