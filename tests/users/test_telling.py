"""What Locust is told, in a process of its own: importing Locust monkey-patches."""

from __future__ import annotations

from typing import Any

import aside

SETUP = """
    import json
    import harness.users
    from factories import record
    from locust.env import Environment
    from locust.event import Events
    from unittest import mock
    from harness.record import Outcome
    from harness.users import telling
    from harness.users.telling import Audience

    def environment():
        made = Environment(user_classes=[], events=Events())
        made.create_local_runner()
        return made

    def statistics(environment):
        '''All that Locust holds, but for when it began to.'''
        entries = [environment.stats.total, *environment.stats.entries.values()]
        kept = [entry.serialize() for entry in entries]
        return [
            [{key: value for key, value in entry.items() if key != "start_time"} for entry in kept],
            [[each.method, each.name, repr(each.error), each.occurrences]
             for each in environment.stats.errors.values()],
        ]

    def one(seq, kind="completion", outcome=Outcome.OK, after_ms=100, due_ms=None, **changes):
        due_ns = None if due_ms is None else due_ms * 1_000_000
        ended_ns = None if after_ms is None else int((due_ms or 0) * 1e6 + after_ms * 1e6)
        error = "" if outcome == Outcome.OK else "no answer"
        return record(seq=seq, kind=kind, outcome=outcome, due_ns=due_ns, started_ns=0,
                      ended_ns=ended_ns, bytes_in=seq * 10, error=error, **changes)

    RECORDS = [
        *[one(seq, after_ms=0.4 + 7.3 * seq) for seq in range(40)],
        one(40, due_ms=20, after_ms=145.4),
        one(41, kind="stream", after_ms=12345.6),
        one(42, outcome=Outcome.STALLED, after_ms=2_000),
        one(43, outcome=Outcome.STALLED, after_ms=3_000),
        one(44, kind="stream", outcome=Outcome.DROPPED, due_ms=5, after_ms=None),
        one(45, kind="stream", after_ms=1),
    ]
"""


def said_by(*scripts: str) -> Any:
    """What scripts print after the set-up."""
    return aside.said_by(SETUP, *scripts)


def test_locusts_statistics_are_those_of_its_event_fired_for_each_record() -> None:
    blocks, events = said_by("""
        by_blocks, by_events = environment(), environment()
        audience = Audience(by_blocks)
        with mock.patch("time.time", lambda: 1_000_000.5):
            audience.tell(RECORDS[:30])
            audience.tell(RECORDS[30:])
            for each in RECORDS:
                telling._fire([by_events.events.request.fire], each)
        print(json.dumps([statistics(by_blocks), statistics(by_events)]))
    """)
    (total, *_), errors = blocks
    assert total["num_requests"] == 46
    assert total["num_none_requests"] == 1
    assert total["num_failures"] == 3
    assert errors[0][3] == 2
    for entries in (blocks[0], events[0]):
        for entry in entries:
            entry["total_response_time"] = round(entry["total_response_time"], 6)
    assert blocks == events


def test_locusts_current_percentiles_are_those_of_its_event() -> None:
    """They leave out what the cache held ten seconds ago: so it must not hold the newest."""
    blocks, events = said_by("""
        by_blocks, by_events = environment(), environment()
        audience, now_s, said = Audience(by_blocks), [1_000_000.5], ([], [])
        waves = {0: 8, 31: 8, 32: 1, 62: 3}
        with mock.patch("time.time", lambda: now_s[0]):
            for each in (by_blocks, by_events):
                each.stats.reset_all()
            for second in range(80):
                now_s[0] = 1_000_000.5 + second
                wave = [one(seq, after_ms=100 * second) for seq in range(waves.get(second, 0))]
                if wave:
                    audience.tell(wave)
                for each in wave:
                    telling._fire([by_events.events.request.fire], each)
                for each, heard in zip((by_blocks, by_events), said):
                    for entry in (each.stats.total, each.stats.get("chat", "completion")):
                        heard.append(entry.get_current_response_time_percentile(0.5))
        print(json.dumps(said))
    """)
    assert blocks == events
    assert len(set(blocks)) > 2


def test_a_listener_may_come_and_go_and_steer_the_user_that_it_takes_itself_for() -> None:
    heard, counted = said_by("""
        from locust.exception import StopUser

        def once(**event):
            heard.append(["once", event["context"]["seq"]])
            here.events.request.remove_listener(once)

        def unruly(**event):
            heard.append(["unruly", here.stats.total.num_requests])
            raise StopUser

        heard, here = [], environment()
        audience = Audience(here)
        here.events.request.add_listener(once)
        here.events.request.add_listener(unruly)
        audience.tell(RECORDS[:3])
        here.events.request.remove_listener(unruly)
        audience.tell(RECORDS[3:6])
        print(json.dumps([heard, here.stats.total.num_requests]))
    """)
    assert heard == [["once", 0], ["unruly", 3], ["unruly", 3], ["unruly", 3]]
    assert counted == 6


def test_a_listener_that_breaks_is_reported_as_locust_reports_it_and_silences_nobody() -> None:
    ours, locusts = said_by("""
        import logging
        from locust import log

        def broken(**event):
            raise LookupError(f"no such bucket as {event['name']}")

        class Notes(logging.Handler):
            def emit(self, entry): notes.append(entry.getMessage())

        logging.getLogger().addHandler(Notes())
        said = []
        for tell in (
            lambda here: Audience(here).tell(RECORDS[:2]),
            lambda here: [telling._fire([here.events.request.fire], each) for each in RECORDS[:2]],
        ):
            notes, heard, here = [], [], environment()
            log.unhandled_greenlet_exception = False
            here.events.request.add_listener(broken)
            here.events.request.add_listener(lambda **event: heard.append(event["context"]["seq"]))
            tell(here)
            first, *_, last = notes[0].splitlines()
            said.append([len(notes), first, last, heard, log.unhandled_greenlet_exception])
            assert "in broken" in notes[0]
        print(json.dumps(said))
    """)
    assert ours == locusts
    assert ours[0] == 2
    assert ours[2:] == ["LookupError: no such bucket as chat", [0, 1], True]


def test_a_listener_may_bring_another_and_fire_the_event_itself() -> None:
    heard, counted = said_by("""
        def newcomer(**event):
            heard.append(["newcomer", event["name"]])

        def busy(**event):
            heard.append(["busy", event["name"]])
            if event["name"] == "chat" and newcomer not in here.events.request._handlers:
                here.events.request.add_listener(newcomer)
                here.events.request.fire(request_type="GET", name="/", response_time=1, response_length=1)

        heard, here = [], environment()
        here.events.request.add_listener(busy)
        Audience(here).tell(RECORDS[:2])
        print(json.dumps([heard, here.stats.total.num_requests]))
    """)
    assert heard == [
        ["busy", "chat"],
        ["busy", "/"],
        ["newcomer", "/"],
        ["busy", "chat"],
        ["newcomer", "chat"],
    ]
    assert counted == 3


def test_no_listener_finds_more_than_a_block_in_the_statistics_that_it_has_not_heard_of() -> None:
    ahead = said_by("""
        heard, ahead, here = [], [], environment()

        def compare(**event):
            heard.append(event)
            ahead.append(here.stats.total.num_requests - len(heard))

        here.events.request.add_listener(compare)
        teller = telling.Teller(Audience(here).tell, print)
        for _ in range(10):
            teller.add(RECORDS)
        teller.stop()
        print(json.dumps(ahead))
    """)
    assert len(ahead) == 460
    assert max(ahead) == 63


def test_what_ends_the_telling_is_told_at_once_and_delays_no_request() -> None:
    said = said_by("""
        import gevent

        def broken(records):
            raise LookupError("no such bucket")

        failures = []
        teller = telling.Teller(broken, lambda error: failures.append(repr(error)))
        teller.add(RECORDS)
        gevent.sleep(0.2)
        before = list(failures)
        teller.add(RECORDS)
        teller.stop()
        print(json.dumps([before, failures]))
    """)
    assert said == [["LookupError('no such bucket')"]] * 2


def test_a_listener_hears_of_every_record_in_order_and_locust_counts_it_once() -> None:
    heard, counted = said_by("""
        heard, here = [], environment()
        here.events.request.add_listener(lambda **event: heard.append(
            [event["context"]["seq"], event["request_type"], event["response_time"], repr(event["exception"])]
        ))
        Audience(here).tell(RECORDS)
        print(json.dumps([heard, here.stats.total.num_requests]))
    """)
    assert [seq for seq, *_ in heard] == list(range(46))
    assert heard[40] == [40, "completion", 145.4, "None"]
    assert heard[42] == [42, "completion", 2000.0, "RemoteFault('stalled: no answer')"]
    assert heard[44] == [44, "stream", None, "RemoteFault('dropped: no answer')"]
    assert counted == 46


def test_what_else_fires_the_event_is_counted_too() -> None:
    counted = said_by("""
        here = environment()
        audience = Audience(here)
        audience.tell(RECORDS[:5])
        here.events.request.fire(request_type="GET", name="/", response_time=1, response_length=1)
        audience.tell(RECORDS[5:10])
        print(json.dumps([here.stats.total.num_requests, here.stats.get("/", "GET").num_requests]))
    """)
    assert counted == [11, 1]


def test_the_event_is_fired_as_it_is_where_locusts_own_listener_is_not_found() -> None:
    heard = said_by("""
        class Event:
            def fire(self, **event): heard.append(event["context"]["seq"])

        heard, here = [], environment()
        here.events.request = Event()
        Audience(here).tell(RECORDS[:3])
        print(json.dumps(heard))
    """)
    assert heard == [0, 1, 2]
