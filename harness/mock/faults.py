"""What goes wrong with an answer: pure changes to a `Plan`. Which request meets it is script.py's.

A fault is spelled `name;parameter=value;…`, in the header `x-mock-fault` as in a faults file:

    status;code=429;retry_after=2   an error answer (`delay` seconds after the request's arrival), in the
                                    words of `flavour=deepseek` or `openai`; `retry_as=date` for a date
    html;code=200                   a gateway's HTML page where JSON should be
    reset;stage=start               TCP reset before any byte of the answer, or (`stage=head`) in its head
    hang;seconds=5                  accepts the request and says nothing, then closes; no limit by default
    refuse;open=keep                no connection is accepted for a time (only in files, with `at`);
                                    `open=reset` breaks the answers under way, too
    cut;after=3;how=reset           the connection breaks after 3 tokens: `reset` or `close`; `inside=true`
                                    in the middle of the next chunk; `stream` resets an HTTP/2 stream alone
    stall;after=3;seconds=5         silence after 3 tokens, then it goes on
    slow;factor=3                   everything takes three times as long
    wait                            (only in files, with `at`) the answer begins once that time is over
    no_done                         a stream ends cleanly without its end marker (or its last line)
    no_finish                       no finish reason is given
    error_event;after=2             an error event after 2 tokens, then a clean end
    malformed;after=2               the event after 2 tokens is broken JSON
    keepalive;seconds=0.2;every=0.1 comments (streams) or blank lines before the first token; `sign=blank`
                                    for blank lines in streams
    split;pause=0.005               each event in two writes, cut inside a character of several bytes
    merge;events=4                  four events in one write
    gzip;events=4                   compressed, and flushed every four events
    length;by=10                    a Content-Length that announces 10 bytes too many (or, negative, too few)
    slow_head;pause=0.01            the head byte by byte, one each 10 ms
    finish;reason=aborted           another finish reason; `insufficient_system_resource` by default
    whitespace                      a chat's content is spaces, as DeepSeek's where JSON mode finds no JSON

An answer that is not streamed is cut and stalled in the middle of its body.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

from harness.errors import ConfigError
from harness.mock import blame, flavours
from harness.mock.api import ERRORS, error_object
from harness.mock.plan import AROUND, END_MARKER, Ending, Framing, Kind, Mangling, Plan, Step

_NS = 1_000_000_000
_CONTENT = re.compile(rb'("content":")(?:[^"\\]|\\.)+(")')
"""A chat's content, if there is any, up to the quote that ends it."""
_REASON = "write a finish reason in lower-case letters and `_`"
_Count = Annotated[int, Meta(ge=0)]
_Duration = Annotated[float, Meta(ge=0, le=86_400)]


class _Fault(msgspec.Struct, frozen=True, tag_field="name", forbid_unknown_fields=True):
    """What all faults have in common: an unknown parameter is a mistake."""


class Status(_Fault, frozen=True, tag="status"):
    """An error answer instead of the real one."""

    code: int = 500
    retry_after: _Duration | None = None
    """Seconds, sent as Retry-After; 1 for 429 unless given."""
    retry_as: Literal["seconds", "date"] = "seconds"
    delay: _Duration = 0.0
    flavour: flavours.Flavour = "deepseek"


class Html(_Fault, frozen=True, tag="html"):
    """A gateway's HTML page instead of an answer."""

    code: Annotated[int, Meta(ge=200, le=599)] = 200


class Refuse(_Fault, frozen=True, tag="refuse"):
    """Nobody listens for a time."""

    open: Literal["keep", "reset"] = "keep"
    """What becomes of the answers under way."""


class Reset(_Fault, frozen=True, tag="reset"):
    """TCP reset before any byte of the answer, or in the middle of its head."""

    stage: Literal["start", "head"] = "start"


class Hang(_Fault, frozen=True, tag="hang"):
    """No byte of an answer."""

    seconds: _Duration | None = None


class Cut(_Fault, frozen=True, tag="cut"):
    """The connection breaks in the middle of the answer."""

    after: _Count = 1
    how: Literal["reset", "close", "stream"] = "reset"
    inside: bool = False
    """In the middle of the next chunk rather than before it."""


class Stall(_Fault, frozen=True, tag="stall"):
    """Silence in the middle of the answer."""

    after: _Count = 1
    seconds: _Duration = 5.0


class Slow(_Fault, frozen=True, tag="slow"):
    """Everything takes longer."""

    factor: Annotated[float, Meta(gt=0, le=1000)] = 3.0


class Wait(_Fault, frozen=True, tag="wait"):
    """The answer begins once the rule's time is over."""


class NoDone(_Fault, frozen=True, tag="no_done"):
    """A stream without its end marker."""


class NoFinish(_Fault, frozen=True, tag="no_finish"):
    """An answer that does not say why it ended."""


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
    sign: Literal["comment", "blank"] = "comment"
    """What a stream's sign of life is; other answers can only have blank lines."""


class Split(_Fault, frozen=True, tag="split"):
    """Each event in two writes."""

    pause: _Duration = 0.005


class Merge(_Fault, frozen=True, tag="merge"):
    """Several events in one write."""

    events: Annotated[int, Meta(ge=2)] = 4


class Gzip(_Fault, frozen=True, tag="gzip"):
    """A compressed body whose flushes are not the events'."""

    events: Annotated[int, Meta(ge=1)] = 4


class Length(_Fault, frozen=True, tag="length"):
    """A wrong Content-Length."""

    by: int = 10


class SlowHead(_Fault, frozen=True, tag="slow_head"):
    """The head byte by byte."""

    pause: Annotated[float, Meta(gt=0, le=60)] = 0.01


class Whitespace(_Fault, frozen=True, tag="whitespace"):
    """Content that is there, and says nothing (api-docs.deepseek.com/guides/json_mode)."""


class Finish(_Fault, frozen=True, tag="finish"):
    """Another finish reason than the true one."""

    reason: Annotated[str, Meta(pattern="^[a-z_]+$", extra={"rule": _REASON})] = (
        "insufficient_system_resource"
    )


Fault = (
    Status
    | Html
    | Reset
    | Hang
    | Refuse
    | Cut
    | Stall
    | Slow
    | Wait
    | NoDone
    | NoFinish
    | ErrorEvent
    | Malformed
    | KeepAlive
    | Split
    | Merge
    | Gzip
    | Length
    | SlowHead
    | Finish
    | Whitespace
)


class Moment(NamedTuple):
    """When a fault strikes."""

    wall_s: float = 0.0
    """Unix time."""
    left_s: float = 0.0
    """How long the rule's time goes on; 0 for a rule without one."""


_KINDS: dict[str, type[Fault]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Fault)}


def parse(text: str, source: str, key: str = "") -> Fault:
    """Read one fault as it is spelled in headers and files.

    Args:
        text: `name;parameter=value;…`.
        source: where it stands, for the blame.
        key: and at which key.

    Raises:
        ConfigError: an unknown name or parameter, or a value out of range.
    """
    name, *parameters = (part.strip() for part in text.split(";"))
    if name not in _KINDS:
        raise ConfigError(source, key, text, f"no such fault; {blame.nearest(name, list(_KINDS))}")
    plain = {"name": name}
    for parameter in parameters:
        its_name, equals, value = (part.strip() for part in parameter.partition("="))
        if not equals or its_name in plain:
            raise ConfigError(
                source, key, text, "write parameters as name=value, each once, separated by `;`"
            )
        plain[its_name] = value
    try:
        fault = blame.convert(plain, _KINDS[name], source, strict=False)
    except ConfigError as error:
        # All of a spelling is text, so that "got text" would say nothing.
        remedy = f"`{error.key}` is {error.value!r}: {error.remedy.removesuffix(', got text')}"
        raise ConfigError(source, key, text, remedy) from error
    if isinstance(fault, Status) and fault.code not in ERRORS:
        known = ", ".join(map(str, ERRORS))
        raise ConfigError(source, key, text, f"`code` is {fault.code}: choose one of {known}")
    return fault


NOW = Moment()
_OF_TEXT = (NoDone, ErrorEvent, Malformed, KeepAlive)
"""What sound has not: events, a marker of its end, JSON, lines."""


# -- what it does ------------------------------------------------------------------------------------------


def apply(fault: Fault, plan: Plan, moment: Moment = NOW) -> Plan | None:
    """The plan with the fault in it; None where such an answer cannot have such a fault."""
    streamed = plan.framing is not Framing.WHOLE
    if plan.framing is Framing.BYTES and isinstance(fault, _OF_TEXT):
        return None
    match fault:
        case Status():
            return _status(fault, moment)
        case Html(code=code):
            page = [("content-type", "text/html")]
            return Plan(code, page, [Step(0, flavours.HTML_PAGE, Kind.BODY)])
        case Reset(stage="start"):
            return Plan(None, [], [], ending=Ending.RESET)
        case Reset():
            return plan._replace(mangling=Mangling(cut_in_head=True))
        case Hang(seconds=seconds):
            return Plan(None, [], [], ending=Ending.HANG, hang_s=seconds)
        case Refuse():
            return None
        case Cut():
            return _cut(fault, plan)
        case Stall():
            return _stall(fault, plan)
        case Slow(factor=factor):
            steps = [step._replace(at_ns=round(step.at_ns * factor)) for step in plan.steps]
            return plan._replace(steps=steps, stretch=factor)
        case Wait():
            return _later(plan, 0, moment.left_s) if moment.left_s else None
        case NoDone():
            return plan._replace(steps=plan.steps[:-1]) if streamed else None
        case NoFinish():
            return _finish(None, plan)
        case ErrorEvent():
            return _error_event(fault, plan)
        case Malformed():
            return _malformed(fault, plan)
        case KeepAlive():
            return _keepalive(fault, plan)
        case Split(pause=pause):
            return plan._replace(steps=list(_halves(plan.steps, round(pause * _NS))))
        case Merge(events=events):
            return plan._replace(steps=_batched(plan.steps, events)) if streamed else None
        case Gzip(events=events):
            return _gzip(plan, events)
        case Length(by=by):
            return plan._replace(mangling=Mangling(length_off_by=by))
        case SlowHead(pause=pause):
            return plan._replace(mangling=Mangling(pause_s=pause))
        case Finish(reason=reason):
            return _finish(reason, plan)
        case Whitespace():
            return _whitespace(plan)


def _status(fault: Status, moment: Moment) -> Plan:
    wait_s = 1.0 if fault.retry_after is None and fault.code == 429 else fault.retry_after
    wall_s = moment.wall_s if fault.retry_as == "date" else None
    headers = [] if wait_s is None else [flavours.retry_after(wait_s, wall_s=wall_s)]
    return _later(flavours.refusal(fault.flavour, fault.code, headers=headers), 0, fault.delay)


def _cut(fault: Cut, plan: Plan) -> Plan | None:
    ending = Ending.CLOSE if fault.how == "close" else Ending.RESET
    if fault.how == "stream":
        if fault.inside:
            return None  # A stream's frames are whole, or the connection is broken.
        plan = plan._replace(mangling=Mangling(stream_alone=True))
    if plan.framing is Framing.WHOLE:
        halves = _halved(plan)
        return halves._replace(steps=halves.steps[:1], ending=ending, completion_tokens=0, finish_reason=None)
    at = _position(plan, fault.after)
    kept = plan.steps[:at]
    changed = plan._replace(steps=kept, ending=ending, completion_tokens=_tokens(kept), finish_reason=None)
    if not fault.inside:
        return changed
    broken = plan.steps[at]._replace(kind=Kind.FRAME)
    return changed._replace(steps=[*kept, broken], mangling=Mangling(cut_in_chunk=True))


def _stall(fault: Stall, plan: Plan) -> Plan:
    if plan.framing is Framing.WHOLE:
        return _later(_halved(plan), 1, fault.seconds)
    return _later(plan, _position(plan, fault.after), fault.seconds)


def _error_event(fault: ErrorEvent, plan: Plan) -> Plan:
    before, after = AROUND[plan.framing]
    error = error_object(500)
    if plan.steps[0].payload.startswith(b"event: "):
        # Responses and Messages name their events, and say the name again inside.
        before, error = b"event: error\n" + before, {"type": "error", **error}
    at = _position(plan, fault.after)
    due_ns = plan.steps[min(at, len(plan.steps) - 1)].at_ns
    kept = [] if plan.framing is Framing.WHOLE else plan.steps[:at]
    steps = [*kept, Step(due_ns, before + msgspec.json.encode(error) + after, Kind.FRAME)]
    return plan._replace(steps=steps, completion_tokens=_tokens(steps), finish_reason=None)


def _malformed(fault: Malformed, plan: Plan) -> Plan:
    before, after = AROUND[plan.framing]
    at = 0 if plan.framing is Framing.WHOLE else _position(plan, fault.after)
    step = plan.steps[at]
    start = step.payload.index(before) + len(before)
    json = step.payload[start:].removesuffix(after)
    payload = step.payload[:start] + json[: len(json) // 2] + after
    broken = step._replace(payload=payload, kind=Kind.FRAME)
    steps = [*plan.steps[:at], broken, *plan.steps[at + 1 :]]
    tokens = plan.completion_tokens if plan.framing is Framing.WHOLE else _tokens(steps)
    return plan._replace(steps=steps, completion_tokens=tokens)


def _keepalive(fault: KeepAlive, plan: Plan) -> Plan:
    comments = plan.framing is Framing.SSE and fault.sign == "comment"
    sign = b": keep-alive\n\n" if comments else b"\n"
    count = max(1, math.ceil(fault.seconds / fault.every))
    signs = [Step(round(i * fault.every * _NS), sign, Kind.FRAME) for i in range(count)]
    held = _later(plan, 0, fault.seconds)
    return held._replace(steps=[*signs, *held.steps])


def _finish(reason: str | None, plan: Plan) -> Plan | None:
    # Quotes inside the answer's text are escaped, so that this can only be the field itself.
    old = f'_reason":"{plan.finish_reason}"'.encode()
    new = b'_reason":null' if reason is None else f'_reason":"{reason}"'.encode()
    if not any(old in step.payload for step in plan.steps):
        return None  # Responses have a status instead.
    steps = [step._replace(payload=step.payload.replace(old, new)) for step in plan.steps]
    return plan._replace(steps=steps, finish_reason=reason)


def _whitespace(plan: Plan) -> Plan | None:
    if not any(_CONTENT.search(step.payload) for step in plan.steps):
        return None
    steps = [step._replace(payload=_CONTENT.sub(rb"\1 \2", step.payload)) for step in plan.steps]
    return _finish("stop", plan._replace(steps=steps))


def _halves(steps: Iterable[Step], pause_ns: int) -> Iterable[Step]:
    """Each step in two; the token counts once the second is through."""
    free_ns = 0
    for step in steps:
        at_ns = max(step.at_ns, free_ns)
        free_ns = at_ns + pause_ns
        middle = _inside_character(step.payload)
        yield step._replace(at_ns=at_ns, payload=step.payload[:middle], kind=Kind.FRAME)
        yield step._replace(at_ns=free_ns, payload=step.payload[middle:])


def _inside_character(payload: bytes) -> int:
    """A place inside the first character of several bytes, else the middle."""
    found = (i + 1 for i, byte in enumerate(payload) if byte >= 0xC0)  # 0b11……: the first of several
    return next(found, len(payload) // 2)


def _batched(steps: Sequence[Step], events: int) -> list[Step]:
    """Every so many steps as one, due with the last of them."""
    return [_joined(steps[i : i + events]) for i in range(0, len(steps), events)]


def _joined(steps: Sequence[Step]) -> Step:
    tokens = _tokens(steps)
    kind = Kind.TOKEN if tokens else steps[0].kind
    payload = b"".join(step.payload for step in steps)
    return steps[-1]._replace(payload=payload, kind=kind, tokens=tokens)


def _gzip(plan: Plan, events: int) -> Plan:
    press = zlib.compressobj(wbits=31)  # 16 + 15: with gzip's header
    *before, last = _batched(plan.steps, events)
    pressed = [
        step._replace(payload=press.compress(step.payload) + press.flush(zlib.Z_SYNC_FLUSH))
        for step in before
    ]
    pressed.append(last._replace(payload=press.compress(last.payload) + press.flush()))
    return plan._replace(steps=pressed, headers=[*plan.headers, ("content-encoding", "gzip")])


def _position(plan: Plan, tokens: int) -> int:
    """Where in the steps that many tokens are through; before the end marker in any case."""
    seen = 0
    for i, step in enumerate(plan.steps):
        if step.payload == END_MARKER or (step.kind is Kind.TOKEN and seen == tokens):
            return i
        seen += step.kind is Kind.TOKEN
    return len(plan.steps) - 1


def _tokens(steps: Sequence[Step]) -> int:
    return sum(step.tokens for step in steps if step.kind is Kind.TOKEN)


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
