"""Claims about faults as changes to a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.mock import api, faults, questions, script
from harness.mock.plan import END_MARKER, Ending, Framing, Kind, Plan
from harness.mock.questions import Endpoint

TOKENS = 5
MS = 1_000_000


def plan(endpoint: Endpoint = Endpoint.CHAT, *, stream: bool = True) -> Plan:
    field = '"messages":[{"role":"user","content":"hi"}]' if endpoint is Endpoint.CHAT else '"prompt":"hi"'
    body = f'{{"model":"m","max_tokens":{TOKENS},"stream":{str(stream).lower()},{field}}}'
    question = questions.read(endpoint, body.encode())
    assert isinstance(question, questions.Question)
    return api.answer(
        question,
        api.compose(question, request_id="r", default_tokens=TOKENS),
        request_id="r",
        created=0,
        cached_tokens=0,
        token_offsets_ns=[i * 10 * MS for i in range(TOKENS)],
        fingerprint="f",
    )


def faulty(spelling: str, base: Plan) -> Plan:
    changed = faults.apply(faults.parse(spelling, "test"), base)
    assert changed is not None
    return changed


def tokens_of(steps: list) -> int:
    return sum(step.kind is Kind.TOKEN for step in steps)


@pytest.mark.parametrize("code", sorted(api.ERRORS))
def test_a_status_replaces_the_answer(code: int):
    changed = faulty(f"status;code={code}", plan())
    assert changed.status == code
    error = json.loads(changed.steps[0].payload)["error"]
    assert error["message"]
    assert error["type"]


def test_429_says_when_to_come_back_and_others_only_if_told():
    assert ("retry-after", "1") in faulty("status;code=429", plan()).headers
    assert ("retry-after", "2.5") in faulty("status;code=429;retry_after=2.5", plan()).headers
    assert ("retry-after", "7") in faulty("status;code=503;retry_after=7", plan()).headers
    assert "retry-after" not in dict(faulty("status;code=503", plan()).headers)


def test_a_late_status_is_due_after_its_delay():
    assert faulty("status;code=504;delay=2", plan()).steps[0].at_ns == 2000 * MS


@pytest.mark.parametrize("after", [0, 1, 3, TOKENS])
@pytest.mark.parametrize(("how", "ending"), [("reset", Ending.RESET), ("close", Ending.CLOSE)])
def test_a_cut_stream_has_so_many_tokens_and_no_end(after: int, how: str, ending: Ending):
    changed = faulty(f"cut;after={after};how={how}", plan())
    assert tokens_of(changed.steps) == changed.completion_tokens == after
    assert changed.ending is ending
    assert changed.finish_reason is None
    assert END_MARKER not in [step.payload for step in changed.steps]


def test_a_cut_whole_answer_announces_more_than_it_sends():
    whole = plan(stream=False)
    changed = faulty("cut", whole)
    announced = int(dict(changed.headers)["content-length"])
    assert announced == len(whole.steps[0].payload)
    assert 0 < len(changed.steps[0].payload) < announced
    assert len(changed.steps) == 1


def test_a_stall_shifts_all_that_comes_after_it():
    before, changed = plan(), faulty("stall;after=2;seconds=5", plan())
    shifts = [new.at_ns - old.at_ns for old, new in zip(before.steps, changed.steps, strict=True)]
    assert shifts[:3] == [0, 0, 0]  # The role and two tokens.
    assert set(shifts[3:]) == {5000 * MS}


def test_a_stalled_whole_answer_pauses_in_its_middle():
    whole = plan(stream=False)
    changed = faulty("stall;seconds=5", whole)
    assert b"".join(step.payload for step in changed.steps) == whole.steps[0].payload
    assert changed.steps[1].at_ns - changed.steps[0].at_ns == 5000 * MS


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.LINES])
def test_no_done_leaves_out_the_last_event_only(endpoint: Endpoint):
    assert faulty("no_done", plan(endpoint)).steps == plan(endpoint).steps[:-1]


def test_no_done_is_nothing_to_an_answer_without_stream():
    assert faults.apply(faults.NoDone(), plan(stream=False)) is None


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.LINES])
def test_an_error_event_ends_the_stream(endpoint: Endpoint):
    changed = faulty("error_event;after=2", plan(endpoint))
    assert tokens_of(changed.steps) == changed.completion_tokens == 2
    last = changed.steps[-1].payload.removeprefix(b"data: ")
    assert json.loads(last)["error"]["message"]
    assert changed.ending is Ending.COMPLETE


def test_an_error_in_a_whole_answer_comes_with_status_200():
    changed = faulty("error_event", plan(stream=False))
    assert changed.status == 200
    assert "error" in json.loads(changed.steps[0].payload)


def test_a_malformed_event_takes_the_place_of_one_token():
    changed = faulty("malformed;after=2", plan())
    assert len(changed.steps) == len(plan().steps)
    assert changed.completion_tokens == TOKENS - 1
    broken = changed.steps[3].payload
    assert broken.startswith(b"data: {")
    assert broken.endswith(b"\n\n")
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken.removeprefix(b"data: "))


def test_a_malformed_whole_answer_is_no_json():
    with pytest.raises(json.JSONDecodeError):
        json.loads(faulty("malformed", plan(stream=False)).steps[0].payload)


@pytest.mark.parametrize(("stream", "sign"), [(True, b": keep-alive\n\n"), (False, b"\n")])
def test_keepalives_come_before_the_answer_and_delay_it(stream: bool, sign: bytes):
    base = plan(stream=stream)
    changed = faulty("keepalive;seconds=0.3;every=0.1", base)
    assert [(step.at_ns, step.payload) for step in changed.steps[:3]] == [
        (0, sign),
        (100 * MS, sign),
        (200 * MS, sign),
    ]
    assert changed.steps[3].at_ns == base.steps[0].at_ns + 300 * MS
    assert len(changed.steps) == 3 + len(base.steps)


@pytest.mark.parametrize("stream", [True, False])
def test_another_finish_reason_stands_once_in_the_answer(stream: bool):
    changed = faulty("finish;reason=aborted", plan(stream=stream))
    body = b"".join(step.payload for step in changed.steps)
    assert body.count(b'"finish_reason":"aborted"') == 1
    assert b'"finish_reason":"length"' not in body


@pytest.mark.parametrize("stream", [True, False])
def test_no_finish_reason_is_given_and_all_else_is(stream: bool):
    changed = faulty("no_finish", plan(stream=stream))
    body = b"".join(step.payload for step in changed.steps)
    assert b'"finish_reason":"' not in body
    assert b'"finish_reason":null' in body
    assert changed.finish_reason is None
    assert changed.completion_tokens == TOKENS


def test_signs_of_life_in_a_stream_may_be_blank_lines():
    changed = faulty("keepalive;seconds=0.2;every=0.1;sign=blank", plan())
    assert [step.payload for step in changed.steps[:2]] == [b"\n", b"\n"]


@pytest.mark.parametrize("spelling", ["refuse", "wait"])
def test_what_needs_a_time_is_not_for_one_request(spelling: str):
    assert faults.apply(faults.parse(spelling, "test"), plan()) is None


@pytest.mark.parametrize("spelling", ["split", "merge", "gzip", "slow"])
def test_what_only_changes_the_writes_keeps_the_tokens(spelling: str):
    assert tokens_of_steps(faulty(spelling, plan()).steps) == TOKENS


def tokens_of_steps(steps: list) -> int:
    return sum(step.tokens for step in steps if step.kind is Kind.TOKEN)


@pytest.mark.parametrize("spelling", ["reset", "hang", "hang;seconds=2"])
def test_reset_and_hang_send_not_even_a_head(spelling: str):
    changed = faulty(spelling, plan())
    assert changed.status is None
    assert changed.steps == []


@pytest.mark.parametrize(
    ("spelling", "hint"),
    [
        ("explode", "explode"),
        ("cut;after", "name=value"),
        ("cut;after=-1", ">= 0"),
        ("cut;how=gently", "gently"),
        ("cut;before=1", "before"),
        ("status;code=418", "400, 401"),
        ("stall;seconds=soon", "a number"),
    ],
)
def test_a_fault_that_is_misspelled_is_blamed_on_its_source(spelling: str, hint: str):
    with pytest.raises(ConfigError, match=hint) as caught:
        faults.parse(spelling, "here")
    assert caught.value.source == "here"


def rules(tmp_path: Path, text: str) -> tuple[script.Rule, ...]:
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    return script.load_rules(path)


def test_scripted_faults_meet_the_requests_named(tmp_path: Path):
    loaded = rules(tmp_path, "faults:\n- {fault: reset, requests: [2, 4]}\n")
    met = [script.choose(loaded, seed=0, request_id=str(n), number=n) is not None for n in range(1, 6)]
    assert met == [False, True, False, True, False]


def test_chance_faults_have_their_probability_and_repeat_in_any_order(tmp_path: Path):
    loaded = rules(
        tmp_path,
        "faults:\n- {fault: status;code=503, probability: 0.1}\n- {fault: cut, probability: 0.2}\n",
    )

    def chosen(request_id: int, seed: int = 3) -> str | None:
        rule = script.choose(loaded, seed=seed, request_id=str(request_id), number=request_id)
        return rule.spelling if rule else None

    forth = [chosen(i) for i in range(10_000)]
    back = [chosen(i) for i in reversed(range(10_000))]
    assert forth == back[::-1]
    assert forth != [chosen(i, seed=4) for i in range(10_000)]
    assert forth.count("status;code=503") == pytest.approx(1000, abs=120)
    assert forth.count("cut") == pytest.approx(1800, abs=160)  # 0.2 of those that the first one left.


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("faults:\n- {fault: reset}\n", "probability"),
        ("faults:\n- {fault: reset, probability: 2}\n", "probability"),
        ("faults:\n- {fault: reset, requests: [0]}\n", "requests"),
        ("faults:\n- {fault: boom, probability: 1}\n", r"faults\[0\]\.fault"),
        ("errors: []\n", "errors"),
    ],
)
def test_mistakes_in_a_faults_file_are_named(tmp_path: Path, text: str, hint: str):
    with pytest.raises(ConfigError, match=hint) as caught:
        rules(tmp_path, text)
    assert "faults.yaml" in str(caught.value)


def test_the_framings_differ_only_around_the_json():
    sse, lines = plan(Endpoint.COMPLETIONS), plan(Endpoint.LINES)
    assert sse.framing is Framing.SSE
    assert lines.framing is Framing.LINES
    texts = [step.payload.removeprefix(b"data: ").strip() for step in sse.steps[:-1]]
    assert texts == [step.payload.strip() for step in lines.steps]
