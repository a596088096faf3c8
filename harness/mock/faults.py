"""What goes wrong, with which request: pure changes to a `Plan`, chosen by seed, by script or by header.

A fault is spelled `name;parameter=value;…`, in the header `x-mock-fault` as in a faults file:

    status;code=429;retry_after=2   an error answer (`delay` seconds after the request's arrival)
    reset                           TCP reset before any byte of the answer
    hang;seconds=5                  accepts the request and says nothing, then closes; no limit by default
    cut;after=3;how=reset           the connection breaks after 3 tokens: `reset` or `close`
    stall;after=3;seconds=5         silence after 3 tokens, then it goes on
    no_done                         a stream ends cleanly without its end marker (or its last line)
    error_event;after=2             an error event after 2 tokens, then a clean end
    malformed;after=2               the event after 2 tokens is broken JSON
    keepalive;seconds=0.2;every=0.1 comments (streams) or blank lines before the first token
    finish;reason=aborted           another finish reason; `insufficient_system_resource` by default

An answer that is not streamed is cut and stalled in the middle of its body.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from harness.errors import ConfigError
from harness.mock.api import ERRORS, error_object, refusal
from harness.mock.latency import convert, read_yaml
from harness.mock.plan import AROUND, END_MARKER, Ending, Framing, Kind, Plan, Step

_NS = 1_000_000_000
_Count = Annotated[int, Meta(ge=0)]
_Duration = Annotated[float, Meta(ge=0, le=86_400)]


class _Fault(msgspec.Struct, frozen=True, tag_field="name", forbid_unknown_fields=True):
    """What all faults have in common: an unknown parameter is a mistake."""


class Status(_Fault, frozen=True, tag="status"):
    """An error answer instead of the real one."""

    code: int = 500
    retry_after: _Duration | None = None
    """Seconds, sent as Retry-After; 1 for 429 unless given."""
    delay: _Duration = 0.0


class Reset(_Fault, frozen=True, tag="reset"):
    """TCP reset before any byte of the answer."""


class Hang(_Fault, frozen=True, tag="hang"):
    """No byte of an answer."""

    seconds: _Duration | None = None


class Cut(_Fault, frozen=True, tag="cut"):
    """The connection breaks in the middle of the answer."""

    after: _Count = 1
    how: Literal["reset", "close"] = "reset"


class Stall(_Fault, frozen=True, tag="stall"):
    """Silence in the middle of the answer."""

    after: _Count = 1
    seconds: _Duration = 5.0


class NoDone(_Fault, frozen=True, tag="no_done"):
    """A stream without its end marker."""


class ErrorEvent(_Fault, frozen=True, tag="error_event"):
    """HTTP 200 whose body says that it failed."""

    after: _Count = 1


class Malformed(_Fault, frozen=True, tag="malformed"):
    """JSON that breaks off."""

    after: _Count = 1


class KeepAlive(_Fault, frozen=True, tag="keepalive"):
    """The server holds the request and says so."""

    seconds: _Duration = 1.0
    every: Annotated[float, Meta(ge=0.001)] = 0.5


class Finish(_Fault, frozen=True, tag="finish"):
    """Another finish reason than the true one."""

    reason: Annotated[str, Meta(pattern="^[a-z_]+$")] = "insufficient_system_resource"


Fault = Status | Reset | Hang | Cut | Stall | NoDone | ErrorEvent | Malformed | KeepAlive | Finish


def parse(text: str, source: str) -> Fault:
    """Read one fault as it is spelled in headers and files.

    Args:
        text: `name;parameter=value;…`.
        source: where it stands, for the blame.

    Raises:
        ConfigError: an unknown name or parameter, or a value out of range.
    """
    name, *parameters = (part.strip() for part in text.split(";"))
    plain: dict[str, str] = {"name": name}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        if not equals:
            raise ConfigError(source, "", text, "write parameters as name=value, separated by `;`")
        plain[key.strip()] = value.strip()
    try:
        fault: Fault = msgspec.convert(plain, Fault, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(source, "", text, str(error)) from error
    if isinstance(fault, Status) and fault.code not in ERRORS:
        raise ConfigError(source, "code", fault.code, f"choose one of {', '.join(map(str, ERRORS))}")
    return fault


# -- which request -----------------------------------------------------------------------------------------


class Rule(msgspec.Struct, frozen=True):
    """A fault, and the requests that meet it."""

    spelling: str
    fault: Fault
    probability: float
    requests: frozenset[int]


class _RuleText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    fault: str
    probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    requests: list[Annotated[int, Meta(ge=1)]] = []


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    faults: list[_RuleText]


def load_rules(path: Path) -> tuple[Rule, ...]:
    """Read a faults file.

    Each entry of its list `faults` has a `fault` and a `probability`, or the numbers of the `requests`
    that meet it, counted from 1 in order of arrival.

    Raises:
        ConfigError: with file, key, value and remedy.
    """
    source = str(path)
    rules = []
    for i, text in enumerate(convert(read_yaml(path), _File, source).faults):
        key = f"faults[{i}]"
        if not text.probability and not text.requests:
            raise ConfigError(source, key, text.fault, "give it a `probability`, or a list of `requests`")
        fault = parse(text.fault, f"{source}: {key}.fault")
        rules.append(Rule(text.fault, fault, text.probability, frozenset(text.requests)))
    return tuple(rules)


def choose(rules: Sequence[Rule], *, seed: int, request_id: str, number: int) -> Rule | None:
    """The first rule that this request meets.

    Chance depends on the seed and the request's id alone, so it repeats whatever the order of arrival;
    `number` counts requests in order of arrival.
    """
    if not rules:
        return None
    rng = random.Random(f"{seed}/{request_id}/faults")
    for rule in rules:
        # One draw a rule, used or not: adding `requests` to one rule must not move the others' draws.
        chance = rng.random()
        if number in rule.requests or chance < rule.probability:
            return rule
    return None


# -- what it does ------------------------------------------------------------------------------------------


def apply(fault: Fault, plan: Plan) -> Plan | None:
    """The plan with the fault in it; None where such an answer cannot have such a fault."""
    match fault:
        case Status():
            return _status(fault)
        case Reset():
            return Plan(None, [], [], ending=Ending.RESET)
        case Hang(seconds=seconds):
            return Plan(None, [], [], ending=Ending.HANG, hang_s=seconds)
        case Cut():
            return _cut(fault, plan)
        case Stall():
            return _stall(fault, plan)
        case NoDone():
            return None if plan.framing is Framing.WHOLE else plan._replace(steps=plan.steps[:-1])
        case ErrorEvent():
            return _error_event(fault, plan)
        case Malformed():
            return _malformed(fault, plan)
        case KeepAlive():
            return _keepalive(fault, plan)
        case Finish():
            return _finish(fault, plan)


def _status(fault: Status) -> Plan:
    retry_after = 1.0 if fault.retry_after is None and fault.code == 429 else fault.retry_after
    headers = [] if retry_after is None else [("retry-after", f"{retry_after:g}")]
    return _later(refusal(fault.code, headers=headers), 0, fault.delay)


def _cut(fault: Cut, plan: Plan) -> Plan:
    ending = Ending.RESET if fault.how == "reset" else Ending.CLOSE
    if plan.framing is Framing.WHOLE:
        halves = _halved(plan)
        return halves._replace(steps=halves.steps[:1], ending=ending, completion_tokens=0, finish_reason=None)
    steps = plan.steps[: _position(plan, fault.after)]
    return plan._replace(steps=steps, ending=ending, completion_tokens=_tokens(steps), finish_reason=None)


def _stall(fault: Stall, plan: Plan) -> Plan:
    if plan.framing is Framing.WHOLE:
        return _later(_halved(plan), 1, fault.seconds)
    return _later(plan, _position(plan, fault.after), fault.seconds)


def _error_event(fault: ErrorEvent, plan: Plan) -> Plan:
    error = msgspec.json.encode(error_object(500))
    before, after = AROUND[plan.framing]
    at = _position(plan, fault.after)
    due_ns = plan.steps[min(at, len(plan.steps) - 1)].at_ns
    kept = [] if plan.framing is Framing.WHOLE else plan.steps[:at]
    steps = [*kept, Step(due_ns, before + error + after, Kind.FRAME)]
    return plan._replace(steps=steps, completion_tokens=_tokens(steps), finish_reason=None)


def _malformed(fault: Malformed, plan: Plan) -> Plan:
    before, after = AROUND[plan.framing]
    at = 0 if plan.framing is Framing.WHOLE else _position(plan, fault.after)
    step = plan.steps[at]
    json = step.payload.removeprefix(before).removesuffix(after)
    broken = step._replace(payload=before + json[: len(json) // 2] + after, kind=Kind.FRAME)
    steps = [*plan.steps[:at], broken, *plan.steps[at + 1 :]]
    tokens = plan.completion_tokens if plan.framing is Framing.WHOLE else _tokens(steps)
    return plan._replace(steps=steps, completion_tokens=tokens)


def _keepalive(fault: KeepAlive, plan: Plan) -> Plan:
    sign = b": keep-alive\n\n" if plan.framing is Framing.SSE else b"\n"
    count = max(1, math.ceil(fault.seconds / fault.every))
    signs = [Step(round(i * fault.every * _NS), sign, Kind.FRAME) for i in range(count)]
    held = _later(plan, 0, fault.seconds)
    return held._replace(steps=[*signs, *held.steps])


def _finish(fault: Finish, plan: Plan) -> Plan:
    # Quotes inside the answer's text are escaped, so that this can only be the field itself.
    old, new = (f'"finish_reason":"{reason}"'.encode() for reason in (plan.finish_reason, fault.reason))
    steps = [step._replace(payload=step.payload.replace(old, new)) for step in plan.steps]
    return plan._replace(steps=steps, finish_reason=fault.reason)


def _position(plan: Plan, tokens: int) -> int:
    """Where in the steps that many tokens are through; before the end marker in any case."""
    seen = 0
    for i, step in enumerate(plan.steps):
        if step.payload == END_MARKER or (step.kind is Kind.TOKEN and seen == tokens):
            return i
        seen += step.kind is Kind.TOKEN
    return len(plan.steps) - 1


def _tokens(steps: Sequence[Step]) -> int:
    return sum(step.kind is Kind.TOKEN for step in steps)


def _later(plan: Plan, start: int, seconds: float) -> Plan:
    steps = [
        step._replace(at_ns=step.at_ns + round(seconds * _NS)) if i >= start else step
        for i, step in enumerate(plan.steps)
    ]
    return plan._replace(steps=steps)


def _halved(plan: Plan) -> Plan:
    """A whole answer in two writes: its length is announced, so that the first half is not the answer."""
    step = plan.steps[0]
    middle = len(step.payload) // 2
    halves = [step._replace(payload=step.payload[:middle]), step._replace(payload=step.payload[middle:])]
    return plan._replace(steps=halves, headers=[*plan.headers, ("content-length", str(len(step.payload)))])
