"""Runs an engine on the wall's clock, and tells each answer when its tokens are generated."""

from __future__ import annotations

from collections.abc import Callable

from harness.mock.engine import Engine, Job, Refused
from harness.mock.pacer import Pacer, now_ns
from harness.mock.plan import Kind, Plan

Generated = Callable[[int, int], None]
"""Called for each token with the time of its generation and the time when its job left the queue (ns)."""


class Drive:
    """An engine whose time is the machine's; a tick that comes late delays nothing in the model.

    Args:
        engine: the model.
        pacer: calls when a step ends.
    """

    def __init__(self, engine: Engine, pacer: Pacer) -> None:
        self.engine = engine
        self._pacer = pacer
        self._waiting_for_tokens: dict[int, Generated] = {}
        self._ticking = False

    def arrive(self, job: Job) -> Refused | None:
        """Hand a job to the engine, now."""
        now = now_ns()
        self._deliver(now)
        refused = self.engine.arrive(now, job)
        self._tick_later()
        return refused

    def expect(self, key: int, generated: Generated) -> None:
        """Have the tokens of a job that has just arrived delivered."""
        self._waiting_for_tokens[key] = generated

    def leave(self, key: int) -> None:
        """Nobody wants this job's tokens any more: its place in the engine is free at once."""
        if self._waiting_for_tokens.pop(key, None) is not None:
            self.engine.leave(now_ns(), key)
            self._tick_later()

    def _tick_later(self) -> None:
        if not self._ticking and self.engine.next_ns is not None:
            self._ticking = True
            self._pacer.at(self.engine.next_ns, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._deliver(now_ns())
        self._tick_later()

    def _deliver(self, now: int) -> None:
        for key, at_ns, admitted_ns in self.engine.step(now):
            generated = self._waiting_for_tokens.get(key)
            if generated is not None:
                generated(at_ns, admitted_ns)


def gated(plan: Plan, tokens: int) -> Plan:
    """The plan with each step bound to the generation of its token, the last ones to that of the last.

    Args:
        plan: an answer without faults; its due times become delays after the generation.
        tokens: how many the engine will generate for it; the plan may have more (several choices at once).
    """
    total = sum(step.tokens for step in plan.steps if step.kind is Kind.TOKEN)
    seen = 0
    steps = []
    for step in plan.steps:
        if step.kind is Kind.TOKEN:
            seen += step.tokens
        awaits = max(1, -(-seen * tokens // total)) if total else tokens
        steps.append(step._replace(awaits=awaits))
    return plan._replace(steps=steps)
