"""Answers as raw bytes of HTTP/1.1, for what no HTTP library would write."""

from __future__ import annotations

from http import HTTPStatus

from harness.mock.plan import Ending, Framing, Kind, Mangling, Plan, Step

_NS = 1_000_000_000


def render(plan: Plan, mangling: Mangling) -> Plan:
    """The plan with steps that are all that goes over the wire: head, chunk framing, wrong length and all.

    The first step is the head, or its first byte. A rendered answer is the last of its connection.
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
    if not mangling.pause_s:
        return plan._replace(steps=[Step(0, head, Kind.HEAD), *steps])
    pause_ns = round(mangling.pause_s * _NS)
    bytewise = [Step(i * pause_ns, head[i : i + 1], Kind.FRAME) for i in range(len(head))]
    bytewise[-1] = bytewise[-1]._replace(kind=Kind.HEAD)
    late = [step._replace(at_ns=max(step.at_ns, len(head) * pause_ns)) for step in steps]
    return plan._replace(steps=[*bytewise, *late])


def _head(plan: Plan, length: int | None) -> bytes:
    assert plan.status is not None
    framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
    headers = [(name, value) for name, value in plan.headers if name != "content-length"]
    lines = [f"{name}: {value}\r\n" for name, value in (*headers, framing, ("connection", "close"))]
    return f"HTTP/1.1 {plan.status} {HTTPStatus(plan.status).phrase}\r\n{''.join(lines)}\r\n".encode()


def _chunk(payload: bytes) -> bytes:
    return b"%X\r\n%s\r\n" % (len(payload), payload)
