"""Claims about the doctor: each judgement, and what it finds at servers that are ill on purpose."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
import trustme
from click.testing import CliRunner

from harness import cli, doctor, probe
from harness.cli import main
from harness.client.target import parse
from harness.clock import Anchor
from harness.doctor import Finding, Heard, State
from harness.mock.process import mock_process
from harness.probe import Fault, Names, Reply, Streamed, Tls
from harness.record import Outcome
from harness.report.tables import tables
from harness.testing import mock_server
from harness.workload import scenario as scenarios
from harness.workload.scenario import Scenario, Seconds, Traffic

KEY = "sk-very-secret"
PLAIN = Scenario(duration_s=Seconds(1))
STREAM_HEADERS = {"content-type": "text/event-stream"}


# -- judging --------------------------------------------------------------------------------------------


def reply(status: int = 200, body: bytes = b"{}", **headers: str) -> Reply:
    return Reply(status, headers, body, took_s=0.2, asked_s=1_000.0)


def streamed(*at_s: float, status: int = 200, **headers: str) -> Streamed:
    return Streamed(status, headers, [(each_s, b"x") for each_s in at_s])


def paced(*at_s: float, away_s: float = 0.0, counted: int = 0, **headers: str) -> Finding:
    heard = Heard(tokens_s=at_s, counted=counted)
    return doctor.judge_streaming(streamed(*at_s, **headers), heard, away_s)


def evenly(n: int, *, since_s: float, each_s: float) -> list[float]:
    return [since_s + k * each_s for k in range(n)]


def told(outcome: Outcome, error: str) -> Heard:
    return Heard(outcome, error)


WELL = Heard()
MALFORMED, CUT = told(Outcome.MALFORMED, "no choices"), told(Outcome.CUT, "stream ended without [DONE]")
IN_BAND = told(Outcome.IN_BAND_ERROR, "error event: overloaded")
LATE = Fault(probe.LATE)
LISTED = b'{"data": [{"id": "a"}, {"id": "b"}]}'
DAY_S = 86_400


@pytest.mark.parametrize(
    ("finding", "state", "says"),
    [
        (doctor.judge_names(Names(("1.2.3.4",), 0.001), "h"), State.OK, "1.2.3.4"),
        (doctor.judge_names(Names(("1.2.3.4",), 0.9), "h"), State.WARN, "resolver"),
        (doctor.judge_names(Fault("not known"), "h"), State.FAIL, "spelling of h"),
        (doctor.judge_connects([0.01] * 9 + [0.02], "h:1"), State.OK, "the longest of 10"),
        (doctor.judge_connects([0.01, 0.3], "h:1"), State.WARN, "guide: 200 ms"),
        (doctor.judge_connects(Fault("connection refused"), "h:1"), State.FAIL, "h:1"),
        (doctor.judge_round_trips([0.01, 0.02]), State.OK, "the longest of 2"),
        (doctor.judge_round_trips([0.01, 0.3]), State.WARN, "guide: 200 ms"),
        (doctor.judge_round_trips(Fault("read error")), State.WARN, "was answered before"),
        (doctor.judge_tls(Tls("TLSv1.3", "h2", 90 * DAY_S), 0), State.OK, "90 more days"),
        (doctor.judge_tls(Tls("TLSv1.3", "h2", 3 * DAY_S), 0), State.WARN, "renew"),
        (doctor.judge_tls(Fault("certificate not trusted: expired"), 0), State.FAIL, "SSL_CERT_FILE"),
        (doctor.judge_tls(Fault("connection reset by peer"), 0), State.FAIL, "is TLS spoken"),
        (doctor.judge_http2(offered=True, wanted=True), State.OK, "offered"),
        (doctor.judge_http2(offered=False, wanted=False), State.OK, "only batches"),
        (doctor.judge_http2(offered=False, wanted=True), State.FAIL, "ALPN"),
        (doctor.judge_key([200], "K", ["K"]), State.OK, "key from K"),
        (doctor.judge_key([200], None, ["K"]), State.OK, "none asked for"),
        (doctor.judge_key([401, 401], None, ["K", "L"]), State.FAIL, "K or L"),
        (doctor.judge_key([401], "K", ["K"]), State.FAIL, "not accepted"),
        (doctor.judge_key([200, 402], "K", ["K"]), State.FAIL, "balance"),
        (doctor.judge_key([200, 403], "K", ["K"]), State.FAIL, "may not do this"),
        (doctor.judge_models(reply(body=LISTED), ["a"]), State.OK, "2 listed: a, b"),
        (doctor.judge_models(reply(body=LISTED), ["c"]), State.FAIL, "not listed: c"),
        (doctor.judge_models(reply(404), ["a"]), State.WARN, "HTTP 404"),
        (doctor.judge_models(reply(body=b"<html>"), ["a"]), State.WARN, "no model list"),
        (doctor.judge_http([LATE, reply(503)], plain=True), State.OK, "answered"),
        (doctor.judge_http([reply(308), reply(200)], plain=True), State.OK, "answered"),
        (doctor.judge_http([reply(308), reply(308)], plain=True), State.FAIL, "HTTP 308"),
        (doctor.judge_http([reply(308), reply(308)], plain=True), State.FAIL, "is it https://?"),
        (doctor.judge_http([reply(302), reply(302)], plain=False), State.FAIL, "give the final address"),
        (doctor.judge_http([Fault(probe.NO_HTTP)], plain=True), State.FAIL, "is it an https:// address"),
        (doctor.judge_http([Fault(probe.NO_HTTP)], plain=False), State.FAIL, "the API's port"),
        (doctor.judge_http([reply(400)], plain=True, tls=True), State.FAIL, "write https://"),
        (doctor.judge_http([LATE, LATE, LATE], plain=True), State.FAIL, "server's log"),
        (doctor.judge_http([Fault(probe.BROKE_OFF), LATE], plain=True), State.FAIL, "server's log"),
        (doctor.judge_http([LATE], plain=True, greets="other"), State.FAIL, "is it an https:// address"),
        (doctor.judge_completion(reply(), WELL), State.OK, "200 ms"),
        (doctor.judge_completion(reply(), MALFORMED), State.FAIL, "dialect"),
        (doctor.judge_completion(reply(), IN_BAND), State.FAIL, "overloaded"),
        (doctor.judge_completion(reply(429), WELL), State.FAIL, "rate limit"),
        (doctor.judge_completion(reply(404), WELL), State.FAIL, "base URL"),
        (doctor.judge_completion(reply(422), WELL), State.FAIL, "parameters"),
        (doctor.judge_completion(reply(503), WELL), State.FAIL, "server's log"),
        (doctor.judge_completion(LATE, WELL), State.FAIL, "no answer in time"),
        (paced(*evenly(48, since_s=0.2, each_s=0.02)), State.OK, "48 tokens at 48 moments"),
        (paced(*evenly(3, since_s=0.1, each_s=0.1)), State.OK, "in the last 200 ms of 300 ms"),
        (paced(*evenly(48, since_s=0.005, each_s=0.001)), State.OK, "48 moments"),
        (paced(*evenly(48, since_s=0.005, each_s=0)), State.WARN, "too quick to tell"),
        (paced(*evenly(48, since_s=0.35, each_s=0), away_s=0.3), State.WARN, "too quick to tell"),
        (paced(*evenly(48, since_s=1, each_s=0.001)), State.WARN, "too quick at the end"),
        (paced(*evenly(48, since_s=1, each_s=0)), State.FAIL, "proxy_buffering off"),
        (paced(*evenly(48, since_s=1, each_s=0.000_05)), State.FAIL, "X-Accel-Buffering: no"),
        (paced(0.1, 0.2, 0.3, *evenly(45, since_s=1, each_s=0.000_05)), State.FAIL, "90 % of them"),
        (paced(*[0.9] * 40, *[1.0] * 8), State.FAIL, "48 tokens at 2 moments"),
        (paced(*[0.3] * 12, *[0.6] * 12, *[0.9] * 12), State.WARN, "bursts"),
        (paced(0.5), State.WARN, "too few tokens"),
        (paced(0.1, 0.2, 0.3, 0.4, *[0.5] * 36), State.FAIL, "90 % of them in the last 0"),
        (paced(0.5, counted=48), State.FAIL, "1 token at 1 moment"),
        (paced(0.5, 0.5, 0.5, via="1.1 edge"), State.FAIL, "1.1 edge (via)"),
        (doctor.judge_streaming(streamed(0.1, **{"content-encoding": "gzip"}), WELL), State.FAIL, "gzip"),
        (doctor.judge_streaming(streamed(0.5), IN_BAND), State.FAIL, "error event: overloaded"),
        (doctor.judge_streaming(streamed(0.5), CUT), State.FAIL, "a run calls this an error"),
        (doctor.judge_streaming(streamed(0.5), MALFORMED), State.FAIL, "check the dialect"),
        (doctor.judge_streaming(streamed(0.5), WELL), State.FAIL, "no token"),
        (doctor.judge_streaming(streamed(0.5), Heard(finish_reason="length")), State.WARN, "unseen"),
        (
            doctor.judge_streaming(msgspec.structs.replace(streamed(0.5), left=True), WELL),
            State.FAIL,
            "no token within 500 ms",
        ),
        (doctor.judge_streaming(streamed(0.5, status=500), WELL), State.FAIL, "HTTP 500"),
        (doctor.judge_streaming(LATE, WELL), State.FAIL, "what buffers responses"),
        (doctor.judge_streaming(Fault("read error"), WELL), State.FAIL, "server's log"),
        (doctor.judge_clock(reply(date="Thu, 01 Jan 1970 00:16:40 GMT")), State.OK, "ahead"),
        (doctor.judge_clock(reply(date="Thu, 01 Jan 1970 00:17:40 GMT")), State.WARN, "60.4 s ahead"),
        (doctor.judge_clock(reply(date="Thu, 01 Jan 1970 00:16:40 -0000")), State.OK, "ahead"),
        (doctor.judge_clock(reply(date="Tue, 01 Jan 1980 00:00:00 GMT")), State.WARN, "3,652 days ahead"),
        (doctor.judge_clock(reply(date="yesterday")), State.WARN, "not a date"),
        (doctor.judge_clock(reply()), State.OK, "no date"),
        (doctor.judge_steps(Anchor(0, 0), Anchor(1_000_500, 1_000_000)), State.OK, "500 ns"),
        (doctor.judge_steps(Anchor(0, 0), Anchor(9_000_000, 1_000_000)), State.WARN, "NTP"),
        (doctor.judge_files((20_000, 20_000), 256), State.OK, "320 needed"),
        (doctor.judge_files((256, 4_096), 1_000), State.OK, "4,096 usable"),
        (doctor.judge_files((256, 512), 1_000), State.FAIL, "ulimit -n 1064"),
        (doctor.judge_files((-1, -1), 1_000), State.OK, "no limit"),
        (doctor.judge_cpus(2), State.OK, "2 cores"),
        (doctor.judge_cpus(1), State.WARN, "second core"),
    ],
    ids=lambda value: f"{value.name}: {value.measured}" if isinstance(value, Finding) else "",
)
def test_each_fact_has_its_judgement_and_each_fault_its_remedy(finding, state, says) -> None:
    assert finding.state is state
    assert says in f"{finding.measured} {finding.remedy}"
    assert bool(finding.remedy) == (state is not State.OK)


def test_every_check_has_its_line_in_order_and_skipped_ones_name_what_took_their_ground() -> None:
    found = [
        Finding("open files", State.FAIL, ""),
        Finding("name", State.OK, ""),
        Finding("http", State.FAIL, ""),
    ]
    lines = list(doctor.in_order(found, sealed=True))
    assert [each.name for each in lines] == list(doctor.CHECKS)
    assert {each.measured for each in lines if each.name in {"models", "clock"}} == {
        "not to be known without http"
    }
    assert "tls" not in {each.name for each in doctor.in_order(found, sealed=False)}


def test_a_key_that_the_server_shows_is_not_shown_by_us() -> None:
    shown = doctor.without_key(Finding("models", State.OK, f"1 listed: {KEY}", f"no {KEY}"), KEY)
    assert (shown.measured, shown.remedy) == ("1 listed: <hidden>", "no <hidden>")
    assert doctor.without_key(shown, "") == shown


def test_only_a_failed_check_makes_the_exit_code_1() -> None:
    findings = {state: Finding("x", state, "") for state in State}
    assert doctor.exit_code([findings[State.OK], findings[State.WARN]]) == 0
    assert doctor.exit_code([findings[State.OK], findings[State.FAIL]]) == 1


def test_p99_of_few_is_called_what_it_is() -> None:
    assert doctor.spread([0.001, 0.002]) == "P50 1.00 ms, P99 2.00 ms (the longest of 2)"
    assert doctor.spread([0.001] * 199 + [0.5]) == "P50 1.00 ms, P99 1.00 ms (n = 200)"


def test_the_scenarios_models_are_those_that_its_traffic_may_ask_for() -> None:
    traffic = (Traffic(kind="stream", model="own"), Traffic(kind="stream", model="never", weight=0))
    assert doctor.models(Scenario(traffic=traffic, models={"drawn": 1})) == ["own"]
    assert doctor.models(Scenario(traffic=(*traffic, Traffic(kind="batch")), models={"drawn": 1})) == [
        "drawn",
        "own",
    ]


@pytest.mark.parametrize("dialect", ["chat", "completions", "completions-lines"])
def test_trial_requests_are_small_and_in_the_scenarios_form(dialect: str) -> None:
    scenario = Scenario(dialect=dialect, traffic=(Traffic(kind="stream"),), duration_s=Seconds(1))
    whole, pieces = doctor.trials(scenario, "m")
    assert (whole.stream, pieces.stream, whole.model, pieces.dialect) == (False, True, "m", dialect)
    assert whole.max_tokens <= pieces.max_tokens <= 64
    assert len(doctor.DIALECTS[whole.dialect].encode(whole)) < 400


# -- servers that are ill on purpose ----------------------------------------------------------------------


def send(to: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    to.send_response(status)
    for name, value in headers.items():
        to.send_header(name.replace("_", "-"), value)
    to.send_header("content-length", str(len(body)))
    to.end_headers()
    to.wfile.write(body)


def whole_answer() -> bytes:
    message = {"role": "assistant", "content": "one"}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()


def event(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"delta": {"content": text}, "finish_reason": finish_reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


STREAM = [*[event("one ")] * 48, event("", "length"), b"data: [DONE]\n\n"]


def lump() -> bytes:
    return b"".join(STREAM)


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def begin_chunks(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.send_header("content-type", "text/event-stream")
    to.send_header("transfer-encoding", "chunked")
    to.end_headers()


def holding(held_s: float, *pieces: bytes) -> Callable[[BaseHTTPRequestHandler, bool], None]:
    """A server that sends a stream's HTTP chunks all at once, after a while."""

    def answer(to: BaseHTTPRequestHandler, streams: bool) -> None:
        if not streams:
            send(to, 200, whole_answer())
            return
        time.sleep(held_s)
        begin_chunks(to)
        to.wfile.write(b"".join(map(chunk, pieces)) + b"0\r\n\r\n")

    return answer


def pieces_of(size: int) -> list[bytes]:
    whole = lump()
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def models_listed(to: BaseHTTPRequestHandler) -> None:
    send(to, 200, LISTED)


@contextmanager
def serving(
    models: Callable[[BaseHTTPRequestHandler], None],
    completions: Callable[[BaseHTTPRequestHandler, bool], None],
    context: ssl.SSLContext | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """A little server of its own; gives its URL and the list of what was asked."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            models(self)

        def do_POST(self) -> None:
            asked.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            completions(self, body["stream"])

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # ten connections at once; a full queue costs the next one a second

        def handle_error(self, *_: object) -> None:
            """Probes hang up in mid-handshake, on purpose."""

    with Server(("127.0.0.1", 0), Answers) as server:
        if context is not None:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        scheme = "http" if context is None else "https"
        try:
            yield f"{scheme}://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def examined(
    url: str,
    *,
    scenario: Scenario = PLAIN,
    given: bool = False,
    trusted: trustme.CA | None = None,
    key: str = "",
    budget_s: float = doctor.BUDGET_S,
):
    def context() -> ssl.SSLContext:
        made = ssl.create_default_context()
        if trusted is not None:
            trusted.configure_trust(made)
        return made

    environ = {"HARNESS_API_KEY": key} if key else {}
    target = parse(url, key=key)
    found = list(doctor.examine(target, scenario, environ, given=given, context=context, budget_s=budget_s))
    return {finding.name: finding for finding in found}


def buffering(to: BaseHTTPRequestHandler, streams: bool) -> None:
    if streams:
        time.sleep(0.15)  # what a proxy does that waits for all of the answer
        send(to, 200, lump(), content_type="text/event-stream", via="1.1 hoarder")
    else:
        send(to, 200, whole_answer())


def zipping(to: BaseHTTPRequestHandler, streams: bool) -> None:
    if streams:
        send(to, 200, gzip.compress(lump()), content_encoding="gzip", x_cache="miss")
    else:
        send(to, 200, whole_answer())


def refusing(status: int) -> Callable[[BaseHTTPRequestHandler, bool], None]:
    return lambda to, _: send(to, status, f'{{"error": "{KEY}"}}'.encode())


def test_a_healthy_server_has_no_failed_check_for_at_most_20_requests() -> None:
    with mock_server("demo") as mock:
        found = examined(mock.url)
        answers = len(mock.truth())
    assert [name for name, each in found.items() if each.state is State.FAIL] == []
    assert found["streaming"].state is State.OK
    assert found["http/2"].measured == "offered"
    assert found["models"].measured.startswith("2 listed")
    assert answers == 2


def test_a_proxy_that_buffers_is_found_and_named() -> None:
    with serving(models_listed, buffering) as (url, asked):
        found = examined(url)
    assert found["streaming"].state is State.FAIL
    assert "1.1 hoarder (via)" in found["streaming"].remedy
    assert found["completion"].state is State.OK
    models = ["/v1/models"] * (1 + doctor.ROUND_TRIPS)
    assert asked == [*models, "/v1/chat/completions", "/v1/chat/completions"]
    assert "the longest of 3" in found["round trip"].measured
    assert probe.CONNECT_TIMEOUT_S < probe.TIMEOUT_S
    assert len(asked) + doctor.CONNECTS + 2 <= 20


def test_a_proxy_that_compresses_unasked_is_found_and_named() -> None:
    with serving(models_listed, zipping) as (url, _):
        found = examined(url)
    assert found["streaming"].state is State.FAIL
    assert "gzip" in found["streaming"].measured
    assert "x-cache" in found["streaming"].remedy


@pytest.mark.parametrize(
    "pieces",
    [STREAM, pieces_of(1_024), pieces_of(4_096), [lump()]],
    ids=["a chunk an event", "1 KB", "4 KB", "one chunk"],
)
def test_a_stream_that_is_held_back_is_found_however_its_chunks_were_cut(pieces: list[bytes]) -> None:
    with serving(models_listed, holding(0.4, *pieces)) as (url, _):
        # Pieces that the machine delays on their way no longer come in one lump.
        tries = (examined(url)["streaming"] for _ in range(3))
        found = next(found for found in tries if found.state is State.FAIL)
    assert found.remedy.startswith("it comes in one lump: switch response buffering off")


def test_a_server_that_is_done_at_once_is_not_called_ill() -> None:
    with serving(models_listed, holding(0, *STREAM)) as (url, _):
        found = examined(url)["streaming"]
    assert found.state in {State.OK, State.WARN}
    assert found.state is State.OK or "too quick to tell" in found.remedy


@pytest.mark.parametrize(
    ("pieces", "measured"),
    [
        ([b'data: {"error": {"code": "overloaded"}}\n\n'] * 5, "error event: overloaded"),
        ([b"data: hello\n\n"] * 5, "event is not the dialect's JSON"),
        ([b"data: {}\n\n"] * 5, "stream ended without [DONE]"),
        ([b"data: {}\n\n"] * 5 + [b"data: [DONE]\n\n"], "no choices"),
        (STREAM[:10], "stream ended without [DONE]"),
        ([*STREAM[:10], STREAM[-1]], "stream ended without a finish reason"),
        ([event("one", "aborted"), STREAM[-1]], "finish reason aborted"),
        ([event("", "stop"), STREAM[-1]], "a whole stream, but no token in it"),
        ([lump().replace(b"one", b"caf\xe9")], "event is not the dialect's JSON"),
        ([b'data: {"error": {"message": "caf\xe9"}}\n\n'], "event is not the dialect's JSON"),
        ([], "no stream but text/event-stream"),
    ],
)
def test_a_stream_that_a_run_would_call_an_error_is_called_the_same(
    pieces: list[bytes], measured: str
) -> None:
    with serving(models_listed, holding(0, *pieces)) as (url, _):
        found = examined(url)["streaming"]
    assert (found.state, found.measured) == (State.FAIL, measured)


def test_a_stream_that_is_cut_is_a_failure_and_an_error_before_that_says_more() -> None:
    said = [event("one")]

    def cutting(to: BaseHTTPRequestHandler, streams: bool) -> None:
        if not streams:
            send(to, 200, whole_answer())
            return
        begin_chunks(to)
        to.wfile.write(b"".join(map(chunk, said)))
        to.close_connection = True

    with serving(models_listed, cutting) as (url, _):
        assert examined(url)["streaming"].measured == "the answer broke off"
        said.append(b'data: {"error": {"code": "overloaded"}}\n\n')
        assert examined(url)["streaming"].measured == "error event: overloaded"


NO_UTF8 = b'{"error": {"message": "caf\xe9"}, "data": [{"id": "caf\xe9"}]}'


def test_bytes_that_are_no_text_are_an_answer_of_another_dialect() -> None:
    with serving(lambda to: send(to, 200, NO_UTF8), lambda to, _: send(to, 200, NO_UTF8)) as (url, _):
        found = examined(url)
    assert found["models"].measured == "no model list: HTTP 200"
    assert found["completion"].state is State.FAIL
    assert "not the dialect's JSON" in found["completion"].measured
    assert found["streaming"].state is State.SKIPPED


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_is_one_finding_and_is_never_shown(status: int) -> None:
    with serving(lambda to: send(to, 200, LISTED), refusing(status)) as (url, _):
        found = examined(url, key=KEY)
    assert found["key"].state is State.FAIL
    assert f"HTTP {status}" in found["key"].measured
    for name in ("models", "completion", "streaming"):
        assert (found[name].state, found[name].measured) == (State.SKIPPED, "not to be known without key")
    shown = (
        tables([doctor.sheet(url, list(found.values()))]) + msgspec.json.encode(list(found.values())).decode()
    )
    assert KEY not in shown
    assert "HARNESS_API_KEY" in shown


def test_a_key_that_may_complete_but_not_list_models_is_good() -> None:
    with serving(lambda to: send(to, 403, b"{}"), holding(0, *STREAM)) as (url, _):
        found = examined(url, key=KEY)
    assert found["key"].state is State.OK
    assert (found["models"].state, found["models"].measured) == (State.WARN, "no model list: HTTP 403")


def failed(found: dict[str, Finding]) -> list[str]:
    return [name for name, each in found.items() if each.state is State.FAIL]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("location", ["https://elsewhere.example/v1", "http://xn--/", "caf\xe9"])
def test_a_redirect_is_named_once_and_its_location_never_shown(status: int, location: str) -> None:
    def away(to: BaseHTTPRequestHandler, _: bool = False) -> None:
        send(to, status, b"", location=location)

    with serving(away, away) as (url, asked):
        found = examined(url)
    assert failed(found) == ["http"]
    assert f"HTTP {status}" in found["http"].measured
    assert "give the final address" in found["http"].remedy
    assert found["models"].measured == found["clock"].measured == "not to be known without http"
    assert "elsewhere" not in msgspec.json.encode(list(found.values())).decode()
    assert asked.count("/v1/chat/completions") == 1


def test_a_cookie_that_is_no_text_is_neither_kept_nor_fallen_over() -> None:
    def baking(to: BaseHTTPRequestHandler) -> None:
        send(to, 200, LISTED, set_cookie="caf\xe9=1")

    with serving(baking, holding(0, *STREAM)) as (url, _):
        assert failed(examined(url)) == []


@contextmanager
def speaking(banner: bytes, *, holds: bool = False) -> Iterator[str]:
    """A server that says the same to anybody, and either hangs up or waits."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    held.append(connection)
                    connection.recv(65_536)
                    connection.sendall(banner)
                    if not holds:
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    ("banner", "holds"),
    [(b"SSH-2.0-OpenSSH_9.6\r\n", False), (b"-ERR unknown command\r\n" * 3, True), (b"", False)],
)
def test_a_server_that_speaks_no_http_is_named_once(banner: bytes, holds: bool) -> None:
    with speaking(banner, holds=holds) as url:
        found = examined(url, budget_s=3)
    assert failed(found) == ["http"]
    assert "is it an https:// address" in found["http"].remedy
    assert {each.state for name, each in found.items() if name in doctor.CHECKS[6:]} == {State.SKIPPED}


def test_http_spoken_to_a_port_with_tls_is_named_once() -> None:
    with mock_process("--certificate", "self-signed") as mock:
        found = examined(mock.url.replace("https:", "http:"))
    assert failed(found) == ["http"]
    assert found["http"].measured == "TLS is spoken there, not plain HTTP"
    assert found["http"].remedy == "write https:// for http://"


def test_an_http_400_of_a_port_with_tls_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing_plain_text(to: BaseHTTPRequestHandler, _: bool = False) -> None:
        send(to, 400, b"The plain HTTP request was sent to HTTPS port")

    with serving(refusing_plain_text, refusing_plain_text) as (url, asked):
        assert failed(examined(url)) == ["completion"]
        asked.clear()
        monkeypatch.setattr(probe, "speaks_tls", lambda *_: True)
        found = examined(url)
    assert failed(found) == ["http"]
    assert asked == ["/v1/models"]


def test_a_port_with_tls_is_known_whatever_its_certificate() -> None:
    context = tls_context(trustme.CA(), "other.example")
    with serving(models_listed, buffering, context) as (url, _):
        assert probe.speaks_tls("127.0.0.1", parse(url).port)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AES128-SHA256")  # none that we offer
        assert probe.speaks_tls("127.0.0.1", parse(url).port)
    with serving(models_listed, buffering) as (url, _):
        assert not probe.speaks_tls("127.0.0.1", parse(url).port)


def test_a_model_that_the_scenario_wants_and_the_server_lacks_is_a_failure() -> None:
    with serving(models_listed, buffering) as (url, _):
        found = examined(url, given=True)
    assert found["models"].state is State.FAIL
    assert "deepseek-flash" in found["models"].remedy


def test_a_model_list_below_another_path_is_found() -> None:
    def elsewhere(to: BaseHTTPRequestHandler) -> None:
        send(to, 200 if to.path == "/models" else 404, LISTED)

    with serving(elsewhere, buffering) as (url, asked):
        found = examined(url)
    assert found["models"].state is State.OK
    assert asked[:2] == ["/v1/models", "/models"]


def tls_context(authority: trustme.CA, name: str, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    context.set_alpn_protocols(protocols)
    return context


def test_a_trusted_certificate_is_measured() -> None:
    authority = trustme.CA()
    with serving(models_listed, buffering, tls_context(authority, "127.0.0.1", "http/1.1")) as (url, _):
        found = examined(url, trusted=authority)
    assert found["tls"].state is State.OK
    assert found["tls"].measured.startswith("TLSv1.3, certificate valid for")
    assert found["http/2"].measured == "not offered; only batches need it"
    assert found["completion"].state is State.OK


@pytest.mark.parametrize(("name", "trusts"), [("other.example", True), ("127.0.0.1", False)])
def test_a_wrong_certificate_ends_the_examination_with_its_reason(name: str, trusts: bool) -> None:
    authority = trustme.CA()
    with serving(models_listed, buffering, tls_context(authority, name)) as (url, asked):
        found = examined(url, trusted=authority if trusts else None)
    assert found["tls"].state is State.FAIL
    assert found["tls"].measured.startswith("certificate not trusted")
    assert found["completion"].measured == "not to be known without tls"
    assert asked == []


def test_a_server_that_offers_h2_is_asked_in_the_http_that_was_agreed_on() -> None:
    """The handshake offers h2. Today httpx sets its own ALPN before it connects: one context would do."""

    def unless_h2(answer: Callable[..., None]) -> Callable[..., None]:
        def either(to: BaseHTTPRequestHandler, *streams: bool) -> None:
            if to.connection.selected_alpn_protocol() == "h2":
                to.close_connection = True
            else:
                answer(to, *streams)

        return either

    authority = trustme.CA()
    context = tls_context(authority, "127.0.0.1", "h2", "http/1.1")
    with serving(unless_h2(models_listed), unless_h2(holding(0, *STREAM)), context) as (url, _):
        found = examined(url, trusted=authority)
    assert found["http/2"].measured == "offered"
    assert failed(found) == []


def test_h2_is_seen_in_alpn() -> None:
    authority = trustme.CA()
    with serving(models_listed, buffering, tls_context(authority, "127.0.0.1", "h2", "http/1.1")) as (url, _):
        context = ssl.create_default_context()
        authority.configure_trust(context)
        found = probe.handshake("127.0.0.1", parse(url).port, context)
    assert isinstance(found, Tls)
    assert found.protocol == "h2"


# -- the mock, ill on purpose ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "check", "measured", "remedy"),
    [
        ("status;code=401", "key", "HTTP 401", "is not accepted"),
        ("status;code=402", "key", "HTTP 402", "top it up"),
        ("status;code=403", "key", "HTTP 403", "ask for access"),
        ("status;code=404", "completion", "HTTP 404", "base URL"),
        ("status;code=422", "completion", "HTTP 422", "check model, dialect and parameters"),
        ("status;code=429", "completion", "HTTP 429", "wait, or ask for a higher one"),
        ("status;code=503", "completion", "HTTP 503", "see the server's log"),
        ("html", "completion", "but not the dialect's JSON", "check the scenario's dialect"),
        ("malformed;after=0", "completion", "but not the dialect's JSON", "check the scenario's dialect"),
        ("reset", "completion", "read error", "see the server's log"),
        ("cut;how=close", "completion", "the answer broke off", "see the server's log"),
        ("gzip", "streaming", "compressed (gzip)", "switch compression of streams off"),
        ("merge;events=1000", "streaming", "48 tokens at 1 moment", "proxy_buffering off"),
    ],
)
def test_each_failure_that_the_mock_can_have_is_found_with_its_remedy(
    fault: str, check: str, measured: str, remedy: str
) -> None:
    with mock_server("demo", faults=[{"fault": fault, "probability": 1}]) as mock:
        found = examined(mock.url, key=KEY)
    assert failed(found) == [check]
    assert measured in found[check].measured
    assert remedy in found[check].remedy
    assert all(each.remedy for each in found.values() if each.state in {State.FAIL, State.WARN})


def test_a_server_that_wants_another_key_says_so() -> None:
    with mock_server("demo", api_key="sk-right") as mock:
        wrong, none = examined(mock.url, key=KEY)["key"], examined(mock.url)["key"]
    assert (wrong.measured, none.measured) == ("key from HARNESS_API_KEY, HTTP 401", "no key sent, HTTP 401")
    assert "not accepted" in wrong.remedy
    assert "HARNESS_API_KEY" in none.remedy


@pytest.mark.parametrize(
    ("certificate", "trusts", "reason"),
    [("expired", True, "certificate has expired"), ("self-signed", False, "self")],
)
def test_a_certificate_that_has_expired_or_is_nobody_s_is_named(
    certificate: str, trusts: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mock_process("--certificate", certificate) as mock:
        if trusts:
            monkeypatch.setenv("SSL_CERT_FILE", str(mock.certificate))
        found = examined(mock.url)
    assert found["tls"].state is State.FAIL
    assert f"{probe.NOT_TRUSTED}: {reason}" in found["tls"].measured
    assert "SSL_CERT_FILE" in found["tls"].remedy
    assert found["completion"].measured == "not to be known without tls"


def test_ssl_cert_file_makes_a_self_signed_certificate_a_trusted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock_process("--certificate", "self-signed", "--profile", "demo") as mock:
        monkeypatch.setenv("SSL_CERT_FILE", str(mock.certificate))
        found = examined(mock.url)
    assert [name for name, each in found.items() if each.state is State.FAIL] == []
    assert found["http/2"].measured == "offered"


def test_tls_spoken_to_a_server_without_it_is_called_that(mock_url: str) -> None:
    found = examined(mock_url.replace("http:", "https:"))
    assert found["tls"].state is State.FAIL
    assert "is TLS spoken on that port?" in found["tls"].remedy


def test_batches_without_http2_are_a_failure() -> None:
    batches = Scenario(traffic=(Traffic(kind="batch"),), duration_s=Seconds(1))
    with serving(models_listed, buffering) as (url, _):
        found = examined(url, scenario=batches, given=True)
    assert found["http/2"].state is State.FAIL
    assert "take the batches out" in found["http/2"].remedy


def test_a_server_whose_clock_is_off_is_a_warning() -> None:
    def late(to: BaseHTTPRequestHandler, _: bool) -> None:
        to.date_time_string = lambda *_: "Thu, 01 Jan 1970 00:00:00 GMT"
        send(to, 200, whole_answer())

    with serving(models_listed, late) as (url, _):
        found = examined(url)
    assert found["clock"].state is State.WARN
    assert "NTP" in found["clock"].remedy


def test_more_users_than_files_is_a_failure() -> None:
    many = Scenario(duration_s=Seconds(1), max_in_flight=1_000_000_000)
    found = examined(f"http://127.0.0.1:{dead_port()}", scenario=many)
    assert found["open files"].state is State.FAIL
    assert "ulimit -n 1000000064" in found["open files"].remedy


def test_a_name_that_does_not_resolve_ends_the_examination() -> None:
    found = examined("http://nowhere.invalid", budget_s=2)
    assert [name for name, each in found.items() if each.state is State.FAIL] == ["name"]
    assert "check the spelling of nowhere.invalid" in found["name"].remedy


# -- ten seconds -------------------------------------------------------------------------------------------


def trickling(to: BaseHTTPRequestHandler, _: bool) -> None:
    """A body that never ends, and is never silent for long."""
    to.send_response(200)
    to.end_headers()
    with contextlib.suppress(OSError):
        while True:
            to.wfile.write(b"data: {}\n\n")
            time.sleep(0.02)


def test_a_server_that_never_answers_is_given_up_within_the_budget() -> None:
    with mock_server("demo", faults=[{"fault": "hang", "probability": 1}], drain_s=0) as mock:
        started_s = time.perf_counter()
        found = examined(mock.url, budget_s=2)
        took_s = time.perf_counter() - started_s
    assert found["completion"].measured == "no answer in time"
    assert found["streaming"].measured == "not to be known without completion"
    assert {*found} == {*doctor.CHECKS, "clock steps"} - {"tls"}
    assert found["key"].state is State.OK  # the model list was answered
    assert took_s < 5 < 2 * probe.TIMEOUT_S
    assert doctor.BUDGET_S < 10


def test_each_check_has_its_line_where_a_server_accepts_and_never_speaks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = examined(f"http://127.0.0.1:{silent.getsockname()[1]}", budget_s=1)
    assert {*found} == {*doctor.CHECKS, "clock steps"} - {"tls"}
    assert failed(found) == ["http"]
    assert found["http"].measured == "no answer in time"
    assert found["key"].measured == "not to be known without http"


def test_an_answer_that_never_ends_is_read_no_longer_than_the_budget() -> None:
    with serving(models_listed, trickling) as (url, _):
        started_s = time.perf_counter()
        found = examined(url, budget_s=2)
        took_s = time.perf_counter() - started_s
    assert found["completion"].measured == "no answer in time"
    assert found["streaming"].measured.startswith("no token within")
    assert took_s < 5


def test_connections_are_counted_no_longer_than_there_is_time(mock_url: str) -> None:
    target = parse(mock_url)
    found = probe.connect_times(target.host, target.port, 10, until_s=0.0)
    assert isinstance(found, list)
    assert len(found) == 1


def test_a_bug_of_ours_is_not_taken_for_a_silent_server() -> None:
    with pytest.raises(ZeroDivisionError):
        probe.within(time.perf_counter() + 5, lambda: 1 / 0)


def dead_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_address[1]


def test_a_dead_port_is_named_once() -> None:
    found = examined(f"http://127.0.0.1:{dead_port()}")
    assert [name for name, each in found.items() if each.state is State.FAIL] == ["connect"]
    assert "refused" in found["connect"].measured


def test_the_command_prints_findings_and_exits_1_where_one_failed() -> None:
    answer = CliRunner().invoke(main, ["doctor", "--target", f"http://127.0.0.1:{dead_port()}", "--json"])
    assert answer.exit_code == 1
    findings = json.loads(answer.stdout)
    assert {"name", "state", "measured", "remedy"} == set(findings[0])
    states = {each["name"]: each["state"] for each in findings}
    assert (states["connect"], states["key"]) == ("fail", "skipped")


def test_what_is_asked_for_is_told_before_each_question(mock_url: str) -> None:
    asked: list[str] = []
    findings = doctor.examine(parse(mock_url), PLAIN, {}, given=False, on_ask=asked.append)
    for finding in findings:
        if finding.name == "name":
            assert asked == ["name"]
    assert asked[-2:] == ["a completion", "a stream"]


def test_on_a_terminal_stderr_shows_what_is_asked_for_and_elsewhere_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paper = io.StringIO()
    monkeypatch.setattr(sys, "stderr", paper)
    monkeypatch.setenv("TERM", "xterm")
    with cli._shown_question() as show:
        show("a stream")
    assert paper.getvalue() == ""
    monkeypatch.setattr(paper, "isatty", lambda: True)
    with cli._shown_question() as show:
        show("a stream")
    assert "asking for a stream" in paper.getvalue()


def test_the_command_starts_a_mock_if_asked_to() -> None:
    answer = CliRunner().invoke(main, ["doctor", "--target", "mock"])
    assert answer.exit_code == 0, answer.output
    assert "streaming" in answer.stdout


def test_a_target_that_is_none_is_bad_usage() -> None:
    assert CliRunner().invoke(main, ["doctor", "--target", "ftp://x"]).exit_code == 2


def test_the_shipped_default_can_lend_its_form() -> None:
    whole, pieces = doctor.trials(scenarios.load())
    assert whole.id != pieces.id
