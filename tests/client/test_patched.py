"""The client works the same in a process that gevent has monkey-patched, as Locust's are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
{prologue}
import sys
import trustme
sys.path.insert(0, sys.argv[1])
from h2_server import serving_h2
from scripted import CHAT_BODY, answers, attempt, http, serving
from test_http2 import batch
from test_tls import client_context, server_context
from harness.client import target
from harness.client.http1 import Connection
from harness.client.http2 import Mux

authority = trustme.CA()
certificate = authority.issue_cert("127.0.0.1")
ok = answers(http("200 OK", CHAT_BODY))
with serving(ok) as server:
    print(attempt(server.url.replace("127.0.0.1", "localhost")).outcome)
with serving(ok, ssl_context=server_context(certificate)) as server:
    connection = Connection(target.parse(server.url), tls=client_context(authority))
    print(attempt(connection).outcome)
    connection.close()
    connection = Connection(target.parse(server.url))
    print(attempt(connection).outcome)
with serving_h2() as server:
    mux = Mux(target.parse(server.url))
    print(*(record.outcome for record in batch(mux, 3)))
    mux.close()
"""


@pytest.mark.parametrize(
    "prologue",
    [
        "from gevent import monkey; monkey.patch_all()",
        "import harness.client.send; from gevent import monkey; monkey.patch_all()",
    ],
    ids=["patched first", "client imported first"],
)
def test_a_monkey_patched_process_makes_no_difference(prologue):
    program = PROGRAM.format(prologue=prologue)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["ok", "ok", "connect_error", "ok", "ok", "ok"], done.stderr
