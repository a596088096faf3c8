"""What an LLM server does with its load: a discrete-event model of continuous batching, without clock or I/O.

    arrive ──► waiting (FIFO) ──► running ──► a token a step ──► finished
      │             ▲                │
      └─► refused   └── preempted ◄──┘   no KV block is left: the youngest starts over (recompute)

The engine works in steps, one at a time, as vLLM's scheduler does (vllm/v1/core/sched/scheduler.py).
Before a step, each running sequence in order of admission takes the tokens that it has to compute, one if it
decodes, what is left of its prompt if not, until the step's token budget is spent (chunked prefill); then
waiting sequences are admitted while budget, batch and KV blocks allow. The step takes

    (base + sequence * decoding + kv_token * KV tokens read + prefill_token * prompt tokens computed) * jitter

with jitter log-normal of mean 1: weights are read once a step, activations once a sequence, the KV cache once
a token in it, and prefill is bound by arithmetic (the roofline of Pope et al., arXiv 2211.05102, section 2).
At its end each sequence whose tokens are all computed has one more token. An arrival waits for the end of
the step under way.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import NamedTuple

from harness.mock.latency import Engine as Settings

_NS = 1_000_000_000


class Job(NamedTuple):
    """One sequence to be generated."""

    key: int
    """Unique among the jobs that have not finished."""
    prompt_tokens: int
    output_tokens: int
    """At least 1."""
    cached_tokens: int = 0
    """The beginning of the prompt that a prefix cache holds; its last token is computed in any case."""


class Token(NamedTuple):
    """A generated token."""

    key: int
    at_ns: int
    """The end of its step."""
    admitted_ns: int
    """When its job first left the queue."""


class Refused(NamedTuple):
    """Why a job was turned away."""

    status: int
    """HTTP: 400 it can never fit, 429 account limit, else the status of a full queue."""
    reason: str


class _Sequence:
    """A job in the engine."""

    __slots__ = ("admitted_ns", "blocks", "cached", "computed", "job", "left", "room", "scheduled", "todo")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cached = min(job.cached_tokens, job.prompt_tokens - 1)
        self.computed = self.cached
        """Tokens whose keys and values are in the KV cache."""
        self.todo = job.prompt_tokens - self.cached
        """Tokens to compute before the next one is known."""
        self.left = job.output_tokens
        """Tokens still to be generated."""
        self.blocks = 0
        self.room = -self.cached
        """Tokens that its blocks still have room for."""
        self.scheduled = 0
        """Tokens computed by the step under way."""
        self.admitted_ns = -1

    def start_over(self) -> None:
        """Lose what was computed, except for what the prefix cache holds."""
        generated = self.job.output_tokens - self.left
        self.computed = self.cached
        self.todo = self.job.prompt_tokens + generated - self.cached
        self.blocks = 0
        self.room = -self.cached


class Engine:
    """The model's state. Times are nanoseconds on any clock that never goes back.

    Args:
        settings: the profile's `engine` section.
        seed: of the jitter.
    """

    def __init__(self, settings: Settings, *, seed: int = 0) -> None:
        self.next_ns: int | None = None
        """When the step under way ends; None while idle."""
        self.preemptions = 0
        """Since the start."""
        self._settings = settings
        self._rng = random.Random(f"{seed}/engine")
        self._free = settings.kv_blocks if settings.kv_blocks is not None else math.inf
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._batch: list[_Sequence] = []
        self._behind = False
        """Somebody waits whom the step under way could not take."""

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that have been admitted."""
        return len(self._running)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that are taken; 0 where they are not limited."""
        total = self._settings.kv_blocks
        return 0.0 if total is None else 1.0 - self._free / total

    def arrive(self, now_ns: int, job: Job) -> Refused | None:
        """Queue a job, or refuse it. The steps that end by now must have been taken (`step`)."""
        settings = self._settings
        if settings.kv_blocks is not None and self._blocks(job.prompt_tokens + job.output_tokens) > (
            settings.kv_blocks
        ):
            fits = settings.kv_blocks * settings.block_tokens
            return Refused(400, f"This model's maximum context length is {fits} tokens")
        if settings.concurrency is not None and self.waiting + self.running >= settings.concurrency:
            return Refused(429, f"Rate Limit Reached: {settings.concurrency} requests in flight")
        if settings.queue is not None and self.waiting >= settings.queue and self._full():
            return Refused(settings.queue_status, f"Server Overloaded: {self.waiting} requests are waiting")
        self._waiting.append(_Sequence(job))
        if self.next_ns is None:
            self._begin(now_ns)
        return None

    def _full(self) -> bool:
        """Whether one more arrival would have to wait for more than the next step."""
        return self._behind or self.waiting + self.running >= self._settings.batch

    def leave(self, now_ns: int, key: int) -> None:
        """Take a job out, finished or not: its slot and its blocks are free for the next step."""
        for sequence in (*self._running, *self._waiting):
            if sequence.job.key == key:
                break
        else:
            return
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._free += sequence.blocks
        if sequence in self._batch:
            self._batch.remove(sequence)
        if self.next_ns is None:
            self._begin(now_ns)

    def step(self, now_ns: int) -> list[Token]:
        """Take all steps that end by now; their tokens in order of time."""
        tokens: list[Token] = []
        while self.next_ns is not None and self.next_ns <= now_ns:
            at_ns = self.next_ns
            self._finish(at_ns, tokens)
            self._begin(at_ns)
        return tokens

    def _finish(self, at_ns: int, tokens: list[Token]) -> None:
        ended = False
        for sequence in self._batch:
            count = sequence.scheduled
            sequence.computed += count
            sequence.room -= count
            sequence.todo -= count
            if sequence.todo:
                continue
            sequence.todo = 1
            sequence.left -= 1
            tokens.append(Token(sequence.job.key, at_ns, sequence.admitted_ns))
            if not sequence.left:
                self._free += sequence.blocks
                ended = True
        if ended:
            self._running = [sequence for sequence in self._running if sequence.left]

    def _begin(self, now_ns: int) -> None:
        """Choose the next step's batch, if there is work."""
        self._batch = []
        budget = self._schedule_running()
        if self._waiting:
            self._admit(budget, now_ns)
        self._behind = bool(self._waiting)
        self.next_ns = now_ns + self._duration_ns() if self._batch else None

    def _schedule_running(self) -> int:
        """Give each running sequence its share of the step; the token budget that is left, 0 if one lost."""
        running, batch = self._running, self._batch
        budget = self._settings.step_tokens
        lost = False
        position = 0
        while position < len(running) and budget:
            sequence = running[position]
            count = min(sequence.todo, budget)
            if sequence.room < count and not self._allocate(sequence, count):
                lost = True
                self._preempt(running.pop())
                continue
            sequence.scheduled = count
            budget -= count
            batch.append(sequence)
            position += 1
        return 0 if lost else budget

    def _admit(self, budget: int, now_ns: int) -> None:
        settings = self._settings
        while self._waiting and budget and len(self._running) < settings.batch:
            sequence = self._waiting[0]
            count = min(sequence.todo, budget)
            if not self._allocate(sequence, count):
                return
            self._waiting.popleft()
            if sequence.admitted_ns < 0:
                sequence.admitted_ns = now_ns
            sequence.scheduled = count
            budget -= count
            self._running.append(sequence)
            self._batch.append(sequence)

    def _allocate(self, sequence: _Sequence, count: int) -> bool:
        """Take the blocks that `count` more tokens need, if they are free."""
        more = max(0, self._blocks(count - sequence.room))
        if more > self._free:
            return False
        self._free -= more
        sequence.blocks += more
        sequence.room += more * self._settings.block_tokens
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        """Back to the head of the queue; prompt and answer so far are to be computed again."""
        self._free += sequence.blocks
        sequence.start_over()
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _duration_ns(self) -> int:
        step = self._settings.step
        decoding = prefilled = read = 0
        for sequence in self._batch:
            read += sequence.computed
            if sequence.scheduled == 1 and sequence.left < sequence.job.output_tokens:
                decoding += 1
            else:
                prefilled += sequence.scheduled
        seconds = (
            step.base_s
            + step.sequence_s * decoding
            + step.kv_token_s * read
            + step.prefill_token_s * prefilled
        )
        sigma = self._settings.jitter
        if sigma:
            seconds *= math.exp(sigma * self._rng.gauss(0.0, 1.0) - sigma * sigma / 2)
        return round(seconds * _NS)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._settings.block_tokens)
