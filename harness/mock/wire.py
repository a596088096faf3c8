"""Breaks connections below HTTP, where the server's library offers no way to.

The library owns the sockets, but they belong to this process: the one whose peer is the client's address
is found among the process's file descriptors.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_AGAIN_S = 0.001
_LINGER_0 = struct.pack("ii", 1, 0)


def break_connection(client: str, *, reset: bool) -> bool:
    """End a client's TCP connection at once; on HTTP/2 that ends all its streams.

    Args:
        client: the peer's address, `host:port`.
        reset: by RST rather than FIN.

    Returns:
        Whether the connection was found; it is not if the client has closed it already.
    """
    place = find(client)
    if place is None:
        return False
    with place.socket as found:
        if not reset:
            found.shutdown(socket.SHUT_RDWR)
            return True
        if sys.platform == "linux":
            _disconnect(found.fileno())
            return True
        # The library sees the end of input, closes its descriptor, and closing with linger 0 sends RST.
        # Shutting the sending side too would send FIN first.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        found.shutdown(socket.SHUT_RD)
    return True


def cut_off(port: int) -> None:
    """End every client's connection to a port of this process, though it may be idle."""
    for path in Path("/dev/fd").iterdir():
        found = _socket(int(path.name))
        if found is not None:
            with found, suppress(OSError):  # not connected: it listens, or has ended by itself
                if found.getsockname()[1] == port and found.getpeername():
                    found.shutdown(socket.SHUT_RDWR)


def _disconnect(descriptor: int) -> None:
    """RST at once (connect(2), AF_UNSPEC): the library has no time for a goodbye, of HTTP/2 or of TLS."""
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    if ctypes.CDLL(None, use_errno=True).connect(descriptor, nowhere, len(nowhere)):
        raise OSError(ctypes.get_errno(), "the connection cannot be reset")


class Taken:
    """A client's connection, written to by ourselves: the library has written nothing of this answer yet.

    Args:
        client: the peer's address, `host:port`.
        loop: calls again when the socket takes no more.
    """

    def __init__(self, client: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        place = find(client)
        self._socket = None if place is None else place.socket
        self._left = b""

    def send(self, payload: bytes) -> None:
        """Write all of it in its time. A client that is gone is noticed by the library, not here."""
        if self._socket is None:
            return
        waiting, self._left = bool(self._left), self._left + payload
        if not waiting:
            self._push()

    def release(self) -> None:
        """Let go of the connection; what the socket has not taken by now is lost."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _push(self) -> None:
        if self._socket is None:
            return
        try:
            self._left = self._left[self._socket.send(self._left) :]
        except BlockingIOError:
            pass  # The client reads slowly: again, soon.
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.ECONNRESET}:
                raise
            self._left = b""
        if self._left:
            self._loop.call_later(_AGAIN_S, self._push)


class Place(NamedTuple):
    """A client's connection in this process."""

    descriptor: int
    """The library's own."""
    socket: socket.socket
    """The same connection by a descriptor of ours, to be closed by who asked."""


def find(client: str) -> Place | None:
    """The connection whose peer is `host:port`; None if it is gone."""
    host, _, port = client.rpartition(":")
    peer = (host.strip("[]"), int(port))
    for path in Path("/dev/fd").iterdir():
        found = _socket(int(path.name))
        if found is None:
            continue
        try:
            if found.getpeername()[:2] == peer:
                return Place(int(path.name), found)
        except OSError as error:
            if error.errno not in {errno.ENOTCONN, errno.EINVAL}:
                raise
        found.close()
    return None


def _socket(descriptor: int) -> socket.socket | None:
    """The internet socket behind a descriptor, as a descriptor of its own."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
    except OSError:
        return None  # The descriptor of the listing itself, closed by now.
    found = socket.socket(fileno=os.dup(descriptor))
    if found.family in {socket.AF_INET, socket.AF_INET6}:
        return found
    found.close()
    return None
