"""The mock's process: its doors, its life, its end.

Plain HTTP/1.1 comes in by the front door (`front.py`); TLS, HTTP/2 and WebSockets by a library's: granian,
which is hyper below Python. Not one parser is shared with the client that is to be judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import math
import os
import resource
import signal
import socket
import ssl
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import uvloop
from granian.constants import HTTPModes, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.embed import Server

from harness.errors import ConfigError, EngineError
from harness.mock import certificate as certificates
from harness.mock import siblings, spans
from harness.mock.app import Behaviour, Mock
from harness.mock.faults import Refuse
from harness.mock.front import Front
from harness.mock.pacer import now_ns
from harness.mock.script import Rule, ScriptClock
from harness.mock.siblings import Siblings
from harness.mock.wire import cut_off

_NS = 1_000_000_000
_BEHIND = "127.0.0.1"
"""Where the library listens, if it is not what clients come to."""
_SPANS_A_LINE = 500
_GOODBYE_S = 1.0
"""For a client to close its HTTP/2 connection, when all else has ended."""
_MADE = {"expired": certificates.expired, "self-signed": certificates.self_signed}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the mock's process runs."""

    behaviour: Behaviour
    host: str = "127.0.0.1"
    port: int = 0
    """0 picks a free one."""
    certificate: Path | None = None
    """A file; or the name of one that is made, `expired` or `self-signed`, and then needs no key."""
    key: Path | None = None
    truth_file: Path | None = None
    """Written at the end."""
    spans_file: Path | None = None
    """OTLP JSON lines, written once a second."""
    drain_s: float = 10.0
    """How long answers under way may go on after SIGTERM."""
    die_with_parent: bool = False


class Group(NamedTuple):
    """What the processes of one mock share."""

    clock: ScriptClock
    folder: Path
    """Of their sockets."""
    listeners: list[socket.socket]
    """Of each."""


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is told once the mock listens."""

    url: str
    """Base URL."""
    pid: int
    certificate: str | None = None
    """File of the certificate, for clients that are to trust it; None without TLS."""


def serve(options: Options, ready: Callable[[Ready], None]) -> None:
    """Run the mock in this process until SIGTERM or SIGINT, then drain.

    Args:
        options: how it runs.
        ready: called once connections are accepted.

    Raises:
        ConfigError: the address cannot be had, or the certificate cannot be used.
    """
    _raise_file_limit()
    with _certified(options) as certified:
        _run(certified, ready)


@contextlib.contextmanager
def _certified(options: Options) -> Iterator[Options]:
    """The options, with a certificate made if one is asked for by name."""
    make = _MADE.get(str(options.certificate))
    if make is None or options.key is not None:
        yield options
        return
    pair = make(options.host, datetime.now(UTC))
    with tempfile.TemporaryDirectory(prefix="harness-mock-") as folder:
        certificate, key = Path(folder, "certificate.pem"), Path(folder, "key.pem")
        certificate.write_text(pair.certificate)
        key.touch(mode=0o600)
        key.write_text(pair.key)
        yield msgspec.structs.replace(options, certificate=certificate, key=key)


def _run(options: Options, ready: Callable[[Ready], None]) -> None:
    if (options.certificate is None) != (options.key is None):
        raise ConfigError("--certificate", "", None, "give --certificate and --key together")
    with _reserve(options.host, options.port) as reserved:
        port = reserved.getsockname()[1]
        if sys.platform != "linux":
            reserved.close()  # Only Linux lets the server share a port with the socket that reserves it.
        if options.behaviour.workers == 1:
            uvloop.run(_serve(options, port, ready))
        else:
            _serve_together(options, port, ready)


def _serve_together(options: Options, port: int, ready: Callable[[Ready], None]) -> None:
    """Several processes on one port; the kernel spreads the connections, and this one only watches."""
    workers = range(options.behaviour.workers)
    parts = [] if options.truth_file is None else [Path(f"{options.truth_file}.{n}") for n in workers]
    clock = ScriptClock()
    telling, told = os.pipe()
    with tempfile.TemporaryDirectory(prefix="harness-mock-") as folder:
        listeners = siblings.listeners(Path(folder), len(workers))

        def work(worker: int) -> None:
            for other, listener in enumerate(listeners):
                if other != worker:
                    listener.close()
            own = msgspec.structs.replace(
                options,
                behaviour=msgspec.structs.replace(options.behaviour, worker=worker),
                truth_file=parts[worker] if parts else None,
                die_with_parent=True,
            )
            group = Group(clock, Path(folder), listeners)

            def tell(_: Ready) -> None:
                os.write(told, b".")

            uvloop.run(_serve(own, port, tell, group))

        running = {_forked(work, worker) for worker in workers}
        for listener in listeners:
            listener.close()
        os.close(told)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _end(running))
        started = 0
        while started < len(workers) and os.read(telling, 1):
            started += 1
        if started == len(workers):
            ready(_told(options, port))
        parent, failed = os.getppid(), started < len(workers)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(0.05)
                if options.die_with_parent and os.getppid() != parent:
                    _end(running)
                continue
            running.discard(pid)
            failed = failed or status != 0
            _end(running)
    if failed:
        raise EngineError("one of the mock's processes died; what it knew is lost")
    if options.truth_file is not None:
        siblings.merge(parts, options.truth_file)


def _forked(work: Callable[[int], None], worker: int) -> int:
    """Work in a process of its own; gives its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work(worker)
        code = 0
    except Exception:  # noqa: BLE001 - the other half of this process is not to unwind through ours
        traceback.print_exc()
    os._exit(code)


def _end(running: set[int]) -> None:
    for pid in running:
        os.kill(pid, signal.SIGTERM)


def _told(options: Options, port: int) -> Ready:
    scheme = "http" if options.certificate is None else "https"
    host = f"[{options.host}]" if ":" in options.host else options.host
    certificate = None if options.certificate is None else str(options.certificate)
    return Ready(f"{scheme}://{host}:{port}", os.getpid(), certificate)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _reserve(host: str, port: int) -> socket.socket:
    """A bound socket that never listens: it keeps the port ours until the server has bound it as well.

    granian cannot say which port it was given, and shares ports silently, so a first bind, without
    sharing, finds out whether the port is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family)
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            raise ConfigError(
                "--port", "", port, f"{error.strerror}: choose another, or 0 for a free one"
            ) from error
        raise ConfigError("--host", "", host, f"cannot be listened on: {error.strerror or error}") from error
    return reserved


async def _serve(
    options: Options, port: int, ready: Callable[[Ready], None], group: Group | None = None
) -> None:
    mock = Mock(options.behaviour, None if group is None else group.clock)
    if group is not None:
        behaviour = options.behaviour
        mock.siblings = Siblings(
            group.folder,
            group.listeners[behaviour.worker],
            workers=behaviour.workers,
            log=mock.log,
            application=mock.__rsgi__,
            counts=mock.counts,
        )
        await mock.siblings.listen()
    loop = asyncio.get_running_loop()
    mock.start(loop)
    door = _Door(mock, options, port)
    door.open()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    background: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
    if options.die_with_parent:
        background.append(asyncio.create_task(_parent_gone(os.getppid())))
    await door.accepting()
    # A collection walks every step of every answer under way: 50 ms for a thousand of them. Answering makes
    # no cycles (measured), and what else does is collected when nothing is under way.
    gc.freeze()
    gc.disable()
    background.append(asyncio.create_task(_tidy(mock)))
    ready(_told(options, port))
    refusing = [asyncio.create_task(_refuse(mock, door, rule)) for rule in options.behaviour.rules]
    writing = [asyncio.create_task(_follow(mock, options.spans_file))] if options.spans_file else []
    await asyncio.wait([door.failed, *background], return_when=asyncio.FIRST_COMPLETED)
    for task in (*background, *refusing, *writing):
        task.cancel()
    door.close()
    mock.endpoints.stop()
    deadline_ns = now_ns() + round(options.drain_s * _NS)
    await _drain(mock, door, deadline_ns)
    await door.closed(deadline_ns)
    if options.spans_file is not None:
        _write_spans(mock, options.spans_file)
    if options.truth_file is not None:
        mock.log.write(options.truth_file)


class _Door:
    """What listens, while something does; the servers before it carry on with what they accepted.

    Args:
        mock: answers.
        options: where, and how.
        port: where clients come.
    """

    def __init__(self, mock: Mock, options: Options, port: int) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once a server ended by itself."""
        self._host, self._port = options.host, port
        self._reserved: socket.socket | None = None
        self._front: Front | None = None
        if options.certificate is None:
            self._reserved = _reserve(_BEHIND, 0)
            self._host, self._port = self._reserved.getsockname()[:2]
            self._front = Front(mock, options.host, port, self._port)
        self._make = partial(_server, mock, options, self._host, self._port)
        self._server: Server | None = None
        self._serving: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Listen."""
        server = self._server = self._make()
        task = asyncio.create_task(server.serve())
        task.add_done_callback(lambda _: self._ended(server))
        self._serving.append(task)
        if self._front is not None:
            self._front.open()

    def close(self) -> None:
        """Refuse connections from now on."""
        if self._front is not None:
            self._front.close()
        if self._server is not None:
            server, self._server = self._server, None
            server.stop()  # type: ignore[no-untyped-call]  # granian types its embedded server in part

    async def accepting(self) -> None:
        """Return once the library accepts a connection: it does not say when it listens."""
        while True:
            try:
                _, writer = await asyncio.open_connection(self._host, self._port)
            except ConnectionRefusedError:
                if self.failed.done():
                    await self.closed()
                await asyncio.sleep(0.005)
                continue
            writer.close()
            await writer.wait_closed()
            return

    @property
    def answering(self) -> bool:
        """Whether a client of the front door's is still to get something."""
        return self._front is not None and bool(self._front.connections)

    async def closed(self, deadline_ns: int = 0) -> None:
        """Return once all connections are done; raises what ended a server.

        Args:
            deadline_ns: until then clients may read what is theirs, and take their leave.
        """
        serving = asyncio.gather(*self._serving)
        await asyncio.wait([serving], timeout=max(_GOODBYE_S, (deadline_ns - now_ns()) / _NS))
        if not serving.done():
            # The library waits for all that are connected, and HTTP/2 clients may stay for ever.
            if self._front is not None:
                self._front.cut_off()
            else:
                cut_off(self._port)
        await serving
        while self._front is not None and self._front.relaying and now_ns() < deadline_ns:
            await asyncio.sleep(0.01)
            if not any(half.unsent for half in self._front.relaying):
                break
        if self._reserved is not None:
            self._reserved.close()

    def _ended(self, server: Server) -> None:
        if server is self._server and not self.failed.done():
            self.failed.set_result(None)


async def _refuse(mock: Mock, door: _Door, rule: Rule) -> None:
    """Close the door for the rule's time, if it is of that sort."""
    if not isinstance(rule.fault, Refuse) or rule.at is None:
        return
    while (elapsed_s := mock.clock.elapsed_s(now_ns())) is None or elapsed_s < rule.at.start_s:  # noqa: ASYNC110 - of processes
        await asyncio.sleep(0.005)  # The first request starts the clock: of any process.
    door.close()
    if rule.fault.open == "reset":
        for playback in list(mock.in_flight):
            playback.break_off()
    if math.isinf(rule.at.end_s):
        return
    await asyncio.sleep(max(0.0, rule.at.end_s - (mock.clock.elapsed_s(now_ns()) or 0.0)))
    door.open()


async def _tidy(mock: Mock) -> None:
    """Collect garbage while idle."""
    while True:
        await asyncio.sleep(5)
        if not mock.in_flight:
            gc.collect()


async def _follow(mock: Mock, path: Path) -> None:
    """Write the spans of what has ended, once a second."""
    while True:
        await asyncio.sleep(1)
        _write_spans(mock, path)


def _write_spans(mock: Mock, path: Path) -> None:
    entries = mock.log.take_new()
    if not entries:
        return
    with path.open("ab", buffering=0) as file:  # whole writes: several processes append
        for i in range(0, len(entries), _SPANS_A_LINE):
            file.write(spans.line(entries[i : i + _SPANS_A_LINE], mock.log.clock, pid=os.getpid()))


def _server(mock: Mock, options: Options, host: str, port: int) -> Server:
    try:
        return Server(
            mock,
            address=host,
            port=port,
            http=HTTPModes.auto,
            websockets=True,
            backlog=4096,
            backpressure=1_000_000,
            # An idle connection is the client's to close: a keep-alive race would look like a fault.
            http1_settings=HTTP1Settings(header_read_timeout=3_600_000),
            http2_settings=HTTP2Settings(max_concurrent_streams=1000),
            log_level=LogLevels.error,
            log_dictconfig={
                "handlers": {"console": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}},
                "loggers": {"_granian": {"handlers": ["console"], "level": "ERROR", "propagate": False}},
            },
            ssl_cert=options.certificate,
            ssl_key=options.key,
            ssl_protocol_min=SSLProtocols.tls12,
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            "--certificate", "", str(options.certificate), f"cannot be used with {options.key}: {error}"
        ) from error


async def _parent_gone(parent: int) -> None:
    """Return once the process that started this one is gone: whatever killed it, another adopts us."""
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing signals a parent's death
        await asyncio.sleep(0.2)


async def _drain(mock: Mock, door: _Door, deadline_ns: int) -> None:
    """Let answers under way end by themselves, and be read, for a while; then end those that are left."""
    while (mock.in_flight or door.answering) and now_ns() < deadline_ns:  # noqa: ASYNC110 - once a life
        await asyncio.sleep(0.01)
    for playback in list(mock.in_flight):
        playback.stop("shutdown")
