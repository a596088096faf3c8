"""One worker's share of a run: walk the schedule, hand arrivals to idle virtual users, keep the books.

    schedule ─► dispatcher ─► idle user of that kind ─► send ─► Record ─► run log
                    └► nobody idle within the scenario's patience: dropped, counted, recorded

One dispatcher greenlet walks an absolute schedule, so a slow answer never delays the next arrival. In
a closed loop there is no dispatcher: each user claims its next arrival itself.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import inspect
import math
import os
import resource
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import gevent
import msgspec
import psutil
from gevent.event import Event
from gevent.hub import Waiter

from harness import runlog
from harness.client.call import Call, prepare
from harness.client.transport import READ_LAG, read_stamps
from harness.clock import anchor, now_ns
from harness.errors import HarnessError
from harness.record import NO_USER, Kind, Outcome, Record, Sample, WorkerLedger
from harness.users.line import Lines
from harness.users.telling import Teller
from harness.users.tenure import Grant, Tenure
from harness.users.wait import Alarm
from harness.workload.prompts import Request, follow_ups, workload
from harness.workload.scenario import Closed, Scenario
from harness.workload.schedule import arrivals, claims, shard

Args = ParamSpec("Args")
Computed = TypeVar("Computed")

_HUB_PROBE_S = 0.02
_STALL_NS = 1_000_000
"""What `Sample.hub_stalls_ns` leaves out: delays too short to matter, of which there are many."""
_SAMPLE_S = 1.0
_OTHER_FILES = 64
"""Descriptors that a worker needs besides its connections, at most."""
_GC_THRESHOLD = 10_000
"""By Python's 700, each batch of the log would begin with a collection that finds nothing."""
_HANDFUL = 64
"""Records are handed on so many at a time, which takes half the time of one by one."""
_HAND_ON_S = 0.05
"""So long does a record wait for others to be handed on with, at most."""
_AHEAD, _AHEAD_NS = 64, 500_000
"""Arrivals of a closed loop prepared in one go, which takes half the time of as many goes; fewer where they
take longer than this: nobody else has the event loop meanwhile."""


class Lease(msgspec.Struct, frozen=True):
    """What the master (or the only process) gives a worker to do."""

    folder: str
    worker: int
    """Number of its log; from 0, never used twice in a run."""
    shard: int
    """Which arrivals are its own: seq % shards == shard."""
    shards: int
    since_ns: int = 0
    """Only arrivals due from here on: a spare takes over what a lost worker has left."""
    until_ns: int | None = None
    """Arrivals due from here on wait for a grant (users.tenure); None: no grant is needed."""


class _Work(msgspec.Struct, frozen=True, gc=False):
    """An arrival with its requests encoded, ready for a virtual user."""

    due_ns: int | None
    calls: Sequence[Call]
    queued_ns: int | None = None
    """As in `Record`."""


class _Loop:
    """What the users of one kind do in a closed loop: who comes next takes the next arrival."""

    def __init__(
        self,
        claims: Iterator[int],
        request_of: Callable[[int], Sequence[Request]],
        follow_up: Callable[[Request, int | None], Request | None],
    ) -> None:
        self.claims = claims
        self.request_of = request_of
        self.follow_up = follow_up
        self.stock: deque[_Work] = deque()
        """Prepared arrivals."""
        self.ahead = 1
        """How many are prepared in one go."""


class VirtualUser:
    """One unit of concurrency: a greenlet's connections, and what it does now."""

    def __init__(self, kind: Kind, lines: Lines) -> None:
        self.kind = kind
        self.line = lines.line(kind)
        self.greenlet = gevent.getcurrent()
        self.busy = False


class Worker:
    """The engine of one worker process for one run.

    Args:
        scenario: only with the traffic of the kinds that this process has users for.
        lease: this worker's share.
        lines: what carries the requests.
        tell: given the final records, some at a time, to tell Locust.
        ship: given each piece of this worker's files, by name, once it is written: another host's copy.
    """

    def __init__(
        self,
        scenario: Scenario,
        lease: Lease,
        lines: Lines,
        tell: Callable[[Sequence[Record]], None],
        ship: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._closed = isinstance(scenario.arrivals, Closed)
        self._due_ns, self._first = (array("q"), 0) if self._closed else apart(_share, scenario, lease)
        self._loops = apart(_loops, scenario, lease) if self._closed else {}
        self._request_of = apart(workload, scenario)
        self._follow_up = apart(follow_ups, scenario)
        self._scenario = scenario
        self._lease = lease
        self._origin_ns = 0
        self._go = Event()
        self._serving = 0
        self._lines = lines
        self._fresh: list[Record] = []
        """Records that have not been handed on yet."""
        self._teller = Teller(tell, self.fail)
        folder = Path(lease.folder)
        self._ship = ship
        path = runlog.records_path(folder, lease.worker)
        self._log = runlog.Writer(path, ship=None if ship is None else partial(ship, path.name))
        self._samples_path = runlog.samples_path(folder, lease.worker)
        self._samples = self._samples_path.open("wb", buffering=0)
        self._users: list[VirtualUser] = []
        self._idle: dict[str, list[Waiter]] = {kind: [] for kind in Kind}
        self._waiting: dict[str, deque[tuple[int, _Work]]] = {kind: deque() for kind in Kind}
        self._patience_ns = int(scenario.patience_s * 1e9)
        self._started = self._dropped = self._finished = self._cut_off = self._claimed = 0
        self._allotted: float = math.inf
        """Arrivals of a closed loop that this worker may claim."""
        if scenario.count is not None:
            self._allotted = len(range(lease.shard, scenario.count, lease.shards))
        self._alarm = Alarm()
        self._gc_thresholds = gc.get_threshold()
        self._dispatcher: gevent.Greenlet | None = None
        self._tenure = Tenure(lease.until_ns)
        self._granted = Event()
        self._health = _Health()
        self.stopping = False
        self.exhausted = Event()
        """Set when every arrival of this share has been dispatched and has ended, or none can be any more."""
        self.failure = ""
        """What keeps this worker from going on; empty: nothing."""

    # -- life ---------------------------------------------------------------------------------------

    def start(self, origin_ns: int) -> None:
        """Start the dispatcher and the sampling; the users may have been parked before.

        Args:
            origin_ns: the run's start on this boot's monotonic clock, a little ahead.
        """
        self._origin_ns = origin_ns
        closed = self._scenario.arrivals
        _make_room(closed.users if isinstance(closed, Closed) else self._scenario.max_in_flight)
        _look_at_the_stack()
        gc.set_threshold(_GC_THRESHOLD, *self._gc_thresholds[1:])
        gc.collect()
        gc.freeze()  # what stands now lives as long as the run: no collection needs to look at it
        self._health.start()
        self._sampler = self._spawn(self._sample_for_ever)
        self._clerk = self._spawn(self._hand_on_for_ever)
        if not self._closed:
            self._dispatcher = self._spawn(self._dispatch)
        self._go.set()

    @property
    def begun(self) -> bool:
        """It has been started."""
        return bool(self._go.is_set())

    def discard(self) -> None:
        """Let go of what was never started: its log holds nothing."""
        self._alarm.close()
        self._samples.close()
        self._teller.stop()
        self._log.close()

    def _spawn(self, work: Callable[[], None]) -> gevent.Greenlet:
        """A greenlet without which the run cannot go on."""
        greenlet = gevent.spawn(work)
        greenlet.link_exception(lambda broken: self.fail(broken.exception))
        return greenlet

    def grant(self, grant: Grant) -> None:
        """Hear what may be sent by now. From the last grant on, what is due later is a spare's."""
        self._tenure.take(grant)
        if grant.last:
            del self._due_ns[bisect_left(self._due_ns, grant.until_ns) :]
        self._granted.set()

    def fail(self, error: BaseException) -> None:
        """Have the run end: what cannot be sent any more would look like a calm target."""
        self.failure = self.failure or blame(error)
        self.exhausted.set()

    def drain(self, patience_s: float, hurry: Callable[[], bool]) -> WorkerLedger:
        """Stop dispatching, let what is under way end, close the log, give the books.

        Args:
            patience_s: what is still under way after this is cut off, and recorded so.
            hurry: asked ten times a second; True ends the patience.
        """
        self.stopping = True
        if self._dispatcher is not None:
            self._dispatcher.kill()
        self._drop_waiting(math.inf)
        deadline = time.monotonic() + patience_s
        while self.in_flight and time.monotonic() < deadline and not hurry():
            gevent.sleep(0.1 if patience_s > 1 else 0.01)
        self._cut_off = self.in_flight
        gevent.killall([user.greenlet for user in self._users if user.busy])
        self._wake_idle()
        self._sampler.kill()
        self._clerk.kill()
        try:
            self._hand_on()
            self._take_sample()
            self._log.close()
        except OSError as full:  # the books say what is missing
            self.fail(full)
        self._health.stop()
        self._alarm.close()
        self._samples.close()
        gc.unfreeze()
        gc.set_threshold(*self._gc_thresholds)
        planned = self._claimed if self._closed else len(self._due_ns)
        ledger = WorkerLedger(
            worker=self._lease.worker,
            planned=planned,
            started=self._started,
            dropped=self._dropped,
            not_started=planned - self._started - self._dropped,
            finished=self._finished,
            cut_off=self._cut_off,
            records=self._log.count,
        )
        path = runlog.ledger_path(Path(self._lease.folder), self._lease.worker)
        runlog.write_json(path, ledger)
        if self._ship is not None:
            self._ship(path.name, path.read_bytes())
        self._teller.stop()
        return ledger

    @property
    def in_flight(self) -> int:
        """Arrivals started and not yet ended."""
        return self._started - self._finished - self._cut_off

    # -- what virtual users call ------------------------------------------------------------------------

    def serve(self, kind: Kind) -> None:
        """Be a virtual user until the run is over. Runs in the Locust user's own greenlet."""
        user = VirtualUser(kind, self._lines)
        self._users.append(user)
        self._serving += 1
        try:
            if self._closed:
                self._serve_loop(user, self._loops[kind])
            else:
                self._serve_arrivals(user)
        finally:
            user.line.close()
            self._serving -= 1
            if self._closed and not self._serving:
                self.exhausted.set()

    def _serve_arrivals(self, user: VirtualUser) -> None:
        idle = self._idle[user.kind]
        while not self.stopping:
            work = self._take_waiting(user.kind)
            if work is None:
                waiter: Waiter = Waiter()
                idle.append(waiter)
                try:
                    work = waiter.get()
                except BaseException:
                    if waiter in idle:
                        idle.remove(waiter)
                    raise
            if work is None:
                return
            self._carry(user, work)

    def _serve_loop(self, user: VirtualUser, loop: _Loop) -> None:
        assert isinstance(self._scenario.arrivals, Closed)
        think_time_s = self._scenario.arrivals.think_time_s
        duration_s = self._scenario.duration_s
        self._go.wait()
        end_ns = self._origin_ns + int(duration_s * 1e9) if duration_s else math.inf
        gevent.sleep(max(0, self._origin_ns - now_ns()) / 1e9)
        stock = loop.stock
        while not self.stopping and self._claimed < self._allotted and now_ns() < end_ns:
            if not stock:
                self._prepare_ahead(loop)
            self._claimed += 1
            self._started += 1
            self._carry(user, stock.popleft())
            if think_time_s:
                gevent.sleep(max(0, min(think_time_s, (end_ns - now_ns()) / 1e9)))

    def _prepare_ahead(self, loop: _Loop) -> None:
        """Prepare a block of arrivals. The time it takes says how many the next may have."""
        request_of, prepare, began_ns = loop.request_of, self._prepare, now_ns()
        loop.stock.extend([prepare(None, request_of(seq)) for seq in islice(loop.claims, loop.ahead)])
        fit = loop.ahead * _AHEAD_NS // max(1, now_ns() - began_ns)
        loop.ahead = max(1, min(fit, _AHEAD))

    def _carry(self, user: VirtualUser, work: _Work) -> None:
        user.busy = True
        fresh = self._fresh
        try:
            turn: _Work | None = work
            while turn is not None:
                log = fresh.append if turn.queued_ns is None else partial(self._log_queued, turn.queued_ns)
                records = user.line.carry(turn.calls, turn.due_ns, self._origin_ns, log)
                if len(fresh) >= _HANDFUL:
                    self._hand_on()
                turn = None if turn.calls[0].request.turns == 1 else self._next_turn(turn, records)
        finally:
            user.busy = False
        self._finished += 1
        if self._dispatcher is not None and self._dispatcher.dead and not self.in_flight:
            self.exhausted.set()

    def _log_queued(self, queued_ns: int, record: Record) -> None:
        self._fresh.append(msgspec.structs.replace(record, queued_ns=queued_ns))

    def _next_turn(self, work: _Work, records: Sequence[Record]) -> _Work | None:
        """The session's next turn, once its user has thought; None at its end, or after a failure."""
        request = work.calls[0].request
        if request.turn + 1 >= request.turns:
            return None
        record = records[0]
        if record.outcome != Outcome.OK or record.ended_ns is None or self.stopping:
            return None
        follow_up = self._loops[Kind(request.kind)].follow_up if self._closed else self._follow_up
        following = follow_up(request, None if record.usage is None else record.usage.completion)
        if following is None:
            return None
        due_ns = record.ended_ns + round(request.think_s * 1e9)
        next_work = self._prepare(None if work.due_ns is None else due_ns, (following,))
        gevent.sleep(max(0, self._origin_ns + due_ns - now_ns()) / 1e9)
        return next_work

    # -- dispatching ------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Walk the absolute schedule. Requests are made and encoded before they are due."""
        shards = self._lease.shards
        run_callback = gevent.get_hub().loop.run_callback
        for position, due_ns in enumerate(self._due_ns, self._first):
            seq = self._lease.shard + position * shards
            work = self._prepare(due_ns, self._request_of(seq))
            instant_ns = self._origin_ns + due_ns
            if instant_ns > now_ns():
                self._alarm.sleep_until(instant_ns)
            else:
                gevent.sleep(0)  # behind time: let the users run, in order
            if not self._await_grant(due_ns):
                break
            kind = work.calls[0].request.kind
            idle = self._idle[kind]
            if idle:
                self._started += 1
                run_callback(idle.pop().switch, work)
            elif self._patience_ns:
                work = msgspec.structs.replace(work, queued_ns=now_ns() - self._origin_ns)
                self._waiting[kind].append((instant_ns + self._patience_ns, work))
            else:
                self._drop(work)
        while any(self._waiting.values()):
            gevent.sleep(0.01)
            self._drop_waiting(now_ns())
        if not self.in_flight:
            self.exhausted.set()

    def _await_grant(self, due_ns: int) -> bool:
        """Wait until an arrival may be sent; False if it is a spare's."""
        while not self._tenure.covers(due_ns):
            if self._tenure.over:
                return False
            self._granted.clear()
            self._granted.wait()
        return True

    def _prepare(self, due_ns: int | None, requests: Iterable[Request]) -> _Work:
        target = self._lines.target
        return _Work(due_ns, [prepare(request, target) for request in requests])

    def _take_waiting(self, kind: Kind) -> _Work | None:
        """The longest-waiting arrival of this kind whose patience has not ended."""
        queue = self._waiting[kind]
        self._drop_waiting(now_ns())
        if not queue:
            return None
        self._started += 1
        return queue.popleft()[1]

    def _drop_waiting(self, until_ns: float) -> None:
        for queue in self._waiting.values():
            while queue and queue[0][0] <= until_ns:
                self._drop(queue.popleft()[1])

    def _drop(self, work: _Work) -> None:
        self._dropped += 1
        self._fresh += [_dropped(call.request, work) for call in work.calls]

    def _wake_idle(self) -> None:
        run_callback = gevent.get_hub().loop.run_callback
        for idle in self._idle.values():
            while idle:
                run_callback(idle.pop().switch, None)

    # -- the books --------------------------------------------------------------------------------------

    def _hand_on_for_ever(self) -> None:
        while True:
            gevent.sleep(_HAND_ON_S)
            self._hand_on()

    def _hand_on(self) -> None:
        """Give the log what has come since the last time, and Locust the final records of it."""
        records = self._fresh.copy()
        self._fresh.clear()
        self._teller.add([record for record in records if record.final])
        self._log.extend(records)

    # -- the instrument's own health -----------------------------------------------------------------------

    def _sample_for_ever(self) -> None:
        # Not all at once: the master would get a second's pieces of all workers in one moment.
        gevent.sleep(_SAMPLE_S * self._lease.shard / self._lease.shards)
        while True:
            gevent.sleep(_SAMPLE_S)
            self._drop_waiting(now_ns())
            self._take_sample()
            self._hand_on()
            self._log.flush()

    def _take_sample(self) -> None:
        elapsed_ns = now_ns() - self._origin_ns
        due = self._claimed if self._closed else bisect_right(self._due_ns, elapsed_ns)
        sample = self._health.sample(
            t_ns=elapsed_ns,
            worker=self._lease.worker,
            due=due,
            started=self._started,
            dropped=self._dropped,
            finished=self._finished,
            in_flight=self.in_flight,
            wall_clock_ns=anchor().wall_of(self._origin_ns + elapsed_ns),
        )
        line = msgspec.json.encode(sample) + b"\n"
        self._samples.write(line)
        if self._ship is not None:
            self._ship(self._samples_path.name, line)


def _look_at_the_stack() -> None:
    """Do what Locust's stop will do to name its caller.

    The first such look in a process searches all of its modules for 40 ms and more, in which requests that
    are still under way would be stamped late; a later one takes a fifth of a millisecond.
    """
    inspect.getframeinfo(inspect.stack()[1][0])


def _make_room(connections: int) -> None:
    """Have the kernel widen this process's table of descriptors now, not when the connections come.

    Linux doubles it when it is full, and where there are threads each doubling waits for a grace
    period of RCU: 10 ms in which nothing is sent.
    """
    highest = connections + _OTHER_FILES
    if highest >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        return  # the limit will be met first, and says so itself
    spare = os.open(os.devnull, os.O_RDONLY)
    os.close(fcntl.fcntl(spare, fcntl.F_DUPFD_CLOEXEC, highest))
    os.close(spare)


def apart(compute: Callable[Args, Computed], *args: Args.args, **kwargs: Args.kwargs) -> Computed:
    """Compute in a thread, so that the event loop turns meanwhile.

    A long schedule or trace takes many seconds; a worker whose heartbeats stop is taken for lost.
    """

    def attempt() -> tuple[Computed | None, Exception | None]:
        try:
            return compute(*args, **kwargs), None
        except Exception as error:  # noqa: BLE001 - raised below; from there, gevent would print it first
            return None, error

    answer, error = gevent.get_hub().threadpool.apply(attempt)
    if error is not None:
        raise error
    return cast(Computed, answer)


def blame(error: BaseException) -> str:
    """What keeps a worker from going on: a mistake, a want of the machine's, or a bug."""
    if isinstance(error, HarnessError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"a bug, {type(error).__name__}: {error}"


def _share(scenario: Scenario, lease: Lease) -> tuple[array[int], int]:
    """This worker's due times, and the position of the first; that at i has seq = shard + i * shards."""
    own = shard(arrivals(scenario), lease.shard, lease.shards)
    due_ns = array("q", (arrival.due_ns for arrival in own))
    first = bisect_left(due_ns, lease.since_ns)
    return due_ns[first:], first


def _loops(scenario: Scenario, lease: Lease) -> dict[Kind, _Loop]:
    kinds = sorted({Kind(entry.kind) for entry in scenario.traffic})
    return {
        kind: _Loop(
            claims=claims(lease.shard, lease.shards, number, len(kinds)),
            request_of=workload(_only(scenario, kind)),
            follow_up=follow_ups(_only(scenario, kind)),
        )
        for number, kind in enumerate(kinds)
    }


def _only(scenario: Scenario, kind: str) -> Scenario:
    traffic = tuple(entry for entry in scenario.traffic if entry.kind == kind)
    return msgspec.structs.replace(scenario, traffic=traffic)


def _dropped(request: Request, work: _Work) -> Record:
    """The record of an arrival for which no virtual user was idle in time."""
    return Record(
        seq=request.seq,
        index=request.index,
        attempt=0,
        final=True,
        request_id=request.id,
        kind=request.kind,
        dialect=request.dialect,
        model=request.model,
        session=request.session,
        turn=request.turn,
        trace_id="",
        span_id="",
        due_ns=work.due_ns,
        started_ns=None,
        connected_ns=None,
        sent_ns=None,
        headers_ns=None,
        first_event_ns=None,
        first_token_ns=None,
        first_content_ns=None,
        chunk_ns=(),
        ended_ns=None,
        held_ns=0,
        status=None,
        outcome=Outcome.DROPPED,
        error=NO_USER,
        finish_reason=None,
        usage=None,
        retry_after_s=None,
        reused_connection=False,
        wire="",
        bytes_in=0,
        bytes_out=0,
        tags=request.tags,
        queued_ns=work.queued_ns,
    )


_FILES = Path("/proc/self/fd")


class _Health:
    """Watches the process it runs in: how late its event loop is, how long its collections take."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._files_counted = False
        self._rss_bytes = 0
        self._hub_lag_max_ns = 0
        self._hub_stalls_ns: list[int] = []
        self._gc_pause_max_ns = 0
        self._gc_began_ns = 0

    def start(self) -> None:
        # Since Linux 6.2 the folder's size is how many there are.
        self._files_counted = _FILES.exists() and _FILES.stat().st_size == self._process.num_fds() - 1
        read_stamps()  # its trial takes a moment, now and not when the first connection is made
        READ_LAG.take()
        self._cpu_s = time.process_time()
        self._wall_ns = self._probed_ns = now_ns()
        self._probe = gevent.get_hub().loop.timer(_HUB_PROBE_S, repeat=_HUB_PROBE_S)
        self._probe.start(self._on_probe)
        gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        self._probe.close()
        gc.callbacks.remove(self._on_collection)

    def sample(self, **counts: int) -> Sample:
        cpu_s, wall_ns = time.process_time(), now_ns()
        rss_bytes, open_files, limit = self._held()
        sample = Sample(
            **counts,
            cpu_s=cpu_s - self._cpu_s,
            wall_s=(wall_ns - self._wall_ns) / 1e9,
            hub_lag_max_ns=self._hub_lag_max_ns,
            gc_pause_max_ns=self._gc_pause_max_ns,
            rss_bytes=rss_bytes,
            open_files=open_files,
            file_limit=limit,
            hub_stalls_ns=tuple(self._hub_stalls_ns),
            read_lag_max_ns=READ_LAG.take(),
        )
        self._hub_stalls_ns.clear()
        self._cpu_s, self._wall_ns = cpu_s, wall_ns
        self._hub_lag_max_ns = self._gc_pause_max_ns = 0
        return sample

    def _held(self) -> tuple[int, int, int]:
        """Resident bytes, open files, and how many may be: at that limit none is left to ask with."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            self._rss_bytes = self._process.memory_info().rss
            return self._rss_bytes, self._open_files(), limit
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            return self._rss_bytes, limit, limit

    def _open_files(self) -> int:
        """How many; listing a thousand of them holds the event loop for a millisecond and more."""
        return _FILES.stat().st_size if self._files_counted else self._process.num_fds()

    def _on_probe(self) -> None:
        moment_ns = now_ns()
        lag_ns = moment_ns - self._probed_ns - int(_HUB_PROBE_S * 1e9)
        self._hub_lag_max_ns = max(self._hub_lag_max_ns, lag_ns)
        if lag_ns > _STALL_NS:
            self._hub_stalls_ns.append(lag_ns)
        self._probed_ns = moment_ns

    def _on_collection(self, phase: str, _details: dict[str, int]) -> None:
        if phase == "start":
            self._gc_began_ns = now_ns()
        else:
            self._gc_pause_max_ns = max(self._gc_pause_max_ns, now_ns() - self._gc_began_ns)
