"""Claims about the stamps: taken where the bytes arrive, and never absurd."""

from __future__ import annotations

import gevent
import pytest
from scripted import CHAT_BODY, Peer, answers, attempt, http, serving

from harness.client import target
from harness.client.http1 import Connection
from harness.client.transport import STAMPS, WALL, WallOffset
from harness.clock import Anchor, now_ns
from harness.record import Outcome

OK = http("200 OK", CHAT_BODY)
BUSY_NS = 40_000_000


def answer_time_of_a_busy_client(stamps: str) -> int:
    """How long the answer seems to take, in ns, when the client's process is busy as the answer arrives."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(OK)
        until_ns = now_ns() + BUSY_NS
        while now_ns() < until_ns:
            pass  # the client shares this thread: it can't read now
        peer.until_gone()

    with serving(answers(OK), script) as server:
        attempt(server.url)  # the kernel starts stamping a moment after the first socket asks for it
        connection = Connection(target.parse(server.url), stamps=stamps)
        exchanged = attempt(connection)
        connection.close()
    assert exchanged.outcome == Outcome.OK
    return exchanged.headers_ns - exchanged.sent_ns


@pytest.mark.parametrize("stamps", sorted({"user", STAMPS}))
def test_only_user_stamps_show_the_clients_own_business(stamps):
    seen_ns = answer_time_of_a_busy_client(stamps)
    assert seen_ns < BUSY_NS / 2 if stamps == "kernel" else seen_ns >= BUSY_NS


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_step_of_the_wall_clock_moves_no_stamp_out_of_its_bounds(monkeypatch, step_s):
    monkeypatch.setattr(WALL, "refresh", lambda: None)
    monkeypatch.setattr(WALL, "ns", WALL.ns + step_s * 10**9)
    with serving(answers(OK)) as server:
        before = now_ns()
        record = attempt(server.url)
        elapsed = now_ns() - before
    assert record.started_ns <= record.sent_ns <= record.headers_ns <= record.ended_ns
    assert record.ended_ns - record.started_ns <= elapsed


def test_a_step_of_the_wall_clock_is_counted(monkeypatch):
    offset = WallOffset()
    for wall_ns, steps in ((10**12, 1), (10**12 + 900_000, 1), (2 * 10**12, 2)):
        monkeypatch.setattr("harness.client.transport.anchor", lambda w=wall_ns: Anchor(w, 0))
        offset.refresh()
        assert (offset.ns, offset.steps) == (wall_ns, steps)


def test_ready_sockets_are_read_before_anybody_is_woken():
    """Two answers that lie ready together are both stamped before either user's code runs."""
    order: list[str] = []

    class Spy(Connection):
        def on_bytes(self, piece: bytes, stamp_ns: int) -> None:
            order.append("read")
            super().on_bytes(piece, stamp_ns)

    ready: list[Peer] = []

    def script(peer: Peer) -> None:
        peer.read_request()
        ready.append(peer)
        if len(ready) == 2:
            for each in ready:
                each.send(OK)
        peer.until_gone()

    def user() -> None:
        connection = Spy(target.parse(server.url))
        attempt(connection)
        order.append("woken")
        connection.close()

    with serving(script) as server:
        gevent.joinall([gevent.spawn(user), gevent.spawn(user)], raise_error=True)
    assert order == ["read", "read", "woken", "woken"]
