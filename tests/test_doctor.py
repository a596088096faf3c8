"""Claims about the doctor: each judgement, and what it finds at servers that are ill on purpose."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
import trustme
from click.testing import CliRunner

from harness import doctor, probe
from harness.cli import main
from harness.client.target import parse
from harness.clock import Anchor
from harness.doctor import Finding, State
from harness.mock.process import mock_process
from harness.probe import Fault, Names, Reply, Streamed, Tls
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


EVENTS = [b"{}"] * 10
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
        (doctor.judge_completion(reply(), True), State.OK, "200 ms"),
        (doctor.judge_completion(reply(), False), State.FAIL, "no completion"),
        (doctor.judge_completion(reply(429), False), State.FAIL, "rate limit"),
        (doctor.judge_completion(reply(404), False), State.FAIL, "base URL"),
        (doctor.judge_completion(reply(422), False), State.FAIL, "parameters"),
        (doctor.judge_completion(reply(503), False), State.FAIL, "server's log"),
        (doctor.judge_completion(Fault("no answer in time"), False), State.FAIL, "no answer in time"),
        (doctor.judge_streaming(streamed(0.1, 0.2, 0.3), EVENTS), State.OK, "3 reads"),
        (doctor.judge_streaming(streamed(0.01), EVENTS), State.WARN, "too fast"),
        (doctor.judge_streaming(streamed(0.5), EVENTS), State.FAIL, "proxy_buffering off"),
        (doctor.judge_streaming(streamed(0.5, via="1.1 edge"), EVENTS), State.FAIL, "1.1 edge (via)"),
        (
            doctor.judge_streaming(Streamed(200, {"content-encoding": "gzip"}, [(0.1, b"x")]), EVENTS),
            State.FAIL,
            "gzip",
        ),
        (doctor.judge_streaming(streamed(0.5), []), State.FAIL, "0 events"),
        (doctor.judge_streaming(streamed(0.5, status=500), []), State.FAIL, "HTTP 500"),
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


def lump() -> bytes:
    piece = json.dumps({"choices": [{"delta": {"content": "one"}}]})
    return (f"data: {piece}\n\n" * 12 + "data: [DONE]\n\n").encode()


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
        ("status;code=503", "streaming", "HTTP 503", "does the server stream at all"),
        ("html", "completion", "but no completion", "check the scenario's dialect"),
        ("html", "streaming", "0 events", "check the dialect"),
        ("malformed;after=0", "completion", "but no completion", "check the scenario's dialect"),
        ("reset", "completion", "read error", "see the server's log"),
        ("cut;how=close", "streaming", "remote protocol error", "see the server's log"),
        ("gzip", "streaming", "compressed (gzip)", "switch compression of streams off"),
        ("merge;events=1000", "streaming", "in 1 reads", "proxy_buffering off"),
    ],
)
def test_each_failure_that_the_mock_can_have_is_found_with_its_remedy(
    fault: str, check: str, measured: str, remedy: str
) -> None:
    with mock_server("demo", faults=[{"fault": fault, "probability": 1}]) as mock:
        found = examined(mock.url, key=KEY)
    assert found[check].state is State.FAIL
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
    assert found["completion"].measured == found["streaming"].measured == "no answer in time"
    assert {*found} == {*doctor.CHECKS, "clock steps"} - {"tls"}
    assert found["key"].state is State.OK  # the model list was answered
    assert took_s < 5 < 2 * probe.TIMEOUT_S
    assert doctor.BUDGET_S < 10


def test_each_check_has_its_line_where_a_server_accepts_and_never_speaks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = examined(f"http://127.0.0.1:{silent.getsockname()[1]}", budget_s=1)
    assert {*found} == {*doctor.CHECKS, "clock steps"} - {"tls"}
    assert {name for name, each in found.items() if each.state is State.SKIPPED} == {
        "round trip",
        "key",
        "clock",
    }
    assert found["key"].measured == "not to be known without completion"


def test_an_answer_that_never_ends_is_read_no_longer_than_the_budget() -> None:
    with serving(models_listed, trickling) as (url, _):
        started_s = time.perf_counter()
        found = examined(url, budget_s=2)
        took_s = time.perf_counter() - started_s
    assert found["completion"].measured == "no answer in time"
    assert found["streaming"].state is State.OK
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


def test_the_command_starts_a_mock_if_asked_to() -> None:
    answer = CliRunner().invoke(main, ["doctor", "--target", "mock"])
    assert answer.exit_code == 0, answer.output
    assert "streaming" in answer.stdout


def test_a_target_that_is_none_is_bad_usage() -> None:
    assert CliRunner().invoke(main, ["doctor", "--target", "ftp://x"]).exit_code == 2


def test_the_shipped_default_can_lend_its_form() -> None:
    whole, pieces = doctor.trials(scenarios.load())
    assert whole.id != pieces.id
