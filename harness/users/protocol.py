"""Leases, drain and the end of a run, over Locust's own runners and messages.

    master (or the only process)                 worker
    ────────────────────────────                 ──────
    spawning_complete: make the run folder
                              ── lease ────────► build the share: schedule, prompts, connections
                              ◄─ ask, tell ────► how far apart the clocks are (offset.py)
                              ◄─ ready ─────────
    all ready: write run.json ── go(origin) ───► walk the schedule
    at each heartbeat         ── grant(until) ─► send no arrival due from there on (tenure.py)
                              ◄─ exhausted ─────  every arrival has ended, or what keeps them from it
    all exhausted: stop
    test_stopping:            ── drain ────────► stop dispatching, let requests end, close the log
                              ◄─ drained ───────  the books
    write end.json, wait for telemetry, judge

`test_stopping` fires inside Locust's stop and quit before anything else, whatever the cause (-t, the web
UI, Ctrl-C, the schedule's end), so no record is lost to a worker that is told to quit. Workers ignore
SIGINT until they have drained: the master decides.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import gevent
import msgspec
from dotenv import find_dotenv, load_dotenv
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from locust import User, events, runners
from locust.dispatch import UsersDispatcher
from locust.env import Environment
from locust.runners import STATE_MISSING, LocalRunner, MasterRunner, Runner, WorkerNode, WorkerRunner

from harness import __version__, clock, runlog
from harness.client.transport import read_stamps
from harness.errors import ConfigError, EngineError, HarnessError
from harness.record import End, Kind, WorkerLedger
from harness.users.freight import Inbox, Outbox
from harness.users.header import header
from harness.users.line import lines
from harness.users.offset import TRIES, Offset
from harness.users.telling import Audience
from harness.users.tenure import Grant, Tenures, told
from harness.users.worker import Lease, Worker, apart, blame
from harness.workload import scenario as scenarios
from harness.workload import schedule
from harness.workload.scenario import Closed, Scenario

READY_S = 300.0
"""A worker that has not built its share by then never will: a gamma schedule of 36 million takes 40 s."""
ANSWER_S = 10.0
"""How long a worker waits for the master to say what its clock shows."""
GO_AHEAD_S = 0.5
"""The start is set this far ahead, so that every worker has heard of it."""
FREIGHT_S = 10.0
"""How long a remote worker waits at the end for the master to have all of its log."""
TELEMETRY_S = 60.0
"""How long a run waits for what exports the spans: to load at its start, to be done at its end."""


class Plan(msgspec.Struct, frozen=True):
    """What `harness run` leaves in the run folder for the engine (plan.json)."""

    scenario: dict[str, Any]
    target: str
    mock: bool


_role: Local | Master | Member | None = None
"""What this process is; one Locust environment a process."""


def current() -> Local | Member:
    """The role of this process that carries traffic."""
    if not isinstance(_role, Local | Member):
        raise EngineError("users can only run in a Locust process that was started with a locustfile")
    return _role


class _Carrier:
    """What a process that carries traffic does: build its share, serve its users, drain."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.worker: Worker | None = None
        self._built = Event()
        self._audience = Audience(environment)

    def build(
        self,
        scenario: Scenario,
        target: str,
        lease: Lease,
        ship: Callable[[str, bytes], None] | None = None,
    ) -> Worker:
        shared = lines(target, scenario, os.environ, worker=lease.worker)
        self.worker = Worker(scenario, lease, shared, self._audience.tell, ship)
        self._built.set()
        return self.worker

    def serve(self, kind: Kind) -> None:
        """Be a virtual user of this kind until the run is over."""
        self._built.wait()
        worker = self.worker
        assert worker is not None
        try:
            worker.serve(kind)
        except Exception as bug:  # Locust would log it and let the others go on
            worker.fail(bug)
            raise

    def forget(self) -> None:
        """Let go of a share that no run has begun: the next run's users must not serve it."""
        worker = self.worker
        if worker is not None and not worker.begun:
            self.worker = None
            self._built.clear()
            worker.discard()

    def drain(self, patience_s: float) -> WorkerLedger:
        assert self.worker is not None
        hurried = Event()
        before = signal.signal(signal.SIGINT, lambda *_: hurried.set())
        try:
            return self.worker.drain(patience_s, hurried.is_set)
        finally:
            signal.signal(signal.SIGINT, before)
            self.worker = None
            self._built.clear()


class _Conductor:
    """What the process that decides does: the folder, the header, the end."""

    def __init__(self, environment: Environment, runner: Runner) -> None:
        options = _options(environment)
        self.environment = environment
        self.runner = runner
        self.plan_folder = Path(options.run_folder) if options.run_folder else None
        self.mock = False
        if self.plan_folder is not None:
            plan = msgspec.json.decode((self.plan_folder / "plan.json").read_bytes(), type=Plan)
            self.scenario = scenarios.from_builtins(plan.scenario)
            self.mock = plan.mock
            environment.host = plan.target
        else:
            self.scenario = scenarios.load(Path(options.scenario) if options.scenario else None)
        self.folder: Path | None = None
        self.running = self.complete = False
        self.failures: list[str] = []
        """What kept workers from going on; the run ends by the first."""
        self._ending = BoundedSemaphore()
        """Held by whoever ends the run: a second cause (Ctrl-C in the last drain, say) waits for it."""
        self._emitter: subprocess.Popen[bytes] | None = None
        self._outset: gevent.Greenlet | None = None
        """Sets the run out, and sees to its end."""
        self.scenario = _fit_users(environment, self.scenario)
        _default_options(environment, self.scenario)
        signal.signal(signal.SIGINT, _interrupt)
        self._parent = os.getppid()
        if self.plan_folder is not None:
            gevent.spawn(_end_with, self._parent)
        # Locust ends when its CPU monitor dies, as it does for want of open files: this outlives it.
        runner.greenlet.spawn(Event().wait)
        for hook, listener in (
            (environment.events.test_start, self._on_test_start),
            (environment.events.spawning_complete, self._on_spawning_complete),
            (environment.events.test_stopping, self._on_test_stopping),
            (environment.events.test_stop, self._on_test_stop),
        ):
            hook.add_listener(listener)  # type: ignore[no-untyped-call]

    def _on_test_start(self, **_: object) -> None:
        self.running = self.complete = False
        self.failures = []
        self.folder = None

    def _on_spawning_complete(self, **_: object) -> None:
        if not self.running:
            self.running = True
            self._outset = gevent.spawn(self._set_out)
            self._outset.link_exception(lambda broken: self._give_up(broken.exception))

    def _set_out(self) -> None:
        try:
            self.target = _target(self.environment, self.scenario)
            root = Path(_options(self.environment).runs)
            self.folder = self.plan_folder or runlog.create(root, self.scenario.name, datetime.now(UTC))
            self._begin()
        except HarnessError as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """A run that cannot begin says why and ends, whatever Locust makes of it."""
        print(f"harness: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the user's answer
        self.running = False
        self.environment.process_exit_code = 2
        self.runner.quit()

    def _begin(self) -> None:
        raise NotImplementedError

    def _drain(self) -> None:
        raise NotImplementedError

    def _write_header(self, workers: int) -> clock.Anchor:
        assert self.folder is not None
        now = clock.anchor()
        ahead_ns = int(GO_AHEAD_S * 1e9)
        start = clock.Anchor(wall_ns=now.wall_ns + ahead_ns, monotonic_ns=now.monotonic_ns + ahead_ns)
        run = header(
            self.scenario,
            target=self.target,
            workers=workers,
            start=start,
            mock=self.mock,
            stamps=read_stamps(),
        )
        if not self.running:  # called off meanwhile
            raise gevent.GreenletExit
        runlog.write_json(self.folder / "run.json", run)
        return start

    def _start_telemetry(self) -> None:
        """Start what follows the log, and let it load first: it must not share the CPU with the start."""
        if not self.scenario.telemetry:
            return
        self._emitter = _spawn_verb("emit", str(self.folder), stdout=subprocess.PIPE)
        assert self._emitter.stdout is not None
        with gevent.Timeout(TELEMETRY_S, exception=False):
            self._emitter.stdout.readline()

    def _on_exhausted(self, failure: str = "") -> None:
        """The schedule has ended by itself, or a worker cannot go on: stop, as the user would."""
        if failure and failure not in self.failures:
            self.failures.append(failure)
            print(f"harness: {failure}", file=sys.stderr, flush=True)  # noqa: T201 - the user's answer
        if self._ending.locked() or not self.running:
            return  # a drain has ended it
        self.complete = not self.failures
        self._stop()

    def _stop(self) -> None:
        """Have Locust stop, and end where nobody could start anew."""
        headless = self.environment.web_ui is None or _options(self.environment).autoquit >= 0
        gevent.spawn(self.runner.quit if headless else self.runner.stop)
        if headless and self.environment.web_ui is not None:
            gevent.spawn(self.environment.web_ui.stop)

    def _on_test_stopping(self, **_: object) -> None:
        with self._ending:
            if not self.running:
                return
            if not self._begun:
                self._call_off()
                return
            assert self.folder is not None
            if runlog.read_end(self.folder) is not None:
                return
            complete = self.complete
            self._drain()
            planned = apart(schedule.planned, self.scenario)
            left = sum(ledger.not_started for ledger in runlog.read_ledgers(self.folder))
            reason = "completed" if complete and not left else "interrupted"
            # If `harness run` is gone, its mock is, too: what was under way failed by that.
            if self.plan_folder is not None and os.getppid() != self._parent:
                reason = "killed"
            end = End(planned=planned, stop_reason=reason, faults=self._faults())
            runlog.write_json(self.folder / "end.json", end)

    def _faults(self) -> list[str]:
        """One sentence for each thing that went wrong with this run's engine."""
        return self.failures

    @property
    def _begun(self) -> bool:
        return self.folder is not None and (self.folder / "run.json").exists()

    def _call_off(self) -> None:
        """Stopped before it began: what sets the run out must not begin it when its users are gone."""
        self.running = False
        if self._outset is not None and self._outset is not gevent.getcurrent():
            self._outset.kill()

    def _on_test_stop(self, **_: object) -> None:
        with self._ending:
            self._end()

    def await_end(self) -> None:
        """Wait for whoever is ending the run, so that the exit code is the verdict's."""
        with self._ending:
            return

    def _end(self) -> None:
        begun = self._begun
        if self._emitter is not None and not begun:
            self._emitter.terminate()  # it would wait for a header that will not come
        if self._emitter is not None:
            with gevent.Timeout(TELEMETRY_S, exception=False):
                while self._emitter.poll() is None:
                    gevent.sleep(0.05)
            if self._emitter.poll() is None:
                self._emitter.kill()
            self._emitter = None
        if not begun or not self.running:
            return
        self.running = False
        self.environment.process_exit_code = 0
        if self.plan_folder is None:  # nobody above us will judge
            report = _spawn_verb("report", str(self.folder))
            while report.poll() is None:
                gevent.sleep(0.05)
            self.environment.process_exit_code = report.returncode


class Local(_Carrier, _Conductor):
    """The only process of a run: decides and carries."""

    def __init__(self, environment: Environment, runner: LocalRunner) -> None:
        _Carrier.__init__(self, environment)
        _Conductor.__init__(self, environment, runner)

    def _begin(self) -> None:
        assert self.folder is not None
        self._start_telemetry()
        worker = self.build(
            self.scenario, self.target, Lease(folder=str(self.folder), worker=0, shard=0, shards=1)
        )
        worker.start(self._write_header(workers=1).monotonic_ns)
        worker.exhausted.wait()
        if self.worker is worker:
            self._on_exhausted(_failure(0, worker.failure))

    def _call_off(self) -> None:
        super()._call_off()
        self.forget()

    def _drain(self) -> None:
        worker = self.worker
        if worker is not None:
            self.drain(self.scenario.drain_s)
            self._on_exhausted(_failure(0, worker.failure))


class Master(_Conductor):
    """Decides for the workers, carries nothing."""

    def __init__(self, environment: Environment, runner: MasterRunner) -> None:
        super().__init__(environment, runner)
        self.runner: MasterRunner = runner
        # Locust would forget a lost worker a minute later, and deal out all users anew: some are busy.
        runners.HEARTBEAT_DEAD_INTERNAL = -sys.maxsize
        self._shards = 0
        self._files: dict[str, str] = {}
        """What the traces and data sets hold, by digest."""
        self._leases: dict[str, Lease] = {}
        self._tenures = Tenures()
        self._heirs: dict[str, str] = {}
        """Which spare has the share of which lost worker, by client."""
        self._unfit: dict[str, str] = {}
        """What kept spares from taking a share over, by client."""
        self._heard: dict[str, set[str]] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._start: clock.Anchor | None = None
        for kind in ("ready", "exhausted", "drained"):
            runner.register_message(f"harness.{kind}", self._on_message)
        runner.register_message("harness.ask", self._on_ask)
        runner.register_message("harness.piece", self._on_piece)
        environment.events.heartbeat_sent.add_listener(self._on_heartbeat)  # type: ignore[no-untyped-call]

    def _begin(self) -> None:
        self._start_telemetry()
        ids = sorted(node.id for node in self.runner.clients.running + self.runner.clients.spawning)
        self._shards = len(ids)
        self._leases, self._inboxes, self._start = {}, {}, None
        self._tenures, self._heirs, self._unfit = Tenures(), {}, {}
        self._heard = {"ready": set(), "exhausted": set(), "drained": set()}
        self._files = apart(scenarios.digests, self.scenario)
        for number, client in enumerate(ids):
            self._lease(client, Lease(str(self.folder), number, number, self._shards, until_ns=self._fence))
        if not self._await("ready", READY_S) and self.running:
            late = [self._leases[client].worker for client in self._live() - self._heard["ready"]]
            raise EngineError(f"workers {sorted(late)} have not built their shares within {READY_S:g} s")
        if not self.running:
            return
        if not self._live():
            raise EngineError("every worker was lost before the start")
        start = self._write_header(workers=self._shards)
        # Who is ready from now on is told so at once, and nobody twice.
        ready, self._start = self._heard["ready"].copy(), start
        for client in ready:
            self._go(client)
        if self._await("exhausted", None, meanwhile=self._take_over):
            self._on_exhausted("" if self._live() else "every worker was lost")

    def _call_off(self) -> None:
        super()._call_off()
        if not self.runner.worker_count:  # why Locust has stopped
            gevent.spawn(self._give_up, EngineError("every worker was lost before the start"))

    def _lease(self, client: str, lease: Lease) -> None:
        self._leases[client] = lease
        assert self.folder is not None
        self._inboxes[client] = Inbox(self.folder)
        # A spare has no users yet: it is told to spawn as many as any other worker has.
        users = {
            name: math.ceil(count / self._shards)
            for name, count in self.runner.target_user_classes_count.items()
        }
        offer = {
            "scenario": scenarios.to_builtins(self.scenario),
            "target": self.target,
            "lease": msgspec.to_builtins(lease),
            "users": users,
            "version": __version__,
            "files": self._files,
        }
        self.runner.send_message("harness.lease", offer, client_id=client)

    def _go(self, client: str) -> None:
        assert self._start is not None
        self.runner.send_message("harness.go", {"start_ns": self._start.monotonic_ns}, client_id=client)
        self._grant(client)

    @property
    def _fence(self) -> int | None:
        """What a lease grants from the start: in an open model nothing, for a spare may take it over."""
        return None if isinstance(self.scenario.arrivals, Closed) else 0

    def _elapsed_ns(self) -> int:
        assert self._start is not None
        return max(0, clock.now_ns() - self._start.monotonic_ns)

    def _grant(self, client: str) -> None:
        grant = self._tenures.grant(client, self._elapsed_ns())
        if self._fence is not None:
            self.runner.send_message("harness.grant", msgspec.to_builtins(grant), client_id=client)

    def _on_heartbeat(self, client_id: str, **_: object) -> None:
        if self.running and self._start is not None and client_id in self._leases:
            self._grant(client_id)

    def _take_over(self) -> None:
        """Give what lost workers have left to spares; what was due meanwhile is lost, unless they return."""
        gone = self._miss()
        if not gone or self._fence is None:
            return
        spares = {node.id for node in self.runner.clients.ready} - self._leases.keys()
        for client, spare in zip(sorted(gone), sorted(spares), strict=False):
            lost, number = self._leases[client], len(self._leases)
            since_ns = self._tenures.end(client, spare, self._elapsed_ns())
            self._heirs[client] = spare
            self._lease(spare, Lease(lost.folder, number, lost.shard, lost.shards, since_ns, self._fence))

    def _dismiss(self, spare: str, failure: str) -> None:
        """A spare is not fit for a share: another may be, and without one the run goes on as before."""
        print(f"harness: {failure}", file=sys.stderr, flush=True)  # noqa: T201 - the user's answer
        self._unfit[spare] = failure
        for client in [lost for lost, heir in self._heirs.items() if heir == spare]:
            del self._heirs[client]
            self._tenures.refuse(client)

    def _miss(self) -> set[str]:
        """The workers that are lost with a part of their share, which no spare has."""
        gone = self._leases.keys() - {*self._live(), *self._heirs, *self._heard["exhausted"]}
        for client in gone:
            self._tenures.miss(client)
        return gone

    def _faults(self) -> list[str]:
        worker = {client: lease.worker for client, lease in self._leases.items()}
        silences, fenced = self._tenures.silences.items(), self._fence is not None
        return [
            *self.failures,
            *self._unfit.values(),
            *(
                told(worker[who], worker.get(self._heirs.get(who, "")), silence, fenced=fenced)
                for who, silence in silences
            ),
        ]

    def _drain(self) -> None:
        self._miss()
        # Those that are missing too: one that comes back must not go on.
        for client in self._leases:
            silence = self._tenures.silences.get(client)
            drain = {
                "patience_s": float(self.scenario.drain_s),
                "until_ns": None if silence is None else silence.since_ns,
            }
            self.runner.send_message("harness.drain", drain, client_id=client)
        self._await("drained", self.scenario.drain_s + 2 * FREIGHT_S)

    def _on_message(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        what = msg.type.removeprefix("harness.")
        self._heard[what].add(msg.node_id)
        if what == "ready" and self._start is not None:
            self._go(msg.node_id)
        if what in {"exhausted", "drained"} and msg.data:
            failure = _failure(self._leases[msg.node_id].worker, msg.data["failure"])
            if self._start is None:
                gevent.spawn(self._give_up, EngineError(failure))
            elif msg.node_id in self._heard["ready"]:
                self._on_exhausted(failure)
            else:
                self._dismiss(msg.node_id, failure)

    def _on_ask(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        answer = {"sent_ns": msg.data["sent_ns"], "masters_ns": clock.now_ns()}
        self.runner.send_message("harness.tell", answer, client_id=msg.node_id)

    def _on_piece(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        number = self._inboxes[msg.node_id].take(msg.data)
        self.runner.send_message("harness.ack", {"n": number}, client_id=msg.node_id)

    def _on_test_stop(self, **_: object) -> None:
        super()._on_test_stop()
        if not self._live():
            self._stop()  # Locust stops when its last worker goes missing, and leaves it at that

    def _live(self) -> set[str]:
        """The clients with a lease that are not missing."""
        return {each.id for each in self.runner.clients.all if each.state != STATE_MISSING} & {*self._leases}

    def _await(
        self, what: str, patience_s: float | None, *, meanwhile: Callable[[], None] = lambda: None
    ) -> bool:
        """Wait until every live worker has said it; False if the run stopped or patience ended first."""
        with gevent.Timeout(patience_s, exception=False):
            while self.running:
                meanwhile()
                if self._heard[what].issuperset(self._live()):
                    return True
                gevent.sleep(0.02)
        return False


class Member(_Carrier):
    """One of the master's workers."""

    def __init__(self, environment: Environment, runner: WorkerRunner) -> None:
        super().__init__(environment)
        self.runner = runner
        self._outbox: Outbox | None = None
        self._offset = Offset()
        self._told = Event()
        self._taking: gevent.Greenlet | None = None
        """Takes a lease up."""
        # Read now: the master's spawn message overwrites a worker's own options with the master's.
        self._own_folder: str = _options(environment).worker_folder
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the master decides
        runner.register_message("harness.lease", self._on_lease)
        runner.register_message("harness.tell", self._on_tell)
        runner.register_message("harness.go", self._on_go, concurrent=True)
        runner.register_message("harness.grant", self._on_grant)
        runner.register_message("harness.ack", self._on_ack)
        runner.register_message("harness.drain", self._on_drain, concurrent=True)
        environment.events.test_stopping.add_listener(self._on_test_stopping)  # type: ignore[no-untyped-call]

    def _on_test_stopping(self, **_: object) -> None:
        """The run is over; where it never began, so is the taking up of its lease."""
        if self._taking is not None:
            self._taking.kill()
        self.forget()

    def _on_lease(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        self._taking = gevent.spawn(self._take_up, msg.data)

    def _take_up(self, offer: dict[str, Any]) -> None:
        try:
            self._take(offer)
        except Exception as error:  # the master would wait for us
            self._say("exhausted", blame(error))
            if not isinstance(error, HarnessError):
                raise

    def _take(self, offer: dict[str, Any]) -> None:
        """Take a lease up: build its share, and say so.

        Raises:
            EngineError: this host is not fit for it.
        """
        scenario = scenarios.from_builtins(offer["scenario"])
        lease = msgspec.convert(offer["lease"], Lease)
        ship = None
        if self._own_folder or not Path(lease.folder).is_dir():  # the master's folder is on another host
            _check_fitness(scenario, offer)
            root = Path(self._own_folder or "runs")
            folder = runlog.create(root, f"{scenario.name}-{lease.worker}", datetime.now(UTC))
            lease = msgspec.structs.replace(lease, folder=str(folder))
            self._outbox = Outbox(lambda message: self.runner.send_message("harness.piece", message))
            ship = self._outbox.put
        self.build(scenario, offer["target"], lease, ship)
        if not self.runner.user_count:
            self.runner.spawn_users(offer["users"])
        self._ask()
        self.runner.send_message("harness.ready")

    def _ask(self) -> None:
        """Find out how far the master's clock is from ours."""
        self._offset = Offset()
        while self._offset.tries < TRIES:
            self._told.clear()
            self.runner.send_message("harness.ask", {"sent_ns": clock.now_ns()})
            if not self._told.wait(ANSWER_S):
                raise EngineError(f"the master did not say within {ANSWER_S:g} s what its clock shows")

    def _on_tell(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        self._offset.hear(msg.data["sent_ns"], msg.data["masters_ns"], clock.now_ns())
        self._told.set()

    def _on_go(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        worker = self.worker
        if worker is None:
            return
        worker.start(self._offset.ours(msg.data["start_ns"]))
        while not worker.exhausted.wait(1):
            if self._outbox is not None:
                self._outbox.resend()
        self._say("exhausted", worker.failure)

    def _say(self, what: str, failure: str) -> None:
        """Tell the master how far we are, and what kept us from going on, if anything did."""
        self.runner.send_message(f"harness.{what}", {"failure": failure} if failure else None)

    def _on_grant(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        if self.worker is not None:
            self.worker.grant(msgspec.convert(msg.data, Grant))

    def _on_ack(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        if self._outbox is not None:
            self._outbox.acknowledge(msg.data["n"])

    def _on_drain(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's signature
        worker = self.worker
        if worker is not None and not worker.begun:  # a spare whose share came too late
            self.forget()
        elif worker is not None:
            if msg.data["until_ns"] is not None:
                worker.grant(Grant(msg.data["until_ns"], last=True))
            self.drain(msg.data["patience_s"])
        if self._outbox is not None:
            self._outbox.flush(FREIGHT_S)
            self._outbox = None
        self._say("drained", "" if worker is None else worker.failure)
        signal.signal(signal.SIGINT, signal.default_int_handler)


class StickyDispatcher(UsersDispatcher):
    """Gives every worker its part of each class, and leaves users where they are.

    Locust deals users of alternating classes out to the workers in turn: of two classes and two workers,
    each worker would get one class whole, and half of its arrivals would find nobody.
    """

    _dealt: str | None = None

    def __init__(self, worker_nodes: list[WorkerNode], user_classes: list[type[User]]) -> None:
        super().__init__(worker_nodes, user_classes)
        self._worker_node_generator = self._places()  # type: ignore[assignment]

    def _user_gen(self) -> Iterator[str | None]:
        for self._dealt in super()._user_gen():
            yield self._dealt

    def _places(self) -> Iterator[WorkerNode]:
        """A round of the workers for each class, each begun at another worker."""
        rounds: dict[str | None, Iterator[WorkerNode]] = {}
        while True:
            if self._dealt not in rounds:
                begin = len(rounds) % len(self._worker_nodes)
                rounds[self._dealt] = cycle(self._worker_nodes[begin:] + self._worker_nodes[:begin])
            yield next(rounds[self._dealt])

    def add_worker(self, worker_node: WorkerNode) -> None:
        """Do nothing: it stays a spare."""

    def remove_worker(self, worker_node: WorkerNode) -> None:
        """Do nothing: a spare takes its share over, if there is one."""


def _failure(worker: int, failure: str) -> str:
    return failure and f"worker {worker} could not go on: {failure}"


def _check_fitness(scenario: Scenario, offer: dict[str, Any]) -> None:
    """Refuse a lease that this host would carry out otherwise than the master's would.

    Raises:
        EngineError: another version of the harness, or other traces or data sets than the master's.
    """
    if offer["version"] != __version__:
        raise EngineError(
            f"it has version {__version__} of the harness, the master {offer['version']}: install the same"
        )
    for path, digest in apart(scenarios.digests, scenario).items():
        if digest != offer["files"].get(path):
            raise EngineError(f"its {path} is not the master's: copy the same file to the same place")


def _fit_users(environment: Environment, scenario: Scenario) -> Scenario:
    """Make the locustfile's classes and the scenario's traffic fit; give back what will be sent.

    A locustfile that has no class for a kind leaves that kind out; a class whose kind the scenario
    lacks is not spawned. The classes' weights become the virtual users' shares.
    """
    carried: set[str] = set()
    for user_class in list(environment.user_classes):
        kind = getattr(user_class, "kind", None)
        entries = [entry for entry in scenario.traffic if entry.kind == kind]
        if not entries:
            environment.user_classes.remove(user_class)
            continue
        carried.add(str(kind))
        user_class.weight = sum(entry.weight for entry in entries)
        fixed = [entry.users for entry in entries if entry.users is not None]
        if len(fixed) == len(entries):
            user_class.fixed_count = sum(fixed)
    if not carried:
        kinds = ", ".join(sorted({entry.kind for entry in scenario.traffic}))
        raise ConfigError(
            f"scenario {scenario.name!r}", "traffic", kinds, "no user class of this locustfile carries that"
        )
    traffic = tuple(entry for entry in scenario.traffic if entry.kind in carried)
    return msgspec.structs.replace(scenario, traffic=traffic)


def _default_options(environment: Environment, scenario: Scenario) -> None:
    """Let the scenario say what -u and -r default to."""
    options = _options(environment)
    arrivals = scenario.arrivals
    if options.num_users is None:
        options.num_users = arrivals.users if isinstance(arrivals, Closed) else scenario.max_in_flight
    if options.spawn_rate is None:
        options.spawn_rate = options.num_users


def _options(environment: Environment) -> Any:
    """The parsed command line: always there, for only a locust process gets here."""
    assert environment.parsed_options is not None
    return environment.parsed_options


def _target(environment: Environment, scenario: Scenario) -> str:
    target = environment.host or scenario.target
    if target == "mock":
        raise ConfigError(
            "locust", "--host", None, "give the API's URL; the bundled mock is started by `harness run`"
        )
    return target


def _interrupt(_number: int, _frame: object) -> None:
    """Give Ctrl-C to Locust's main greenlet, which awaits it.

    Python's own way raises it wherever it strikes: in a virtual user that loses a record, in the middle
    of a batch it tears the log.
    """
    hub = gevent.get_hub()
    hub.loop.run_callback_threadsafe(hub.parent.throw, KeyboardInterrupt)


def _end_with(parent: int) -> None:
    """End the run as Ctrl-C would when `harness run` is gone: nobody else would stop the load."""
    while os.getppid() == parent:
        gevent.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)


def _spawn_verb(*arguments: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Run one of our own verbs beside this process, below its priority, deaf to the terminal's Ctrl-C."""
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.Popen(command, stdout=stdout, preexec_fn=_step_back)  # noqa: S603, PLW1509 - our own words; nothing is locked at the fork


def _step_back() -> None:
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the run, and Ctrl-C does not end that at once


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _on_parser(parser: ArgumentParser, **_: object) -> None:
    group = parser.add_argument_group("LLM load harness")
    group.add_argument("--scenario", env_var="HARNESS_SCENARIO", default="", help="Scenario file (YAML)")
    group.add_argument("--runs", env_var="HARNESS_RUNS", default="runs", help="Where run folders are made")
    group.add_argument(
        "--worker-folder", default="", help="Where a worker keeps its own log, and sends it to the master"
    )
    group.add_argument("--run-folder", default="", help="A run folder that `harness run` has prepared")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _on_init(environment: Environment, runner: Runner, **_: object) -> None:
    global _role  # noqa: PLW0603 - one Locust environment a process
    load_dotenv(find_dotenv(usecwd=True))
    environment.dispatcher_class = StickyDispatcher
    try:
        if isinstance(runner, WorkerRunner):
            _role = Member(environment, runner)
        elif isinstance(runner, MasterRunner):
            _role = Master(environment, runner)
        elif isinstance(runner, LocalRunner):
            _role = Local(environment, runner)
    except ConfigError as error:
        print(f"harness: {error}", file=sys.stderr)  # noqa: T201 - the user's answer
        sys.exit(2)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _on_quitting(environment: Environment, **_: object) -> None:
    """End the run before Locust takes the exit code: Ctrl-C comes here first."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        environment.process_exit_code = 0  # failed requests are results, not failures of the worker
    elif isinstance(runner, MasterRunner):
        runner.quit()
    elif runner is not None:
        runner.stop()
    if isinstance(_role, _Conductor):
        _role.await_end()
