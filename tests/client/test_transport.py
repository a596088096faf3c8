"""Claims about the stamps: taken where the bytes arrive, and never absurd."""

from __future__ import annotations

import os
import socket as names
import time

import gevent
import pytest
from scripted import CHAT_BODY, Peer, answers, attempt, http, serving

from harness.client import target, transport
from harness.client.exchange import deadlines
from harness.client.http1 import Connection
from harness.client.transport import READ_LAG, STAMPS, WALL, read_stamps
from harness.clock import Anchor, now_ns
from harness.record import Outcome

OK = http("200 OK", CHAT_BODY)
BUSY_NS = 200_000_000


class Silent(transport._socket):
    """One of a kernel that takes the option and gives no stamps, as some sandboxes do."""

    def recvmsg(self, *sizes: int):
        piece, _, flags, address = super().recvmsg(*sizes)
        return piece, [], flags, address


class Refusing(transport._socket):
    def setsockopt(self, *_: int) -> None:
        raise OSError(92, "Protocol not available")


@pytest.fixture
def fresh():
    """Nothing is known of the kernel, before and after."""
    read_stamps.cache_clear()
    yield
    read_stamps.cache_clear()


def answer_time_of_a_busy_client(stamps: str, server_tls=None, client_tls=None) -> int:
    """How long the answer seems to take, in ns, when the client's process is busy as the answer arrives."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.sock.setsockopt(
            names.IPPROTO_TCP, names.TCP_NODELAY, 1
        )  # TLS's tickets are not acknowledged yet
        peer.send(OK)
        until_ns = now_ns() + BUSY_NS
        while now_ns() < until_ns:
            pass  # the client shares this thread: it can't read now
        peer.until_gone()

    with serving(script, ssl_context=server_tls) as server:
        read_stamps()  # the kernel starts stamping a moment after the first socket asks for it
        connection = Connection(target.parse(server.url), tls=client_tls, stamps=stamps)
        exchanged = attempt(connection)
        connection.close()
    assert exchanged.outcome == Outcome.OK
    return exchanged.headers_ns - exchanged.sent_ns


@pytest.mark.parametrize("stamps", sorted({"user", STAMPS}))
def test_only_user_stamps_show_the_clients_own_business(stamps):
    seen_ns = answer_time_of_a_busy_client(stamps)
    assert seen_ns < BUSY_NS / 2 if stamps == "kernel" else seen_ns >= BUSY_NS


@pytest.fixture
def unnoticed(monkeypatch):
    """A step of the wall clock, in seconds, that is not noticed as long as the test runs."""

    def step(seconds: int) -> None:
        before = Anchor(wall_ns=WALL.ns + seconds * 10**9, monotonic_ns=0)
        monkeypatch.setattr(transport, "anchor", lambda: before)
        WALL.refresh()

    yield step
    monkeypatch.undo()
    WALL.refresh()


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_step_of_the_wall_clock_moves_no_stamp_out_of_its_bounds(unnoticed, step_s):
    unnoticed(step_s)
    stepped_ns = WALL.ns
    with serving(answers(OK)) as server:
        before = now_ns()
        record = attempt(server.url)
        elapsed = now_ns() - before
    assert WALL.ns == stepped_ns
    assert record.started_ns <= record.sent_ns <= record.headers_ns <= record.ended_ns
    assert record.ended_ns - record.started_ns <= elapsed


def test_a_step_of_the_wall_clock_is_soon_noticed(monkeypatch):
    with serving(answers(OK)) as server:
        attempt(server.url)
    monkeypatch.setattr(WALL, "ns", WALL.ns + 3600 * 10**9)
    deadlines(WALL.refresh).sweep()
    assert abs(WALL.ns - (time.time_ns() - now_ns())) < 10**9


@pytest.mark.parametrize("stamps", sorted({"user", STAMPS}))
def test_only_kernel_stamps_tell_how_long_bytes_lay_unread(stamps):
    READ_LAG.take()
    answer_time_of_a_busy_client(stamps)
    lag_ns = READ_LAG.take()
    assert (lag_ns >= BUSY_NS / 2) is (stamps == "kernel")
    assert READ_LAG.take() == 0


def test_a_clock_that_is_set_back_does_not_look_like_a_late_reader(unnoticed):
    unnoticed(3600)
    READ_LAG.take()
    with serving(answers(OK)) as server:
        before = now_ns()
        attempt(server.url)
        assert READ_LAG.take() <= now_ns() - before


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(STAMPS == "user", reason="the platform has no kernel stamps to be refused")
@pytest.mark.parametrize(
    ("kernel", "found"), [(transport._socket, "kernel"), (Silent, "user"), (Refusing, "user")]
)
def test_where_the_stamps_come_from_is_tried_out(monkeypatch, kernel, found):
    monkeypatch.setattr(transport, "_socket", kernel)
    monkeypatch.setattr(transport, "_PROBE_S", 0.001 if found == "user" else transport._PROBE_S)
    assert read_stamps() == found


@pytest.mark.usefixtures("fresh")
def test_a_connection_falls_back_on_its_own_stamps_where_the_kernel_has_none(monkeypatch):
    monkeypatch.setattr(transport, "_kernel_stamps", lambda: False)
    assert answer_time_of_a_busy_client("kernel") >= BUSY_NS


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


@pytest.mark.usefixtures("fresh")
def test_one_socket_goes_on_asking_so_that_the_kernel_does_not_cease_to_stamp():
    assert read_stamps() == STAMPS
    assert transport._asking.cache_info().currsize == 1
    with names.socket(fileno=os.dup(transport._asking())) as held:
        assert held.getsockopt(names.SOL_SOCKET, transport._SO_TIMESTAMPNS) == 1
