"""The same work through this harness and its peers, each tool's word beside what the server knows.

    python benchmarks/peers.py [--install] [--tools harness,aiperf] [--works stream-paced] [--quick]
                               [--json FILE]

A reference server has the first CPU to itself and logs when it received and sent what; the tool, with
every process it starts, has the second. Each tool runs once, for --patience seconds at most; one that
cannot do the work, is not installed, fails or takes too long is a row that says so. Rates, chunks and
concurrency come from the server's log, by one definition for all; only the columns "said" are the
tool's own. `--install` first puts every peer into an environment of its own below --cache. The exit code is
1 if the harness is not ahead of them by as much as it must be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from ratios import (
    BASELINES,
    LOCUST,
    SHORT_PROMPT,
    Usage,
    body_of,
    machine,
    on_cpu,
    percentiles,
    reference_server,
    say,
    truth_of,
)

TOKENS = 30
"""Chunks of a paced stream: inference-perf asks a chat API for no other number, so all tools ask for this."""
ZERO_TOKENS = 64
"""Chunks of a stream without pauses; inference-perf asks for its 30, and gets them, here too."""
PROMPT_TOKENS = 32
MODEL = "reference"
TOKENIZER = "peers/tokenizer"
SAMPLE_S = 0.2
PROBE_PAUSE_NS = 1_000_000_000
"""What is followed by so long a pause, in the first twentieth of the requests, was no part of the load."""
AHEAD = 10
"""Without pauses, the harness must read so many times the chunks of the fastest LLM peer."""
FREE_DISK_GB = 30
"""What must be free before guidellm is installed: it brings torch, 5.7 GB."""

Pair = tuple[float | None, float | None]
"""P50 and P99 in milliseconds; None where the tool does not say."""
UNSAID: Pair = (None, None)


@dataclasses.dataclass(frozen=True)
class Work:
    """What every tool is asked to do."""

    name: str
    stream: bool
    users: int
    count: int
    rate: float | None = None
    """Requests a second in an open model; None: a closed model of `users`."""
    ttft_ms: float = 0
    itl_ms: float = 0
    tokens: int = TOKENS
    """Chunks of an answer, one token each."""

    @property
    def paced(self) -> bool:
        """Whether the server's pace, not the client's, decides how long it takes."""
        return self.rate is not None or self.ttft_ms > 0


def works(*, quick: bool) -> list[Work]:
    """The four kinds of work; `quick` is for trying things out: its figures prove nothing."""
    users, count, rate = (16, 100, 20.0) if quick else (64, 1000, 100.0)
    return [
        Work("one-piece", stream=False, users=users, count=count),
        Work("stream-paced", stream=True, users=users, count=count, ttft_ms=50, itl_ms=10),
        Work("stream-zero", stream=True, users=users, count=count, tokens=ZERO_TOKENS),
        Work("stream-open", stream=True, users=4 * users, count=count, rate=rate, ttft_ms=50, itl_ms=10),
    ]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one run happens."""

    url: str
    folder: Path
    cache: Path

    def program(self, tool: str) -> str:
        """A peer's command in its own environment."""
        return str(self.cache / tool / "bin" / tool)

    @property
    def tokenizer(self) -> str:
        """The tokenizer's folder, laid out as a Hugging Face cache holds it, since aiperf takes no other."""
        return str(self.cache / "hub" / f"models--{TOKENIZER.replace('/', '--')}" / "snapshots" / "0")


@dataclasses.dataclass(frozen=True)
class Said:
    """What a tool reports of itself."""

    ttft_ms: Pair = UNSAID
    itl_ms: Pair = UNSAID
    itl_is_mean: bool = False
    """Its ITL is the mean gap of each request, not every gap."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A command, and how to read the report that it leaves."""

    command: Sequence[str]
    said: Callable[[], Said]
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    success: frozenset[int] = frozenset({0})


class CannotError(Exception):
    """The tool has no way to do this work; the text says what it lacks."""


# -- the tools: a command line, and how to read its report -----------------------------------------------


def read(folder: Path, pattern: str) -> Any:
    """The one JSON report below a folder; FileNotFoundError where the tool left none."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"it left no {pattern}")
    return json.loads(found[0].read_text())


def scenario_of(work: Work) -> dict[str, Any]:
    """The work as this harness spells it."""
    closed = {"process": "closed", "users": work.users}
    return {
        "name": "peers",
        "traffic": [
            {
                "kind": "stream" if work.stream else "completion",
                "prompt": SHORT_PROMPT,
                "output": {"distribution": "fixed", "tokens": work.tokens},
            }
        ],
        "arrivals": closed if work.rate is None else {"process": "constant", "rate": work.rate},
        "count": work.count,
        "max_in_flight": work.users,
        "telemetry": False,
    }


def harness(work: Work, place: Place) -> Call:
    """This harness, by its own command."""
    scenario = place.folder / "peers.yaml"
    scenario.write_text(json.dumps(scenario_of(work)))
    runs = place.folder / "runs"
    command = [sys.executable, "-m", "harness", "run", str(scenario), "--target", place.url]
    command += ["--no-telemetry", "--no-calibrate", "--runs", str(runs)]

    def said() -> Said:
        measured = read(runs, "summary.json")["summary"]["total"]["distributions"]

        def pair(name: str) -> Pair:
            if name not in measured:
                return UNSAID
            values = [measured[name]["quantiles"][level]["value"] for level in ("p50", "p99")]
            p50, p99 = (None if value is None else value * 1e3 for value in values)
            return p50, p99

        return Said(pair("ttft"), pair("itl"))

    # The verdict is the exit code: failed objectives, too few samples and an invalid run all leave a report.
    return Call(command, said, success=frozenset({0, 1, 3, 4}))


def locust(user: str) -> Callable[[Work, Place], Call]:
    """Plain Locust, by one of its two clients; it has no TTFT, so the locustfile times every line."""

    def adapter(work: Work, place: Place) -> Call:
        if work.rate is not None:
            raise CannotError("no open model: its users wait for their answers")
        out = place.folder / "locust.json"
        command = [*LOCUST, "-f", str(BASELINES / "locust_peers.py"), user, "--host", place.url]
        command += ["-u", str(work.users), "-r", str(work.users)]
        environ = {
            "PEER_BODY": body_of({**scenario_of(work), "count": 1}, place.url),
            "PEER_COUNT": str(work.count),
            "PEER_OUT": str(out),
        }

        def said() -> Said:
            timed = read(place.folder, out.name)
            return Said(spread_of(timed["ttft_ms"]), spread_of(timed["itl_ms"]))

        return Call(command, said, environ)

    return adapter


def aiperf(work: Work, place: Place) -> Call:
    """NVIDIA's aiperf."""
    command = [place.program("aiperf"), "profile", "--model", MODEL, "--url", place.url]
    command += [
        "--endpoint-type",
        "chat",
        "--tokenizer",
        TOKENIZER,
        "--ui",
        "none",
        "--use-legacy-max-tokens",
    ]
    command += ["--isl", str(PROMPT_TOKENS), "--osl", str(work.tokens), "--request-count", str(work.count)]
    command += ["--output-artifact-dir", str(place.folder)]
    command += ["--streaming"] if work.stream else []
    if work.rate is None:
        command += ["--concurrency", str(work.users)]
    else:
        command += ["--request-rate", str(work.rate), "--arrival-pattern", "constant"]

    def said() -> Said:
        report = read(place.folder, "profile_export_aiperf.json")

        def pair(name: str) -> Pair:
            return (report[name]["p50"], report[name]["p99"]) if name in report else UNSAID

        return Said(pair("time_to_first_token"), pair("inter_chunk_latency"))

    return Call(command, said)


def evalscope(work: Work, place: Place) -> Call:
    """ModelScope's evalscope perf."""
    command = [place.program("evalscope"), "perf", "--api", "openai", "--model", MODEL]
    command += ["--url", f"{place.url}/v1/chat/completions", "--no-test-connection", "-n", str(work.count)]
    command += ["--dataset", "random", "--tokenizer-path", place.tokenizer]
    for edge in ("min", "max"):
        command += [f"--{edge}-prompt-length", str(PROMPT_TOKENS), f"--{edge}-tokens", str(work.tokens)]
    command += [
        "--stream" if work.stream else "--no-stream",
        "--outputs-dir",
        str(place.folder),
        "--no-timestamp",
    ]
    if work.rate is None:
        command += ["--parallel", str(work.users)]
    else:
        command += ["--open-loop", "--rate", str(work.rate)]

    def said() -> Said:
        rows = {row["Percentiles"]: row for row in read(place.folder, "benchmark_percentile.json")}

        def pair(name: str) -> Pair:
            return rows["50%"].get(name), rows["99%"].get(name)

        return Said(pair("TTFT (ms)"), pair("ITL (ms)")) if work.stream else Said()

    return Call(command, said)


def inference_perf(work: Work, place: Place) -> Call:
    """Kubernetes' inference-perf; its synthetic prompts go to the completions API only: these are mocks."""
    if work.rate is None:
        load = {
            "type": "concurrent",
            "stages": [{"num_requests": work.count, "concurrency_level": work.users}],
        }
    else:
        load = {
            "type": "constant",
            "stages": [{"rate": work.rate, "duration": round(work.count / work.rate)}],
        }
    config = {
        "api": {"type": "chat", "streaming": work.stream},
        "data": {"type": "mock"},
        "load": {**load, "num_workers": 1, "worker_max_concurrency": work.users},
        "server": {"type": "vllm", "model_name": MODEL, "base_url": place.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": place.tokenizer},
        "report": {"prometheus": {"summary": False, "per_stage": False}},
        "storage": {"local_storage": {"path": str(place.folder / "report")}},
    }
    asked = place.folder / "config.yaml"
    asked.write_text(json.dumps(config))

    def said() -> Said:
        latency = read(place.folder, "summary_lifecycle_metrics.json")["successes"]["latency"]

        def pair(name: str) -> Pair:
            row = latency.get(name)
            return (row["median"] * 1e3, row["p99"] * 1e3) if row else UNSAID

        return Said(pair("time_to_first_token"), pair("inter_token_latency"))

    return Call([place.program("inference-perf"), "-c", str(asked)], said)


def genai_bench(work: Work, place: Place) -> Call:
    """SGLang's genai-bench."""
    if not work.stream:
        raise CannotError("it always streams")
    if work.rate is not None:
        raise CannotError("no open model: only a number of concurrent users")
    command = [place.program("genai-bench"), "benchmark", "--api-backend", "openai", "--api-base", place.url]
    command += ["--api-key", "none", "--task", "text-to-text", "--api-model-name", MODEL]
    command += ["--model-tokenizer", place.tokenizer, "--num-concurrency", str(work.users)]
    command += ["--traffic-scenario", f"D({PROMPT_TOKENS},{work.tokens})", "--max-time-per-run", "1"]
    command += ["--max-requests-per-run", str(work.count), "--log-dir", str(place.folder)]
    command += ["--experiment-base-dir", str(place.folder), "--experiment-folder-name", "report"]

    def said() -> Said:
        stats = read(place.folder, "D*_text-to-text_*.json")["aggregated_metrics"]["stats"]

        def pair(name: str) -> Pair:
            return stats[name]["p50"] * 1e3, stats[name]["p99"] * 1e3

        return Said(pair("ttft"), pair("tpot"), itl_is_mean=True)

    return Call(command, said)


def guidellm(work: Work, place: Place) -> Call:
    """The guidellm of the vLLM project."""
    report = place.folder / "guidellm.json"
    stream = "true" if work.stream else "false"
    backend = f"kind=openai_http,target={place.url},model={MODEL},validate_backend=false,stream={stream}"
    closed = f"kind=concurrent,streams={work.users}"
    command = [place.program("guidellm"), "run", "--backend", backend, "--disable-console"]
    command += ["--profile", closed if work.rate is None else f"kind=constant,rate={work.rate}"]
    command += ["--constraint", f"kind=max_requests,count={work.count}"]
    command += ["--tokenizer", f"kind=hf_auto,model={place.tokenizer}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={work.tokens}"]
    command += ["--output", f"kind=json,path={report}"]

    def said() -> Said:
        measured = read(place.folder, report.name)["benchmarks"][0]["metrics"]

        def pair(name: str) -> Pair:
            levels = measured[name]["successful"]["percentiles"]
            return levels["p50"], levels["p99"]

        if not work.stream:
            return Said()
        return Said(pair("time_to_first_token_ms"), pair("inter_token_latency_ms"), itl_is_mean=True)

    return Call(command, said)


def wrk(work: Work, place: Place) -> Call:
    """The ceiling: a C loop that posts the same body and looks at no answer; it says no TTFT."""
    if work.stream or work.rate is not None:
        raise CannotError("requests in one piece in a closed model only")
    script = place.folder / "post.lua"
    body = body_of({**scenario_of(work), "count": 1}, place.url)
    lines = [
        'wrk.method = "POST"',
        'wrk.headers["Content-Type"] = "application/json"',
        f"wrk.body = [==[{body}]==]",
    ]
    script.write_text("\n".join(lines))
    command = ["wrk", "-t1", f"-c{work.users}", "-d3s", "-s", str(script), f"{place.url}/v1/chat/completions"]
    return Call(command, Said)


@dataclasses.dataclass(frozen=True)
class Tool:
    """One client."""

    adapter: Callable[[Work, Place], Call]
    package: str = ""
    """What to install into its own environment; none for what is here already."""
    swiftness: int = 1
    """How many times the requests it needs without pauses, for a run that is not over in a blink."""


TOOLS = {
    "harness": Tool(harness, swiftness=20),
    "locust-fasthttp": Tool(locust("Fast"), swiftness=10),
    "locust-requests": Tool(locust("Requests"), swiftness=2),
    "aiperf": Tool(aiperf, "aiperf==0.13.0"),
    "evalscope": Tool(evalscope, "evalscope[perf]==1.14.1"),
    "inference-perf": Tool(inference_perf, "inference-perf==0.7.0"),
    "genai-bench": Tool(genai_bench, "genai-bench==0.0.5"),
    "guidellm": Tool(guidellm, "guidellm==0.8.1"),
    "wrk": Tool(wrk),
}


# -- installing ------------------------------------------------------------------------------------------


def write_tokenizer(cache: Path) -> None:
    """Leave the tokenizer that the peers must have: one token a printable ASCII character, but one a chunk.

    A tool that counts tokens by itself shall count what the server counts; a real vocabulary would not
    make it more right, and takes seconds to load.
    """
    letters = ["Ġ", "Ċ", *map(chr, range(33, 127))]
    merges = ["t o", "to k", "tok e", "toke n", "token Ġ", "token ."]
    vocabulary = {text: at for at, text in enumerate([*letters, *(each.replace(" ", "") for each in merges)])}
    ends = [
        {"id": len(vocabulary) + at, "content": text, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for at, text in enumerate(("<s>", "</s>"))
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": ends,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "model_max_length": 1 << 20,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    folder = Path(Place("", cache, cache).tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    main_branch = folder.parent.parent / "refs" / "main"
    main_branch.parent.mkdir(exist_ok=True)
    main_branch.write_text("0")


def uv_of(cache: Path) -> str:
    """uv: the one on the path, else one in the cache, made by pip."""
    found = shutil.which("uv")
    if found is not None:
        return found
    environment = cache / "uv"
    if not (environment / "bin" / "uv").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(environment / "bin" / "pip"), "install", "-q", "uv"], check=True)
    return str(environment / "bin" / "uv")


def install(name: str, package: str, cache: Path, python: str) -> str:
    """Put one peer into its own environment, of the Python that uv finds by this; says how that went."""
    free_gb = shutil.disk_usage(cache).free / 1e9
    if name == "guidellm" and free_gb < FREE_DISK_GB:
        return f"left out: {free_gb:.0f} GB free, it needs {FREE_DISK_GB}"
    uv, environment = uv_of(cache), cache / name
    steps = [[uv, "venv", "-q", "--allow-existing", "--python", python, str(environment)]]
    steps += [[uv, "pip", "install", "-q", "--python", str(environment / "bin" / "python"), package]]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            remedy = f"; no Python {python} here? give its path by --python" if "venv" in step else ""
            return f"failed: {last_line(done.stderr)}{remedy}"
    return f"installed {package}"


# -- one run ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One tool at one work; everything but the columns `said` is measured here or by the server."""

    tool: str
    work: str
    why_not: str = ""
    """Why there are no figures."""
    requests: int = 0
    per_s: float = 0
    """Requests received, by the time from the first one's receipt to the last one's answer."""
    chunks_per_s: float = 0
    in_flight: float = 0
    """Mean number of streams that the server was answering."""
    cpu_us: float = 0
    """CPU time of the process tree a request, from the first request to the last answer."""
    rss_mb: float = 0
    """The greatest sum of resident memory over the process tree; shared pages count in each process."""
    start_s: float = 0
    """From the command to the first request."""
    end_s: float = 0
    """From the last answer to the command's end."""
    said: Said = Said()
    ttft_ms: Pair = UNSAID
    """First chunk written - request read, on the server."""
    itl_ms: Pair = UNSAID
    """Gaps between the chunks the server wrote."""


@dataclasses.dataclass(frozen=True)
class Watched:
    """A process tree's life."""

    began_ns: int
    ended_ns: int
    returncode: int | None
    """None where it took too long and was ended."""
    usage: Usage
    rss_bytes: int


def spread_of(values: Sequence[float]) -> Pair:
    """P50 and P99; nothing of fewer than two."""
    return percentiles(values) if len(values) > 1 else UNSAID


def sample(root: psutil.Process, cpu_s: dict[int, float]) -> int:
    """Note every process's CPU seconds so far, so that one that ends is not forgotten; the sum of memory."""
    rss_bytes = 0
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            with process.oneshot():
                times = process.cpu_times()
                rss_bytes += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        cpu_s[process.pid] = times.user + times.system
    return rss_bytes


def end_tree(root: psutil.Process) -> None:
    """End a process and all that it started: a client that is late must not load the next one's run."""
    try:
        tree = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=5)


def watch(call: Call, place: Place, patience_s: float) -> Watched:
    """Run a tool on the second CPU, and watch what its processes use."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(place.cache)}
    environ = {**os.environ, **offline, **call.environ}
    usage, cpu_s, rss_bytes = Usage([], []), dict[int, float](), 0
    log = (place.folder / "client.log").open("wb")
    with log, on_cpu(1):
        began_ns = time.monotonic_ns()
        client = subprocess.Popen(
            call.command,
            cwd=place.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    root, deadline = psutil.Process(client.pid), time.monotonic() + patience_s
    try:
        while client.poll() is None and time.monotonic() < deadline:
            rss_bytes = max(rss_bytes, sample(root, cpu_s))
            usage.at_ns.append(time.monotonic_ns())
            usage.cpu_s.append(sum(cpu_s.values()))
            time.sleep(SAMPLE_S)
        ended_ns, returncode = time.monotonic_ns(), client.poll()
    finally:
        if client.poll() is None:
            end_tree(root)
            client.wait()
    return Watched(began_ns, ended_ns, returncode, usage, rss_bytes)


def last_line(text: str) -> str:
    """The last line that says something, short enough for a table."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    return lines[-1].replace("|", "/")[:120] if lines else "it said nothing"


def reason(watched: Watched, call: Call, folder: Path, patience_s: float) -> str:
    """Why a run does not count; empty where it does."""
    if watched.returncode is None:
        return f"not done within {patience_s:.0f} s"
    if watched.returncode in call.success:
        return ""
    ending = f"exit code {watched.returncode}"
    if watched.returncode < 0:
        ending = f"ended by {signal.Signals(-watched.returncode).name}"
    return f"{ending}: {last_line((folder / 'client.log').read_text(errors='replace'))}"


def without_probes(truth: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The requests of the load, in order: aiperf sends one long before, as others do to see who answers."""
    rows = sorted(truth, key=lambda row: row["received_ns"])
    early = range(1, max(len(rows) // 20, 1) + 1)
    pauses_ns = {at: rows[at]["received_ns"] - rows[at - 1]["received_ns"] for at in early}
    return rows[max((at for at, pause_ns in pauses_ns.items() if pause_ns > PROBE_PAUSE_NS), default=0) :]


def judge(tool: str, work: Work, watched: Watched, said: Said, truth: Sequence[Mapping[str, Any]]) -> Row:
    """The server's log of the load, two requests at least, and what was watched, as a row."""
    ends_ns = [row["chunk_ns"][-1] if row["chunk_ns"] else row["received_ns"] for row in truth]
    first_ns, last_ns = min(row["received_ns"] for row in truth), max(ends_ns)
    span_s = (last_ns - first_ns) / 1e9
    streams = [row for row in truth if row["chunk_ns"]]
    busy_ns = sum(row["chunk_ns"][-1] - row["received_ns"] for row in streams)
    gaps_ms = [(later - earlier) / 1e6 for row in streams for earlier, later in pairwise(row["chunk_ns"])]
    return Row(
        tool,
        work.name,
        requests=len(truth),
        per_s=len(truth) / span_s,
        chunks_per_s=sum(len(row["chunk_ns"]) for row in streams) / span_s,
        in_flight=busy_ns / 1e9 / span_s,
        cpu_us=watched.usage.between(first_ns, last_ns) / len(truth) * 1e6,
        rss_mb=watched.rss_bytes / 1e6,
        start_s=(first_ns - watched.began_ns) / 1e9,
        end_s=(watched.ended_ns - last_ns) / 1e9,
        said=said,
        ttft_ms=spread_of([(row["chunk_ns"][0] - row["received_ns"]) / 1e6 for row in streams]),
        itl_ms=spread_of(gaps_ms),
    )


def measure(name: str, work: Work, folder: Path, cache: Path, patience_s: float) -> Row:
    """One tool, one work, a server of its own; whatever goes wrong with the tool is in the row."""
    tool = TOOLS[name]
    if not work.paced:
        work = dataclasses.replace(work, count=work.count * tool.swiftness)
    pace = ["--ttft-ms", str(work.ttft_ms), "--itl-ms", str(work.itl_ms), "--chunks", str(work.tokens)]
    if work.stream and not work.paced:
        # A write a chunk is dearer than reading it: the server, not the client, would be what is measured.
        pace.append("--together")
    folder.mkdir()
    with reference_server(*pace) as url:
        place = Place(url, folder, cache)
        try:
            call = tool.adapter(work, place)
        except CannotError as lack:
            return Row(name, work.name, f"cannot: {lack}")
        if shutil.which(call.command[0]) is None:
            remedy = f"--install --tools {name}" if tool.package else "install it"
            return Row(name, work.name, f"not installed: {remedy}")
        watched = watch(call, place, patience_s)
        truth = truth_of(url)
    why_not = reason(watched, call, folder, patience_s)
    if why_not:
        return Row(name, work.name, f"{why_not} ({len(truth)} of {work.count} requests sent)")
    load = without_probes(truth) if len(truth) > 1 else []
    if len(load) < 2:
        return Row(name, work.name, f"the server received {len(truth)} requests")
    try:
        said = call.said()
    except (OSError, ValueError, LookupError, TypeError) as error:
        # A report that is missing or has changed its form is the tool's failure, to be told like the others.
        return Row(
            name, work.name, f"its report cannot be read: {type(error).__name__}: {last_line(str(error))}"
        )
    return judge(name, work, watched, said, load)


# -- telling ---------------------------------------------------------------------------------------------

HEADINGS = (
    "tool",
    "requests",
    "requests/s",
    "chunks/s",
    "in flight",
    "CPU µs/request",
    "RSS MB",
    "start / end s",
    "TTFT ms said",
    "TTFT ms true",
    "ITL ms said",
    "ITL ms true",
)


def pair_text(pair: Pair) -> str:
    """P50 / P99."""
    return " / ".join("-" if value is None else f"{value:.2f}" for value in pair)


def cells(row: Row) -> tuple[str, ...]:
    """A row's columns; a tool without figures has its reason in the second."""
    if row.why_not:
        return (row.tool, row.why_not, *[""] * (len(HEADINGS) - 2))
    return (
        row.tool,
        f"{row.requests:,}",
        f"{row.per_s:,.0f}",
        f"{row.chunks_per_s:,.0f}",
        f"{row.in_flight:.1f}",
        f"{row.cpu_us:,.0f}",
        f"{row.rss_mb:,.0f}",
        f"{row.start_s:.1f} / {row.end_s:.1f}",
        pair_text(row.said.ttft_ms),
        pair_text(row.ttft_ms),
        pair_text(row.said.itl_ms) + ("*" if row.said.itl_is_mean else ""),
        pair_text(row.itl_ms),
    )


def table(rows: Sequence[Row]) -> str:
    """Rows of one work as a Markdown table."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def title(work: Work) -> str:
    """What a table's tools were asked to do."""
    shape = f"streams of {work.tokens} chunks" if work.stream else "answers in one piece"
    pace = f"TTFT {work.ttft_ms:.0f} ms, ITL {work.itl_ms:.0f} ms" if work.ttft_ms else "no pauses"
    load = f"{work.users} at a time" if work.rate is None else f"{work.rate:.0f} a second, whatever happens"
    return f"{work.name}: {shape}, {pace}, {load}"


def lead(rows: Sequence[Row]) -> tuple[float, str] | None:
    """How many times the chunks of the fastest LLM peer the harness read, and whose; None without either."""
    rates = {row.tool: row.chunks_per_s for row in rows if not row.why_not and row.chunks_per_s}
    peers = [name for name in rates if TOOLS[name].package]
    if "harness" not in rates or not peers:
        return None
    fastest = max(peers, key=rates.__getitem__)
    return rates["harness"] / rates[fastest], fastest


def chosen(given: str | None, known: Sequence[str], flags: argparse.ArgumentParser) -> list[str]:
    """A comma-separated choice among known names; all, where none is given."""
    names = list(known) if given is None else given.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        flags.error(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def main() -> None:
    """Read the flags; install, or measure and tell."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--tools", metavar="A,B", help=f"of {', '.join(TOOLS)}; default: all")
    flags.add_argument("--works", metavar="A,B", help="of one-piece, stream-paced, stream-zero, stream-open")
    flags.add_argument("--quick", action="store_true", help="less of everything, to try it out")
    flags.add_argument("--patience", type=float, default=60, metavar="S", help="seconds a run may take (60)")
    flags.add_argument("--install", action="store_true", help="first install the peers that are not there")
    # inference-perf needs 3.12; the others run on it too.
    flags.add_argument("--python", default="3.12", help="their Python: a version or a path (3.12)")
    default_cache = Path(tempfile.gettempdir()) / "peers"
    flags.add_argument("--cache", type=Path, default=default_cache, metavar="DIR", help="their environments")
    flags.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    options = flags.parse_args()
    all_works = works(quick=options.quick)
    names = chosen(options.tools, list(TOOLS), flags)
    wanted = set(chosen(options.works, [work.name for work in all_works], flags))
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    write_tokenizer(cache)
    if options.install:
        for name in names:
            if TOOLS[name].package:
                say(f"{name}: {install(name, TOOLS[name].package, cache, options.python)}")
    # Ended from outside, it still ends the server and the tool, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    on, rows = machine(), list[Row]()
    with tempfile.TemporaryDirectory(prefix="peers-") as root:
        for work in all_works:
            if work.name not in wanted:
                continue
            found = []
            for name in names:
                say(f"{work.name}, {name}")
                found.append(measure(name, work, Path(root) / f"{work.name}-{name}", cache, options.patience))
            print(f"\n{title(work)}\n\n{table(found)}", flush=True)
            rows += found
    behind = False
    zero = lead([row for row in rows if row.work == "stream-zero"])
    if zero is not None:
        ahead, fastest = zero
        behind = ahead < AHEAD and not options.quick
        answer = "no" if ahead < AHEAD else "yes"
        print(f"\nstream-zero, chunks/s, harness : {fastest} = {ahead:.1f}, required >= {AHEAD}: {answer}")
    print(f"\n{', '.join(f'{name} {value}' for name, value in on.items())}", file=sys.stderr)
    if options.json is not None:
        rows_as_json = [dataclasses.asdict(row) for row in rows]
        options.json.write_text(json.dumps({"machine": on, "rows": rows_as_json}, indent=1))
    sys.exit(behind)


if __name__ == "__main__":
    main()
