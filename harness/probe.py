"""Small, bounded questions to a target: facts out, no opinion; a fault is a value too.

Blocking sockets and httpx, for what is asked a few times: nothing here measures a load.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Literal, TypeVar

import httpx
import msgspec

from harness.client.call import USER_AGENT
from harness.client.target import Target

T = TypeVar("T")

TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 3.0
NOT_TRUSTED = "certificate not trusted"
LATE = "no answer in time"
NO_HTTP = "no answer in HTTP/1.1"
BROKE_OFF = "the answer broke off"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""RFC 9113, section 3.4: the client's preface, and an empty SETTINGS frame."""
_SETTINGS = 4
_FRAME_HEAD_BYTES = 9
_SENT = "send_request_body.complete"
"""httpcore's name for it, without that of the wire."""

Greeting = Literal["h2", "http/1", "other", "none"]
"""What is spoken on a port, by its first bytes."""


class Fault(msgspec.Struct, frozen=True):
    """A question that got no answer."""

    text: str
    """Why, in a few words, without payload."""


class Names(msgspec.Struct, frozen=True):
    """What a host name resolved to."""

    addresses: tuple[str, ...]
    took_s: float


class Tls(msgspec.Struct, frozen=True):
    """A handshake with a certificate that was verified."""

    version: str
    """`TLSv1.3`."""
    protocol: str | None
    """What ALPN agreed on when h2 and http/1.1 were offered."""
    expires_s: float
    """End of the certificate's validity in Unix time."""


class Reply(msgspec.Struct, frozen=True):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    took_s: float
    """Asked to last byte; the first one on a connection includes the connecting."""
    asked_s: float
    """When, in Unix time."""


class Streamed(msgspec.Struct, frozen=True):
    """An answer read as it came."""

    status: int
    headers: Mapping[str, str]
    reads: list[tuple[float, bytes]]
    """Seconds since the request was sent, and what came: undecoded. A read of the socket that brings
    several HTTP chunks stands here as several."""
    left: bool = False
    """We went before it had ended."""
    broke: str = ""
    """Why it ended before it was whole, if it did."""


def within(until_s: float, question: Callable[[], T]) -> T | Fault:
    """What a question is answered until then, by `time.perf_counter`; it is asked in any case.

    Names are resolved, and a trickle of bytes is read, without any time-out: so the question has a thread
    of its own, which is left behind when the time is over.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is awaited
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(max(0.0, until_s - time.perf_counter()))
    except TimeoutError:
        return Fault(LATE)


def resolve(host: str) -> Names | Fault:
    """Ask the system's resolver."""
    began_s = time.perf_counter()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return Fault(str(error.strerror or error))
    took_s = time.perf_counter() - began_s
    return Names(tuple(dict.fromkeys(str(address[0]) for *_, address in found)), took_s)


def connect_times(host: str, port: int, count: int, until_s: float = math.inf) -> list[float] | Fault:
    """Open and close TCP connections one after the other.

    Returns:
        How long each took, in seconds; fewer than `count` where more might not end until `until_s`.
    """
    times_s: list[float] = []
    for _ in range(count):
        began_s = time.perf_counter()
        if times_s and began_s + max(times_s) > until_s:
            break
        try:
            with socket.create_connection((host, port), CONNECT_TIMEOUT_S):
                times_s.append(time.perf_counter() - began_s)
        except OSError as error:
            return Fault(_reason(error))
    return times_s


def handshake(host: str, port: int, context: ssl.SSLContext) -> Tls | Fault:
    """Make a TLS connection, offering h2 and http/1.1; the context is changed to do so."""
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as sealed,
        ):
            certificate = sealed.getpeercert() or {}
            expires_s = ssl.cert_time_to_seconds(str(certificate.get("notAfter")))
            return Tls(sealed.version() or "", sealed.selected_alpn_protocol(), expires_s)
    except ssl.SSLCertVerificationError as error:
        return Fault(f"{NOT_TRUSTED}: {error.verify_message}")
    except OSError as error:
        return Fault(_reason(error))


def handshake_times(
    host: str, port: int, context: ssl.SSLContext, count: int, until_s: float = math.inf
) -> list[float] | Fault:
    """Make and close TLS connections one after the other, none of which resumes another.

    Returns:
        How long each handshake took, in seconds, without the TCP connection below it; fewer than `count`
        where more might not end until `until_s`.
    """
    times_s: list[float] = []
    longest_s = 0.0
    for _ in range(count):
        asked_s = time.perf_counter()
        if times_s and asked_s + longest_s > until_s:
            break
        try:
            with socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain:
                began_s = time.perf_counter()
                with context.wrap_socket(plain, server_hostname=host):
                    ended_s = time.perf_counter()
        except ssl.SSLCertVerificationError as error:
            return Fault(f"{NOT_TRUSTED}: {error.verify_message}")
        except OSError as error:
            return Fault(_reason(error))
        times_s.append(ended_s - began_s)
        longest_s = max(longest_s, ended_s - asked_s)
    return times_s


def greeting(host: str, port: int) -> Greeting:
    """What a port without TLS says to HTTP/2 by prior knowledge; `none` if it hangs up or keeps silent."""
    head = b""
    with contextlib.suppress(OSError), socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain:
        plain.sendall(_PREFACE)
        while len(head) < _FRAME_HEAD_BYTES and (piece := plain.recv(_FRAME_HEAD_BYTES - len(head))):
            head += piece
    if not head:
        return "none"
    if len(head) == _FRAME_HEAD_BYTES and head[3] == _SETTINGS:
        return "h2"
    return "http/1" if b"HTTP/".startswith(head[:5]) else "other"


def speaks_tls(host: str, port: int) -> bool:
    """Whether TLS is spoken on a port, whatever its certificate; one that refuses in TLS speaks it too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


@contextlib.contextmanager
def client(target: Target, context: ssl.SSLContext | None) -> Iterator[httpx.Client]:
    """A keep-alive client for single requests, with the target's key.

    As a run, it follows no proxy and no redirect and keeps no cookies: httpx would take both apart in any
    case, and fall over some.
    """
    headers = {"user-agent": USER_AGENT, "accept-encoding": "identity"}
    if target.key:
        headers["authorization"] = f"Bearer {target.key}"
    timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    # Without TLS there is nothing to verify: an empty context, which trusts nobody, loads in no time.
    verify = context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with httpx.Client(
        base_url=target.url,
        headers=headers,
        timeout=timeout,
        verify=verify,
        trust_env=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        event_hooks={"response": [lambda answer: answer.headers.pop("location", None)]},
    ) as made:
        yield made


def ask(by: httpx.Client, path: str, body: bytes | None = None) -> Reply | Fault:
    """GET a path, or POST it a JSON body."""
    asked_s, began_s = time.time(), time.perf_counter()
    answer = None
    try:
        with _request(by, path, body) as answer:
            read = b"".join(answer.iter_raw())
    except httpx.HTTPError as error:
        return Fault(_reason(error, headed=answer is not None))
    took_s = time.perf_counter() - began_s
    return Reply(answer.status_code, dict(answer.headers), read, took_s, asked_s)


def round_trips(by: httpx.Client, path: str, count: int, until_s: float = math.inf) -> list[float] | Fault:
    """GET a path some times, on a connection that stands, up to the first fault.

    Returns:
        How long each took, in seconds; fewer than `count` where more might not end until `until_s`.
    """
    times_s: list[float] = []
    for _ in range(count):
        if times_s and time.perf_counter() + max(times_s) > until_s:
            break
        reply = ask(by, path)
        if isinstance(reply, Fault):
            return reply
        times_s.append(reply.took_s)
    return times_s


def ask_stream(by: httpx.Client, path: str, body: bytes, until_s: float = math.inf) -> Streamed | Fault:
    """POST a JSON body and stamp each piece of the answer, up to its end or the first one after `until_s`."""
    sent_s = time.perf_counter()

    def on_step(step: str, _: object) -> None:
        nonlocal sent_s
        if step.endswith(_SENT):  # a connection may have been made before
            sent_s = time.perf_counter()

    reads: list[tuple[float, bytes]] = []
    answer, left, broke = None, False, ""
    try:
        with _request(by, path, body, on_step) as answer:
            for piece in answer.iter_raw():
                reads.append((time.perf_counter() - sent_s, piece))
                if time.perf_counter() > until_s:
                    left = True
                    break
    except httpx.HTTPError as error:
        broke = _reason(error, headed=answer is not None)
        if answer is None:
            return Fault(broke)
    return Streamed(answer.status_code, dict(answer.headers), reads, left, broke)


def _request(
    by: httpx.Client, path: str, body: bytes | None, on_step: Callable[[str, object], None] | None = None
) -> contextlib.AbstractContextManager[httpx.Response]:
    if body is None:
        return by.stream("GET", path)
    headers = {"content-type": "application/json"}
    return by.stream("POST", path, content=body, headers=headers, extensions=on_step and {"trace": on_step})


def _reason(error: Exception, *, headed: bool = False) -> str:
    """A few words; never what the server wrote.

    Args:
        error: what was met.
        headed: in the midst of an answer, whose head was HTTP.
    """
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return LATE
    if isinstance(error, httpx.RemoteProtocolError):
        return BROKE_OFF if headed else NO_HTTP
    if isinstance(error, httpx.HTTPError):
        return _words(type(error).__name__)
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').replace('_', ' ').lower()}"
    return str(getattr(error, "strerror", None) or error).lower()


def _words(name: str) -> str:
    """`RemoteProtocolError` as `remote protocol error`."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
