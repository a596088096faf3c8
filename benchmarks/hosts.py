"""A run over several hosts, one of which is cut off in mid-run: network namespaces, as root, Linux only.

    conductor (10.77.0.1): mock, `harness run --remote 2`        ── bridge ──┬── worker a (10.77.0.2)
                                                                             └── worker b (10.77.0.3), cut off

Each host is a namespace of its own. The link between a worker and the conductor's control port gets a delay
from a small proxy inside the worker's namespace (`tc netem` would need a kernel module that many machines
lack). The proof is in the run folder: worker a's schedule is untouched, worker b's records up to its last
batch are there, the rest of its arrivals are counted lost, and the verdict is INVALID and says so.

    python benchmarks/hosts.py            needs iproute2
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow.parquet as pq

CONDUCTOR, WORKERS = "10.77.0.1", {"a": "10.77.0.2", "b": "10.77.0.3"}
MOCK_PORT, CONTROL_PORT, DELAY_S = 8000, 5557, 0.02
TRUTH = "truth.jsonl"
SCENARIO = """
name: hosts
target: http://10.77.0.1:8000
traffic:
  - {kind: completion, weight: 1}
  - {kind: stream, weight: 1}
arrivals: {process: poisson, rate: 80}
duration: 20s
drain: 5s
max_in_flight: 80
timeouts: {connect: 1s, idle: 2s, total: 5s}
"""
DELAY_PROXY = """
import asyncio, sys
async def pump(reader, writer, delay_s):
    loop = asyncio.get_running_loop()
    while piece := await reader.read(65536):
        loop.call_later(delay_s, writer.write, piece)
async def serve(reader, writer):
    far = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
    await asyncio.gather(pump(reader, far[1], float(sys.argv[3])), pump(far[0], writer, float(sys.argv[3])))
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[2])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def hosts() -> Iterator[dict[str, str]]:
    """The namespaces, by host, joined by a bridge in the conductor's."""
    mark = os.getpid()
    names = {host: f"harness-{mark}-{host}" for host in ("conductor", *WORKERS)}
    try:
        for name in names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        home = names["conductor"]
        ip("-n", home, "link", "add", "bridge", "type", "bridge")
        ip("-n", home, "addr", "add", f"{CONDUCTOR}/24", "dev", "bridge")
        ip("-n", home, "link", "set", "bridge", "up")
        for host, address in WORKERS.items():
            ip(
                "-n",
                home,
                "link",
                "add",
                f"to-{host}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                names[host],
            )
            ip("-n", home, "link", "set", f"to-{host}", "master", "bridge", "up")
            ip("-n", names[host], "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", names[host], "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def inside(name: str, *command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process on a host; its whole group is ended with the context."""
    with log.open("wb") as out:
        words = ["ip", "netns", "exec", name, *command]
        process = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True, cwd=log.parent)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def started(log: Path, text: str, *, patience_s: float) -> None:
    """Wait until a process has written something."""
    end_s = time.monotonic() + patience_s
    while text not in log.read_text(errors="replace"):
        if time.monotonic() > end_s:
            sys.exit(f"{log.name} never said {text!r}: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.1)


def run(folder: Path) -> tuple[int, Path]:
    """The run itself: its exit code, and its folder."""
    harness = [sys.executable, "-m", "harness"]
    (folder / "hosts.yaml").write_text(SCENARIO)
    with ExitStack() as stack:
        names = stack.enter_context(hosts())
        mock_log = folder / "mock.log"
        mock = [
            *harness,
            "mock",
            "--host",
            CONDUCTOR,
            "--port",
            str(MOCK_PORT),
            "--truth",
            str(folder / TRUTH),
        ]
        mocking = stack.enter_context(inside(names["conductor"], *mock, log=mock_log))
        started(mock_log, "url", patience_s=20)
        command = [*harness, "run", "hosts.yaml", "--remote", "2", "--listen", f"{CONDUCTOR}:{CONTROL_PORT}"]
        conductor = stack.enter_context(inside(names["conductor"], *command, log=folder / "run.log"))
        for host in WORKERS:
            proxy = [sys.executable, "-c", DELAY_PROXY, CONDUCTOR, str(CONTROL_PORT), str(DELAY_S)]
            stack.enter_context(inside(names[host], *proxy, log=folder / f"proxy-{host}.log"))
            own = str(folder / f"own-{host}")
            worker = [*harness, "worker", "--master", f"127.0.0.1:{CONTROL_PORT}", "--runs", own]
            stack.enter_context(inside(names[host], *worker, log=folder / f"worker-{host}.log"))
        runs = folder / "runs"
        end_s = time.monotonic() + 60
        while not list(runs.glob("*/run.json")):
            if conductor.poll() is not None or time.monotonic() > end_s:
                sys.exit(f"the run did not begin: {(folder / 'run.log').read_text()[-800:]}")
            time.sleep(0.1)
        time.sleep(7)
        ip("-n", names["conductor"], "link", "set", "to-b", "down")
        print("worker b is cut off", flush=True)
        code = conductor.wait(timeout=120)
        mocking.terminate()  # it writes its truth when it ends
        mocking.wait(timeout=60)
    return code, next(runs.iterdir())


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as name:
        code, folder = run(Path(name))
        print((Path(name) / "run.log").read_text())
        manifest = json.loads((folder / "manifest.json").read_text())
        table = pq.read_table(folder / "requests.parquet", columns=["seq", "worker"]).to_pylist()
        own = {path.parent.parent.name: path.stat().st_size for path in Path(name).glob("own-*/*/records-*")}
        kept = {path.name: path.stat().st_size for path in folder.glob("records-*.arrows")}
        entries = map(json.loads, (Path(name) / TRUTH).read_text().splitlines())
        got = Counter(entry["request_id"] for entry in entries if "request_id" in entry)
    reported = [ledger["worker"] for ledger in manifest["workers"]]
    survivor = {row["seq"] for row in table if row["worker"] in reported}
    cut_off = {row["seq"] for row in table if row["worker"] not in reported}
    print("copies at the master", kept, "and at the workers", own)
    claims = {
        "the run is INVALID": code == 4,
        "one worker reported, one did not": len(reported) == 1,
        "the survivor's schedule is whole": len(survivor) == manifest["workers"][0]["planned"],
        "the lost worker's records up to its last batch are kept": len(cut_off) > 100,
        "every other arrival of its share is counted lost": manifest["lost"]
        == manifest["planned"] - len(survivor) - len(cut_off),
        "the target got no arrival twice, and every one that is in the log": max(got.values(), default=0) == 1
        and len(got) >= len(survivor) + len(cut_off),
        "the report says so": any("never reported back" in each for each in manifest["imbalances"]),
    }
    for claim, holds in claims.items():
        print("holds" if holds else "FAILS", "-", claim)
    sys.exit(0 if all(claims.values()) else 1)


if __name__ == "__main__":
    main()
