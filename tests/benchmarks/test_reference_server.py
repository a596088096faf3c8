import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ratios
import reference_server

BENCHMARKS = ratios.HERE
MS = 1_000_000
TTFT_MS, ITL_MS = 20, 5
ANSWER = reference_server.JSON_ANSWER
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Server:
    """A reference server, and what can be asked of it."""

    def __init__(self, command, *options):
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.truth()  # the first request may load what is loaded late, and open files for it
        self.files = self.open_files()

    def open_files(self):
        return psutil.Process(self.process.pid).num_fds()

    def connect(self, receive_bytes=None):
        host, port = self.url.removeprefix("http://").split(":")
        client = socket.socket()
        client.settimeout(10)
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.connect((host, int(port)))
        return contextlib.closing(client)

    def truth(self):
        with urllib.request.urlopen(f"{self.url}/__truth", timeout=10) as answer:
            return [json.loads(line) for line in answer]


@pytest.fixture(scope="module", params=["c", "python"])
def command(request):
    compiler = shutil.which("cc")
    if request.param == "python":
        return (sys.executable, str(BENCHMARKS / "reference_server.py"))
    if compiler is None:
        pytest.skip("NO C COMPILER (cc) ON THIS MACHINE: benchmarks/reference_server.c is not tested")
    return (str(ratios.compiled(compiler)),)


@contextlib.contextmanager
def serving(command, *options):
    server = Server(command, *options)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def servers(command):
    pace = ("--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS))
    with (
        serving(command, "--chunks", "3") as swift,
        serving(command, *pace) as paced,
        serving(command, "--together") as together,
        serving(command, "--together", "--vary") as varied,
    ):
        yield {"swift": swift, "paced": paced, "together": together, "varied": varied}


@pytest.fixture
def swift(servers):
    servers["swift"].truth()
    return servers["swift"]


@pytest.fixture
def paced(servers):
    servers["paced"].truth()
    return servers["paced"]


@pytest.fixture
def together(servers):
    servers["together"].truth()
    return servers["together"]


def post(body, request_id="one", prompt=""):
    text = json.dumps({"prompt": prompt, **body})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-ID: {request_id}\r\n"
    return f"{head}content-length: {len(text)}\r\n\r\n{text}".encode()


def stream(tokens):
    tail = reference_server.LAST_TOKEN + reference_server._ending(tokens)
    return reference_server.STREAM_HEAD + reference_server.TOKEN * (tokens - 1) + tail


def read(client, count):
    pieces = []
    while count and (piece := client.recv(min(count, 1 << 16))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def asked(client, request, answer):
    client.sendall(request)
    return read(client, len(answer)) == answer


def test_one_connection_gets_the_same_bytes_from_both_servers(swift):
    exchanges = [
        (post({}), ANSWER),
        (post({"stream": True}), stream(3)),
        (post({"stream": True, "max_tokens": 1}), stream(1)),
        (post({"max_tokens": 5, "stream": True}), stream(5)),
        (post({"max_tokens": 0, "stream": True}), stream(1)),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", NOT_FOUND),
        (post({"stream": False}, prompt="word " * 40_000), ANSWER),
    ]
    with swift.connect() as client:
        for request, answer in exchanges:
            assert asked(client, request, answer), request[:300]


def test_a_paced_stream_has_the_same_bytes_as_one_without_pauses(paced):
    with paced.connect() as client:
        assert asked(client, post({"stream": True, "max_tokens": 4}), stream(4))


def test_chunks_may_differ_in_their_text_and_in_a_padding(servers):
    varied = reference_server.VARIED
    assert len({*varied}) == len(varied) == reference_server.KINDS
    tail = reference_server.LAST_TOKEN + reference_server._ending(150)
    answer = reference_server.STREAM_HEAD + b"".join((varied * 3)[:149]) + tail
    with servers["varied"].connect() as client:
        assert asked(client, post({"stream": True, "max_tokens": 150}), answer)


def test_a_request_may_come_byte_by_byte(swift):
    request = post({"stream": True}, request_id="slow")
    with swift.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(request)):
            client.sendall(request[at : at + 1])
            last_ns = time.monotonic_ns()
        whole = stream(3)
        assert read(client, len(whole)) == whole
    (row,) = swift.truth()
    assert row["id"] == "slow"
    assert row["received_ns"] > last_ns - MS * 1000


def test_the_answers_are_http_with_the_events_of_a_chat_api(swift):
    connection = http.client.HTTPConnection(swift.url.removeprefix("http://"), timeout=10)
    connection.request("POST", "/v1/chat/completions", '{"stream": true, "max_tokens": 2}')
    text = connection.getresponse().read().decode()
    *events, done, rest = text.split("\n\n")
    first, last, usage = (json.loads(event.removeprefix("data: ")) for event in events)
    assert (done, rest) == ("data: [DONE]", "")
    assert [each["choices"][0]["finish_reason"] for each in (first, last)] == [None, "stop"]
    assert usage["usage"] == {"prompt_tokens": 16, "completion_tokens": 2, "total_tokens": 18}
    connection.request("POST", "/v1/chat/completions", "{}")
    answer = json.loads(connection.getresponse().read())
    assert answer["choices"][0]["message"]["content"] == "All work and no play."
    connection.close()


def test_the_truth_holds_each_request_and_is_told_once(swift):
    with swift.connect() as client:
        before_ns = time.monotonic_ns()
        assert asked(client, post({}, request_id='a "quoted" \\ one'), ANSWER)
        between_ns = time.monotonic_ns()
        assert asked(client, post({"stream": True}, request_id="two"), stream(3))
        after_ns = time.monotonic_ns()
        nameless = post({}).replace(b"X-Request-ID", b"X-Other")
        assert asked(client, nameless, ANSWER)
    whole, streamed, nameless = swift.truth()
    assert (whole["id"], streamed["id"], nameless["id"]) == ('a "quoted" \\ one', "two", "")
    assert whole["chunk_ns"] == nameless["chunk_ns"] == []
    assert before_ns < whole["received_ns"] < between_ns < streamed["received_ns"]
    stamps = [streamed["received_ns"], *streamed["chunk_ns"], after_ns]
    assert len(stamps) == 5
    assert stamps == sorted(stamps)
    assert swift.truth() == []


def test_no_chunk_is_written_before_it_is_due(paced):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(paced.connect()) for _ in range(10)]
        for number, client in enumerate(clients):
            client.sendall(post({"stream": True, "max_tokens": 6}, request_id=str(number)))
        whole = stream(6)
        assert all(read(client, len(whole)) == whole for client in clients)
        seen_ns = time.monotonic_ns()
    rows = paced.truth()
    assert sorted(row["id"] for row in rows) == [str(number) for number in range(10)]
    for row in rows:
        due_ns = [row["received_ns"] + (TTFT_MS + at * ITL_MS) * MS for at in range(6)]
        late_ns = [went - due for went, due in zip(row["chunk_ns"], due_ns, strict=True)]
        assert min(late_ns) >= 0
        assert row["chunk_ns"][-1] < seen_ns


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 128, 300])
def test_chunks_without_pauses_may_share_a_write_and_its_stamp(together, tokens):
    with together.connect() as client:
        assert asked(client, post({"stream": True, "max_tokens": tokens}), stream(tokens))
        assert asked(client, post({}), ANSWER)
    streamed, _ = together.truth()
    assert len(streamed["chunk_ns"]) == tokens
    assert len(set(streamed["chunk_ns"])) == -(-tokens // reference_server.TOGETHER)


def test_chunks_with_pauses_share_no_write(command):
    with serving(command, "--together", "--itl-ms", "2") as server, server.connect() as client:
        assert asked(client, post({"stream": True, "max_tokens": 5}), stream(5))
        (row,) = server.truth()
    assert min(later - earlier for earlier, later in pairwise(row["chunk_ns"])) > 0


@pytest.mark.parametrize("name", ["swift", "together"])
def test_a_client_that_does_not_read_keeps_no_other_waiting_and_misses_nothing(servers, name):
    tokens, server = 40_000, servers[name]
    server.truth()
    with server.connect(receive_bytes=4096) as idle, server.connect() as other:
        idle.sendall(post({"stream": True, "max_tokens": tokens}, request_id="idle"))
        assert idle.recv(1, socket.MSG_PEEK)
        assert asked(other, post({}), ANSWER)
        whole = stream(tokens)
        assert read(idle, len(whole)) == whole
        assert asked(idle, post({}), ANSWER)
    (written,) = (row["chunk_ns"] for row in server.truth() if row["id"] == "idle")
    assert len(written) == tokens
    assert written == sorted(written)


def test_truth_told_in_the_middle_of_a_stream_does_not_disturb_it(paced):
    with paced.connect() as client, paced.connect() as other:
        client.sendall(post({"stream": True, "max_tokens": 4}, request_id="cut"))
        head = reference_server.STREAM_HEAD
        assert read(client, len(head)) == head
        (row,) = paced.truth()
        assert asked(other, post({}, request_id="next"), ANSWER)
        whole = stream(4)[len(head) :]
        assert read(client, len(whole)) == whole
    assert row["id"] == "cut"
    assert len(row["chunk_ns"]) < 4
    (row,) = paced.truth()
    assert (row["id"], row["chunk_ns"]) == ("next", [])


def test_clients_that_leave_are_forgotten(paced):
    for _ in range(20):
        with paced.connect() as client:
            client.sendall(post({"stream": True, "max_tokens": 1_000_000}))
            assert client.recv(1)
    deadline = time.monotonic() + 10
    while paced.open_files() > paced.files and time.monotonic() < deadline:
        paced.truth()
    assert paced.open_files() <= paced.files


def test_without_truth_the_log_stays_empty_and_a_signal_ends_the_server(command):
    with serving(command, "--no-truth") as server:
        with server.connect() as client:
            assert asked(client, post({"stream": True, "max_tokens": 2}), stream(2))
        assert server.truth() == []
    assert server.process.returncode == -15  # SIGTERM ends it


@pytest.mark.parametrize("flags", [["--itl-ms", "soon"], ["--pace", "1"], ["extra"]])
def test_wrong_flags_are_refused(command, flags):
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert flags[-1] in done.stderr or flags[0] in done.stderr


def test_the_c_server_compiles_without_a_warning(tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NO C COMPILER (cc) ON THIS MACHINE: benchmarks/reference_server.c is not tested")
    source = BENCHMARKS / "reference_server.c"
    flags = ["-c", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(tmp_path / "object")]
    built = subprocess.run([compiler, *flags, source], capture_output=True, text=True, check=False)
    assert (built.stderr, built.returncode) == ("", 0)


def test_the_benchmark_takes_the_python_server_where_nothing_compiles_c(monkeypatch):
    monkeypatch.setattr(ratios.shutil, "which", lambda _name: None)
    assert ratios.server_command()[1].endswith("reference_server.py")
    assert ratios.machine()["reference_server"] == "python"
