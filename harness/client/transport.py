"""One TCP connection, with or without TLS: connects, writes without blocking, stamps every read.

    greenlet   connect ──► write ─────────────┐                  (blocks only in connect)
    hub              readable ─► recv ─► stamp ┴► on_bytes ... on_end        one watcher, always on
                     writable ─► the rest of a long write ─► on_drained

The stamp is taken before anything is decrypted or parsed. With `kernel` stamps it is the time at
which the kernel received the bytes (SO_TIMESTAMPNS), so that a busy client does not show up as server
latency; bytes of several segments in one read bear the last one's stamp, so the reader must keep up,
and READ_LAG says for how long it did not.

gevent is used by name: the module works with and without monkey patching.
"""

from __future__ import annotations

import errno
import os
import socket as names
import ssl
import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import gevent
from gevent import get_hub
from gevent import socket as cooperative
from gevent.monkey import get_original

from harness.clock import anchor, now_ns
from harness.record import Outcome

# The plain socket class, which no monkey patch replaces: all waiting is done here, in the hub.
_socket = get_original("socket", "socket")
_poll = get_original("select", "poll")
_sleep = get_original("time", "sleep")

_READ_BYTES = 65_536
_READ, _WRITE = 1, 2
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module has no name for it
_TIMESPEC = struct.Struct("qq")
_timespec = _TIMESPEC.unpack
_ANCILLARY_BYTES = names.CMSG_SPACE(_TIMESPEC.size) if hasattr(names, "CMSG_SPACE") else 0
_PROBES = 10
_PROBE_S = 0.02
"""A kernel begins to stamp a moment after the first socket asked for it: so long each probe waits."""

_UNACKED = struct.Struct("16xI4xI")  # tcpi_snd_mss and tcpi_unacked in linux/tcp.h

STAMPS = "kernel" if sys.platform == "linux" and sys.maxsize > 2**32 else "user"
"""Where read stamps are asked for on this platform; `read_stamps` says where they then come from."""


@lru_cache
def read_stamps() -> str:
    """Where this process's read stamps really come from: `kernel`, or `user` if the kernel gives none.

    Asked once, of a connection to ourselves: some sandboxes take the option and then stamp nothing.
    """
    return STAMPS if STAMPS == "user" or _kernel_stamps() else "user"


@lru_cache
def _asking() -> int:
    """The descriptor of a socket that asks for stamps as long as there is a process.

    A kernel that nobody asks ceases to stamp, and now and then the first read after that has no stamp.
    """
    with _socket(names.AF_INET, names.SOCK_DGRAM) as sock:
        _ask_for_stamps(sock)
        return int(sock.detach())


def _kernel_stamps() -> bool:
    try:
        _asking()
        with _socket(names.AF_INET, names.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            listener.settimeout(1.0)
            with _socket(names.AF_INET, names.SOCK_STREAM) as reader:
                reader.settimeout(1.0)
                _ask_for_stamps(reader)
                reader.connect(listener.getsockname())
                peer, _ = listener.accept()
                with peer:
                    return any(_stamped(peer, reader) for _ in range(_PROBES))
    except OSError:
        return False


def _stamped(peer: Any, reader: Any) -> bool:
    peer.send(b"?")
    _, ancillary, _, _ = reader.recvmsg(1, _ANCILLARY_BYTES)
    if any(len(value) == _TIMESPEC.size for *_, value in ancillary):
        return True
    _sleep(_PROBE_S)
    return False


class ReadLag:
    """For how long bytes lay in the kernel before this process read them."""

    __slots__ = ("longest_ns",)

    def __init__(self) -> None:
        self.longest_ns = 0

    def take(self) -> int:
        """The longest since the last call, in nanoseconds; 0 with `user` stamps, which cannot tell."""
        longest_ns, self.longest_ns = self.longest_ns, 0
        return longest_ns


READ_LAG = ReadLag()
"""Of all connections of this process."""


class WallOffset:
    """Wall clock minus monotonic clock, kept fresh: kernel stamps are in wall time."""

    def __init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read both clocks; called with every sweep of the deadlines, so that a step is soon noticed."""
        now = anchor()
        self.ns = now.wall_ns - now.monotonic_ns


WALL = WallOffset()


class UnreachableError(Exception):
    """No connection came about; becomes an outcome, never leaves the room."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        self.outcome = outcome
        self.text = text
        super().__init__(text)


class Listener(Protocol):
    """Who is told what the transport reads. All are called in the hub and must not block."""

    def on_bytes(self, piece: bytes, stamp_ns: int) -> None:
        """Bytes came; decrypted, if there is TLS."""

    def on_end(self, error: OSError | None, stamp_ns: int) -> None:
        """The connection is gone: closed by the peer, or lost with an error."""

    def on_drained(self) -> None:
        """The rest of a long write is with the kernel."""

    def on_bug(self, bug: Exception) -> None:
        """One of the above raised."""


class Taker(Protocol):
    """Who may take a read before the listener hears of it."""

    def takes(self, read: bytes, stamp_ns: int) -> bool:
        """Take it; False leaves it to the listener."""


class Transport:
    """An open connection. Made by `connect`; `close` is final.

    It has slots because what a read costs is the memory it touches: that of a thousand connections does
    not stay in the cache.
    """

    __slots__ = (
        "_broken",
        "_listener",
        "_poll",
        "_reader",
        "_sock",
        "_stamped",
        "_tls",
        "_unsent",
        "_writer",
        "drained",
        "floor_ns",
        "open",
        "taker",
        "unheard_bytes",
    )

    def __init__(self, sock: Any, tls: _Tls | None, listener: Listener, *, stamps: str) -> None:
        self.open = True
        self.unheard_bytes = 0
        """Once it has ended: how many of the bytes written last the peer never got. Known on Linux only."""
        self.drained = True
        """Everything written is with the kernel."""
        self.floor_ns = 0
        """No stamp precedes this: the answer can't come before the question."""
        self.taker: Taker | None = None
        self._sock = sock
        self._tls = tls
        self._listener = listener
        self._unsent = bytearray()
        self._broken: OSError | None = None
        self._writer: Any = None
        self._stamped = stamps == "kernel"
        self._reader = get_hub().loop.io(sock.fileno(), _READ)
        self._reader.start(self._on_readable)
        self._poll = _poll()
        self._poll.register(sock.fileno(), _READ)
        # The peer's first bytes may have come with the last flight of the handshake.
        if tls is not None:
            get_hub().loop.run_callback(self._deliver_tls)

    def alive(self) -> bool:
        """Still open, as far as anybody can know now: the peer's goodbye may wait unread in the kernel."""
        if self._poll.poll(0):
            self._on_readable()
        return self.open

    def write(self, payload: bytes) -> bool:
        """Hand bytes to the kernel, as many as it takes now; the rest follows by itself.

        A broken connection is no error here: the read side, where the peer's last words may still
        be waiting, will tell.

        Returns:
            True if all is with the kernel; else `on_drained` will be called, unless the connection is broken.
        """
        if self._tls is not None:
            payload = self._tls.seal(payload)
        if not self.drained:
            self._unsent += payload
            return False
        try:
            taken = self._sock.send(payload)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._broken = error
            self.unheard_bytes = len(payload)
            return False
        if taken == len(payload):
            return True
        self._unsent += memoryview(payload)[taken:]
        self.drained = False
        if self._writer is None:
            self._writer = get_hub().loop.io(self._sock.fileno(), _WRITE)
        self._writer.start(self._on_writable)
        return False

    def close(self) -> None:
        """Let go of the socket; nothing more is called."""
        if not self.open:
            return
        self.open = False
        self._reader.stop()
        self._reader.close()
        if self._writer is not None:
            self._writer.stop()
            self._writer.close()
        self._sock.close()

    def _on_writable(self) -> None:
        try:
            with memoryview(self._unsent) as rest:
                taken = self._sock.send(rest[: 1 << 20])
        except BlockingIOError:
            return
        except OSError as error:
            self._broken = error
            taken = len(self._unsent)
        del self._unsent[:taken]
        if self._unsent:
            return
        self.drained = True
        self._writer.stop()
        if self._broken is None:
            self._tell(self._listener.on_drained)

    def _on_readable(self) -> None:
        ancillary = None
        try:
            if self._stamped:
                piece, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
            else:
                piece = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(error)
            return
        stamp_ns = read_ns = now_ns()
        if ancillary:
            seconds, ns = _timespec(ancillary[0][2])
            kernel_ns = seconds * 1_000_000_000 + ns - WALL.ns
            if kernel_ns < read_ns:
                stamp_ns = kernel_ns
        # Stamps of one connection never run backwards, whatever the wall clock does.
        if stamp_ns < self.floor_ns:
            stamp_ns = self.floor_ns
        else:
            self.floor_ns = stamp_ns
        if read_ns - stamp_ns > READ_LAG.longest_ns:  # noqa: PLR1730 - a call of max, for each read
            READ_LAG.longest_ns = read_ns - stamp_ns
        if not piece:
            self._ended(None)
        elif self._tls is None:
            # As _tell and _hand_over, which this path is too hot for.
            try:
                taker = self.taker
                if taker is None or not taker.takes(piece, stamp_ns):
                    self._listener.on_bytes(piece, stamp_ns)
            except Exception as bug:  # noqa: BLE001  # as in _tell
                self._crashed(bug)
        else:
            self._tls.take(piece)
            self._deliver_tls()

    def _deliver_tls(self) -> None:
        """Decrypt what has come; every record of one read bears the ciphertext's stamp."""
        stamp_ns = self.floor_ns or now_ns()
        while self.open and self._tls is not None:
            try:
                piece = self._tls.unseal()
            except ssl.SSLError as error:
                self._ended(error)
                return
            if self._tls.pending:
                self.write(b"")  # nothing of ours, but what TLS has to say
            if piece is None:
                return
            if not piece:
                self._ended(None)
                return
            self._tell(self._hand_over, piece, stamp_ns)

    def _hand_over(self, piece: bytes, stamp_ns: int) -> None:
        if self.taker is None or not self.taker.takes(piece, stamp_ns):
            self._listener.on_bytes(piece, stamp_ns)

    def _ended(self, error: OSError | None) -> None:
        error = error or self._broken
        self.unheard_bytes = max(self.unheard_bytes, _unheard_bytes(self._sock))
        self.close()
        self._tell(self._listener.on_end, error, max(now_ns(), self.floor_ns))

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            what(*arguments)
        except Exception as bug:  # noqa: BLE001  # the hub would only print it: the waiting greenlet raises it
            self._crashed(bug)

    def _crashed(self, bug: Exception) -> None:
        self.close()
        self._listener.on_bug(bug)


def _unheard_bytes(sock: Any) -> int:
    """What the peer has not acknowledged; all that was written last, if it had closed before that came."""
    if sys.platform != "linux":
        return 0
    if sock.getsockopt(names.SOL_SOCKET, names.SO_ERROR) == errno.EPIPE:
        return sys.maxsize
    segment_bytes, unacked = _UNACKED.unpack(
        sock.getsockopt(names.IPPROTO_TCP, names.TCP_INFO, _UNACKED.size)
    )
    return int(segment_bytes * unacked)  # Rounded up to segments: exact enough to tell all from a part.


class _Tls:
    """TLS over bytes in memory: the socket, and so the stamp, stays ours."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._in, self._out, server_hostname=host)

    @property
    def protocol(self) -> str | None:
        """What ALPN agreed on."""
        return self._session.selected_alpn_protocol()

    def handshake(self) -> bool:
        """One step; True when done, False when more of the peer's bytes are wanted."""
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take(self, ciphertext: bytes) -> None:
        self._in.write(ciphertext)

    def take_end(self) -> None:
        self._in.write_eof()

    @property
    def pending(self) -> int:
        """Bytes that TLS itself has to say: answers to the peer's messages."""
        return self._out.pending

    def seal(self, plaintext: bytes) -> bytes:
        """What is pending, and after it the piece, if it is one, as ciphertext."""
        if plaintext:
            self._session.write(plaintext)
        return self._out.read()

    def unseal(self) -> bytes | None:
        """The next plaintext; None if more ciphertext is wanted, empty at the peer's goodbye."""
        try:
            return self._session.read(_READ_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""

    def outgoing(self) -> bytes:
        return self._out.read() if self._out.pending else b""


@lru_cache
def tls_context(protocol: str) -> ssl.SSLContext:
    """A context that verifies against the system's authorities and offers one protocol by ALPN.

    It is shared by all connections: making one takes 20 ms.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols([protocol])
    return context


def connect(
    host: str,
    port: int,
    listener: Listener,
    *,
    timeout_ns: int,
    tls: ssl.SSLContext | None,
    protocol: str,
    stamps: str,
) -> Transport:
    """Connect from a greenlet: resolve, TCP, and TLS if there is a context for it.

    Args:
        host: name or address; also the server name of the TLS handshake.
        port: TCP port.
        listener: who is told what comes.
        timeout_ns: for all of it together.
        tls: a shared context, or None for plain TCP.
        protocol: what ALPN must agree on; HTTP/1.1 may go unsaid.
        stamps: `kernel`, where the kernel gives any (`read_stamps`), or `user`.

    Raises:
        UnreachableError: with the outcome and its text.
    """
    stamps = read_stamps() if stamps == "kernel" else stamps
    sock = None
    with gevent.Timeout(max(timeout_ns, 0) / 1e9) as timeout:
        try:
            sock = _connect_tcp(host, port, stamps)
            session = None if tls is None else _handshake(sock, tls, host, protocol)
            transport = Transport(sock, session, listener, stamps=stamps)
        except gevent.Timeout as late:
            if late is not timeout:
                raise
            raise UnreachableError(Outcome.TIMEOUT, "connect timeout") from None
        except ssl.SSLCertVerificationError as error:
            raise UnreachableError(Outcome.CONNECT_ERROR, f"TLS: {_reason(error.verify_message)}") from None
        except ssl.SSLError as error:
            raise UnreachableError(Outcome.CONNECT_ERROR, f"TLS: {_reason(error.reason)}") from None
        except names.gaierror:
            raise UnreachableError(Outcome.CONNECT_ERROR, "name not found") from None
        except OSError as error:
            raise UnreachableError(Outcome.CONNECT_ERROR, f"connect: {cause(error)}") from None
        else:
            sock = None
            return transport
        finally:
            if sock is not None:
                sock.close()


def cause(error: OSError | None) -> str:
    """A few words for an error of a socket."""
    if error is None:
        return "closed"
    if error.errno in {errno.ECONNRESET, errno.EPIPE}:
        return "reset"
    if isinstance(error, ssl.SSLError):
        return _reason(error.reason)
    return os.strerror(error.errno).lower() if error.errno else "failed"


def _reason(text: str | None) -> str:
    return (text or "failed").replace("_", " ").lower()


def _connect_tcp(host: str, port: int, stamps: str) -> Any:
    failure: OSError | None = None
    for family, address in _addresses(host, port):
        sock = _socket(family, names.SOCK_STREAM)
        try:
            _connect_one(sock, address, stamps)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:  # a timeout or a kill
            sock.close()
            raise
        else:
            return sock
    raise failure or OSError(errno.EADDRNOTAVAIL, "no address")


def _connect_one(sock: Any, address: Any, stamps: str) -> None:
    sock.setblocking(False)
    sock.setsockopt(names.IPPROTO_TCP, names.TCP_NODELAY, 1)
    if stamps == "kernel":
        _ask_for_stamps(sock)
    code = sock.connect_ex(address)
    if code in {errno.EINPROGRESS, errno.EWOULDBLOCK}:
        _until(sock, _WRITE)
        code = sock.getsockopt(names.SOL_SOCKET, names.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _ask_for_stamps(sock: Any) -> None:
    sock.setsockopt(names.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    for family in (names.AF_INET, names.AF_INET6):
        try:
            names.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    found = cooperative.getaddrinfo(host, port, 0, names.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def _handshake(sock: Any, context: ssl.SSLContext, host: str, protocol: str) -> _Tls:
    session = _Tls(context, host)
    try:
        while not session.handshake():
            _send_all(sock, session.outgoing())
            _until(sock, _READ)
            ciphertext = sock.recv(_READ_BYTES)
            if ciphertext:
                session.take(ciphertext)
            else:
                session.take_end()
    finally:
        # The last flight; or the alert that tells the peer why.
        _send_all(sock, session.outgoing())
    agreed = session.protocol or ("http/1.1" if protocol == "http/1.1" else "none")
    if agreed != protocol:
        raise UnreachableError(Outcome.CONNECT_ERROR, f"TLS: the server does not offer {protocol}")
    return session


def _send_all(sock: Any, payload: bytes) -> None:
    while payload:
        try:
            payload = payload[sock.send(payload) :]
        except BlockingIOError:
            _until(sock, _WRITE)


def _until(sock: Any, events: int) -> None:
    """Sleep until the socket is ready."""
    hub = get_hub()
    watcher = hub.loop.io(sock.fileno(), events)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()
