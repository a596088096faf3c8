"""Answers that no HTTP library would write: as raw bytes of HTTP/1.1, and fitted to the other wires."""

from __future__ import annotations

from http import HTTPStatus

from harness.mock.plan import Ending, Framing, Kind, Mangling, Plan, Step


def fitted(plan: Plan, mangling: Mangling, *, protocol: str, tls: bool) -> Plan | None:
    """The plan for the wire that its request came by; None where that wire cannot carry the fault.

    Args:
        plan: an answer to be mangled.
        mangling: its own.
        protocol: `1.1`, `2`, or what the mock calls its requests to itself, which have no wire.
        tls: whether the connection is encrypted.
    """
    if protocol not in {"1.1", "2"} or (mangling.stream_alone and protocol == "1.1"):
        return None
    if protocol == "1.1" and not tls and not mangling.pause_s:
        return plan
    if mangling.length_off_by is not None:
        return _announced(plan, mangling.length_off_by)
    return plan._replace(mangling=mangling._replace(below=True))


def _announced(plan: Plan, off_by: int) -> Plan | None:
    """The plan with a length that the library does not check: it writes the header of who streams."""
    length = sum(len(step.payload) for step in plan.steps) + off_by
    if length < 0:
        return None
    headers = [(name, value) for name, value in plan.headers if name != "content-length"]
    *before, last = plan.steps
    half = len(last.payload) // 2
    # In two steps at least, for of a body in one the library knows the length.
    halves = [
        last._replace(payload=last.payload[:half], kind=Kind.FRAME),
        last._replace(payload=last.payload[half:]),
    ]
    headers.append(("content-length", str(length)))
    return plan._replace(headers=headers, steps=[*before, *halves], mangling=None)


def render(plan: Plan, mangling: Mangling) -> Plan:
    """The plan with steps that are all that goes over the wire: head, chunk framing, wrong length and all.

    The first step is the head. A rendered answer is the last of its connection.
    """
    assert plan.status is not None
    body = b"".join(step.payload for step in plan.steps)
    chunked = plan.framing is not Framing.WHOLE and mangling.length_off_by is None
    head = _head(plan, None if chunked else len(body) + (mangling.length_off_by or 0))
    if mangling.cut_in_head:
        return plan._replace(
            steps=[Step(0, head[: len(head) // 2], Kind.FRAME)],
            ending=Ending.RESET,
            completion_tokens=0,
            finish_reason=None,
        )
    steps = [step._replace(payload=_chunk(step.payload)) for step in plan.steps] if chunked else plan.steps
    if mangling.cut_in_chunk and steps:
        broken = steps[-1].payload
        # The size line and half of what it announces.
        kept = broken[: broken.index(b"\r\n") + 2 + len(plan.steps[-1].payload) // 2] if chunked else broken
        steps = [*steps[:-1], steps[-1]._replace(payload=kept, kind=Kind.FRAME)]
    elif chunked and plan.ending is Ending.COMPLETE:
        steps = [*steps, Step(steps[-1].at_ns, b"0\r\n\r\n", Kind.FRAME)]
    return plan._replace(steps=[Step(0, head, Kind.HEAD), *steps])


def head_size(plan: Plan) -> int:
    """How many bytes the head would have on HTTP/1.1, whatever the wire and the library's own fields."""
    return len(_head(plan, None))


def _head(plan: Plan, length: int | None) -> bytes:
    assert plan.status is not None
    framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
    headers = [(name, value) for name, value in plan.headers if name != "content-length"]
    lines = [f"{name}: {value}\r\n" for name, value in (*headers, framing, ("connection", "close"))]
    return f"HTTP/1.1 {plan.status} {HTTPStatus(plan.status).phrase}\r\n{''.join(lines)}\r\n".encode()


def _chunk(payload: bytes) -> bytes:
    return b"%X\r\n%s\r\n" % (len(payload), payload)
