"""Streams read by httpx under gevent: one client and one greenlet a stream, `iter_lines`.

The BASELINE_ variables are those of fasthttp_streams.py; the URL is the only argument.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402 - gevent patches first
import os  # noqa: E402 - as above
import ssl  # noqa: E402 - as above
import sys  # noqa: E402 - as above
from pathlib import Path  # noqa: E402 - as above
from time import monotonic_ns  # noqa: E402 - as above

import gevent  # noqa: E402 - as above
import httpx  # noqa: E402 - as above

BODY = os.environ["BASELINE_BODY"].encode()
STREAMS = int(os.environ["BASELINE_STREAMS"])
RAMP_S = float(os.environ["BASELINE_RAMP_S"])
URL = f"{sys.argv[1]}/v1/chat/completions"


def stream(number: int, client: httpx.Client) -> str:
    """Take a turn in the ramp and read one stream; its row."""
    gevent.sleep(RAMP_S * number / STREAMS)
    headers = {"content-type": "application/json", "x-request-id": f"httpx-{number}"}
    started_ns = monotonic_ns()
    with client.stream("POST", URL, content=BODY, headers=headers) as response:
        stamps = [monotonic_ns() for line in response.iter_lines() if '"content"' in line]
    return json.dumps({"id": f"httpx-{number}", "started_ns": started_ns, "chunk_ns": stamps})


def main() -> None:
    """Run them all."""
    context = ssl.create_default_context()  # shared, for each costs 20 ms
    clients = [httpx.Client(verify=context, timeout=60) for _ in range(STREAMS)]
    streams = [gevent.spawn(stream, number, client) for number, client in enumerate(clients)]
    gevent.joinall(streams)
    Path(os.environ["BASELINE_OUT"]).write_text("\n".join(each.get() for each in streams))


if __name__ == "__main__":
    main()
