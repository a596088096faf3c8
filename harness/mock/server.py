"""The mock's process: granian (RSGI) on uvloop, HTTP/1.1 and HTTP/2 on one port.

granian is hyper below Python: not one parser is shared with the client that is to be judged.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from granian.constants import HTTPModes, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.embed import Server

from harness.errors import ConfigError
from harness.mock.app import Behaviour, Mock
from harness.mock.pacer import now_ns

_NS = 1_000_000_000


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the mock's process runs."""

    behaviour: Behaviour
    host: str = "127.0.0.1"
    port: int = 0
    """0 picks a free one."""
    certificate: Path | None = None
    key: Path | None = None
    truth_file: Path | None = None
    """Written at the end."""
    drain_s: float = 10.0
    """How long answers under way may go on after SIGTERM."""
    die_with_parent: bool = False


def serve(options: Options, ready: Callable[[str], None]) -> None:
    """Run the mock in this process until SIGTERM or SIGINT, then drain.

    Args:
        options: how it runs.
        ready: called with the base URL once connections are accepted.

    Raises:
        ConfigError: the address cannot be had, or the certificate cannot be used.
    """
    _raise_file_limit()
    if (options.certificate is None) != (options.key is None):
        raise ConfigError("--certificate", "", None, "give --certificate and --key together")
    with _reserve(options.host, options.port) as reserved:
        port = reserved.getsockname()[1]
        if sys.platform != "linux":
            reserved.close()  # Only Linux lets the server share a port with the socket that reserves it.
        uvloop.run(_serve(options, port, ready))


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


async def _serve(options: Options, port: int, ready: Callable[[str], None]) -> None:
    mock = Mock(options.behaviour)
    server = _server(mock, options, port)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(server.serve())
    background: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
    if options.die_with_parent:
        background.append(asyncio.create_task(_parent_gone(os.getppid())))
    await _accepting(options.host, port, serving)
    scheme = "http" if options.certificate is None else "https"
    host = f"[{options.host}]" if ":" in options.host else options.host
    gc.freeze()  # What was loaded stays: no collection has to walk it again.
    ready(f"{scheme}://{host}:{port}")
    await asyncio.wait([serving, *background], return_when=asyncio.FIRST_COMPLETED)
    for task in background:
        task.cancel()
    server.stop()  # type: ignore[no-untyped-call]  # granian types its embedded server in part
    await _drain(mock, options.drain_s)
    await serving
    if options.truth_file is not None:
        mock.log.write(options.truth_file)


def _server(mock: Mock, options: Options, port: int) -> Server:
    try:
        return Server(
            mock,
            address=options.host,
            port=port,
            http=HTTPModes.auto,
            websockets=False,
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


async def _accepting(host: str, port: int, serving: asyncio.Task[None]) -> None:
    """Return once a connection is accepted: granian does not say when it listens."""
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            if serving.done():
                await serving
            await asyncio.sleep(0.005)
            continue
        writer.close()
        await writer.wait_closed()
        return


async def _parent_gone(parent: int) -> None:
    """Return once the process that started this one is gone: whatever killed it, another adopts us."""
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing signals a parent's death
        await asyncio.sleep(0.2)


async def _drain(mock: Mock, patience_s: float) -> None:
    """Let answers under way end by themselves for a while; then end those that are left."""
    deadline_ns = now_ns() + round(patience_s * _NS)
    while mock.in_flight and now_ns() < deadline_ns:  # noqa: ASYNC110 - once a life, not worth an event
        await asyncio.sleep(0.01)
    for playback in list(mock.in_flight):
        playback.stop("shutdown")
