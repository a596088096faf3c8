"""Faults below the HTTP library, where the bytes are its own: inside TLS and on HTTP/2.

    library ──► TLS ──► descriptor ──► socket ──► client
                             └──► tap ──┘            torn in the middle, or one byte after the other

The library keeps its descriptor and its state; what stands behind the number is changed. So the fault meets
whatever the wire is made of, be it records or frames, and nothing here knows their formats.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from granian._granian import RSGIHTTPProtocol as HTTPProtocol

from harness.mock.mangle import head_size
from harness.mock.plan import Ending, Kind, Mangling, Plan, Step
from harness.mock.wire import break_connection, find

_NS = 1_000_000_000
_FLUSH_NS = 20_000_000
"""Before the write that is torn, so that those before it have passed through the library's thread."""
_FAILED_S = 1.0
"""By then the library has read what it fails on."""
_PIECE = 65_536
_GONE = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}
_tapped: set[str] = set()
"""Clients whose connections are tapped at present: of an HTTP/2 connection's answers, one at a time."""


def below(
    plan: Plan, mangling: Mangling, proto: HTTPProtocol, client: str, loop: asyncio.AbstractEventLoop
) -> tuple[Plan, Line]:
    """The plan as it is then played, and what it is played into.

    Args:
        plan: an answer.
        mangling: its own.
        proto: where the library takes the answer.
        client: the peer's address, `host:port`.
        loop: calls when bytes are to be passed on.
    """
    head = Step(0, b"", Kind.HEAD)
    if mangling.stream_alone:
        return plan._replace(steps=[head, *plan.steps]), Unreadable(plan, proto, loop)
    if mangling.cut_in_head:
        nothing = plan._replace(
            steps=[Step(0, b"", Kind.FRAME)], ending=Ending.RESET, completion_tokens=0, finish_reason=None
        )
        return nothing, Torn(plan, proto, client, loop, whole=0)
    if mangling.cut_in_chunk:
        *kept, broken = plan.steps
        broken = broken._replace(at_ns=broken.at_ns + _FLUSH_NS, kind=Kind.FRAME)
        return plan._replace(steps=[head, *kept, broken]), Torn(
            plan, proto, client, loop, whole=1 + len(kept)
        )
    lasts_ns = round(mangling.pause_s * head_size(plan) * _NS)
    late = [step._replace(at_ns=max(step.at_ns, lasts_ns)) for step in plan.steps]
    steps = [Step(0, b"", Kind.FRAME), head._replace(at_ns=lasts_ns), *late]
    return plan._replace(steps=steps), Slow(plan, proto, client, loop, lasts_s=lasts_ns / _NS)


class Line:
    """An answer on its way through the library.

    Args:
        plan: the answer.
        proto: where the library takes it.
        client: the peer's address, `host:port`.
    """

    def __init__(self, plan: Plan, proto: HTTPProtocol, client: str) -> None:
        assert plan.status is not None
        self._status, self._headers = plan.status, plan.headers
        self._proto = proto
        self._client = client
        self._write: Callable[[bytes], object] | None = None

    def send(self, payload: bytes) -> None:
        """Begin the answer, with the first call; then write."""
        if self._write is None:
            self._write = self._proto.response_stream(self._status, self._headers).send_bytes
        elif payload:
            self._write(payload)

    def end(self, ending: Ending) -> bool:
        """Break the connection as the plan says, and tell whether it was there."""
        return break_connection(self._client, reset=ending is Ending.RESET)

    def release(self) -> None:
        """Let go of everything."""
        self._write = None


class Torn(Line):
    """One write reaches the client by half, and nothing after it.

    Args:
        plan: the answer.
        proto: where the library takes it.
        client: the peer's address, `host:port`.
        loop: calls when bytes are to be passed on.
        whole: how many writes come before it, the head's counted.
    """

    def __init__(
        self,
        plan: Plan,
        proto: HTTPProtocol,
        client: str,
        loop: asyncio.AbstractEventLoop,
        *,
        whole: int,
    ) -> None:
        super().__init__(plan, proto, client)
        self._loop = loop
        self._whole = whole
        self._tap: _Tap | None = None
        self._torn = False

    def send(self, payload: bytes) -> None:
        """Write; half of it if its turn has come."""
        if not self._whole:
            self._tap = _Tap(self._client, self._loop, self._tear)
        self._whole -= 1
        super().send(payload)

    def end(self, ending: Ending) -> bool:
        """Break the connection in the middle of what it carries."""
        self._remove()
        return super().end(ending)

    def release(self) -> None:
        """Let go of everything."""
        self._remove()
        super().release()

    def _tear(self, piece: bytes) -> bytes:
        kept = b"" if self._torn else piece[: len(piece) // 2]
        self._torn = True
        return kept

    def _remove(self) -> None:
        if self._tap is not None:
            self._tap.remove()
            self._tap = None


class Slow(Line):
    """The head byte by byte, and then the rest as ever; the connection goes on.

    Args:
        plan: the answer.
        proto: where the library takes it.
        client: the peer's address, `host:port`.
        loop: calls when bytes are to be passed on.
        lasts_s: how long the head takes.
    """

    def __init__(
        self,
        plan: Plan,
        proto: HTTPProtocol,
        client: str,
        loop: asyncio.AbstractEventLoop,
        *,
        lasts_s: float,
    ) -> None:
        super().__init__(plan, proto, client)
        self._loop = loop
        self._lasts_s = lasts_s
        self._began_s = time.monotonic()
        self._head = b""
        self._sent = 0
        self._tap: _Tap | None = _Tap(client, loop, self._hold)

    def send(self, payload: bytes) -> None:
        """Begin, or write; what is left of the head then goes before it."""
        if payload:
            self._let_through()
        super().send(payload)

    def end(self, ending: Ending) -> bool:
        """Break the connection, unless the answer is complete."""
        self._let_through()
        return ending is Ending.COMPLETE or super().end(ending)

    def release(self) -> None:
        """Let go of everything."""
        self._let_through()
        super().release()

    def _hold(self, piece: bytes) -> bytes:
        if self._tap is None:
            return piece
        self._head += piece
        if self._head == piece:
            self._trickle()
        return b""

    def _trickle(self) -> None:
        """Send the bytes that are due: the timer may be coarser than they are."""
        if self._tap is None:
            return
        share = (time.monotonic() - self._began_s) / self._lasts_s if self._lasts_s else 1.0
        due = min(len(self._head), 1 + int(share * len(self._head)))
        self._tap.pass_on(self._head[self._sent : due])
        self._sent = due
        if due < len(self._head):
            self._loop.call_later(self._lasts_s / len(self._head), self._trickle)

    def _let_through(self) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            tap.pass_on(self._head[self._sent :])
            tap.remove()


class Unreadable(Line):
    """HTTP/2: the stream is reset, and its connection goes on.

    The library resets a stream whose body it cannot read to its end. So it is given a file to read the body
    from, a pipe, and the pipe fails it. RST_STREAM says INTERNAL_ERROR; a line feed may come before it.

    Args:
        plan: the answer.
        proto: where the library takes it.
        loop: calls when the pipe may be closed.
    """

    def __init__(self, plan: Plan, proto: HTTPProtocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(plan, proto, "")
        self._loop = loop
        self._folder = Path(tempfile.mkdtemp(prefix="harness-mock-"))
        self._pipe = self._folder / "body"
        os.mkfifo(self._pipe, 0o600)
        # Open for reading, too, so that nobody need be there yet.
        self._descriptor = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK)
        self._left = b""

    def send(self, payload: bytes) -> None:
        """Begin, or write."""
        if self._write is None:
            self._proto.response_file(self._status, self._headers, str(self._pipe))
            self._write = self._put
        else:
            self._write(payload)

    def end(self, ending: Ending) -> bool:  # noqa: ARG002 - there is one way only
        """Fail the library's next read."""
        readers = self._readers()
        for reader in readers:
            fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_NONBLOCK)
        if readers:
            # Whoever waits for bytes is woken by bytes alone, and finds none the next time.
            self._put(b"\n")
        return bool(readers)

    def release(self) -> None:
        """Let go of everything; of the pipe later, for its end would be the body's."""
        super().release()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._loop.call_later(_FAILED_S, os.close, self._descriptor)

    def _put(self, payload: bytes) -> None:
        waiting, self._left = bool(self._left), self._left + payload
        if not waiting:
            self._push()

    def _push(self) -> None:
        if self._write is None:
            return
        with contextlib.suppress(BlockingIOError):  # The pipe is full: again, soon.
            self._left = self._left[os.write(self._descriptor, self._left) :]
        if self._left:
            self._loop.call_later(0.001, self._push)

    def _readers(self) -> list[int]:
        """The library's descriptors of the pipe: none once it has given up."""
        own = os.fstat(self._descriptor)
        found = []
        for path in Path("/dev/fd").iterdir():
            descriptor = int(path.name)
            try:
                status = os.fstat(descriptor)
                flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            except OSError:
                continue  # The descriptor of the listing itself, closed by now.
            same = stat.S_ISFIFO(status.st_mode) and os.path.samestat(status, own)
            if same and flags & os.O_ACCMODE == os.O_RDONLY:
                found.append(descriptor)
        return found


class _Tap:
    """What stands between the library's descriptor of a connection and the connection.

    Args:
        client: the peer's address; of one that is gone, or tapped already, nothing is.
        loop: calls when the library has written.
        passing: what is passed on of what the library wrote.
    """

    def __init__(
        self, client: str, loop: asyncio.AbstractEventLoop, passing: Callable[[bytes], bytes]
    ) -> None:
        self._loop = loop
        self._passing = passing
        self._client = client
        self._place = None if client in _tapped else find(client)
        if self._place is None:
            return
        _tapped.add(client)
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        with theirs:
            theirs.setblocking(False)
            os.dup2(theirs.fileno(), self._place.descriptor, inheritable=False)
        loop.add_reader(self._ours.fileno(), self._read)
        loop.add_reader(self._place.socket.fileno(), self._watch)

    def pass_on(self, piece: bytes) -> None:
        """Write to the connection; what a client that does not read leaves no room for is lost."""
        if self._place is None or not piece:
            return
        try:
            self._place.socket.send(piece)
        except OSError as error:
            if error.errno not in _GONE | {errno.EAGAIN}:
                raise

    def remove(self) -> None:
        """Put the connection back behind the library's descriptor."""
        if self._place is None:
            return
        connection = self._place.socket
        self._loop.remove_reader(self._ours.fileno())
        self._loop.remove_reader(connection.fileno())
        os.dup2(connection.fileno(), self._place.descriptor, inheritable=False)
        self._read()
        self._ours.close()
        # What came meanwhile was announced to the library in vain: this announces it again (Linux).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        connection.close()
        self._place = None
        _tapped.discard(self._client)

    def _read(self) -> None:
        try:
            piece = self._ours.recv(_PIECE)
        except BlockingIOError:
            return
        if piece:
            self.pass_on(self._passing(piece))

    def _watch(self) -> None:
        """Give the connection back at once if the client has left, for the library to see."""
        assert self._place is not None
        try:
            gone = not self._place.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _GONE:
                raise
            gone = True
        if gone:
            self.remove()
        else:
            self._loop.remove_reader(self._place.socket.fileno())
