"""Claims about the truth log and the pacer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from array import array
from pathlib import Path

from harness.mock.pacer import Pacer
from harness.mock.truth import Entry, Log


def entry(number: int, chunks: int = 0) -> Entry:
    return Entry(f"r{number}", number, "/x", "1.1", number, chunk_ns=array("q", range(chunks)))


def ids(lines: bytes) -> list[str]:
    return [json.loads(line)["request_id"] for line in lines.splitlines()]


def test_pages_follow_each_other_without_gap_or_repeat():
    log = Log()
    for number in range(5):
        log.append(entry(number))
    first, position = log.page(0, 2)
    second, position = log.page(position, 2)
    log.append(entry(5))
    third, position = log.page(position, 2)
    assert ids(first + second + third) == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert log.page(position, 2) == (b"", position)
    assert position == log.next


def test_the_oldest_are_forgotten_first_and_counted():
    log = Log(requests=3)
    for number in range(10):
        log.append(entry(number))
    assert ids(log.page(0, 100)[0]) == ["r7", "r8", "r9"]
    assert ids(log.page(8, 100)[0]) == ["r8", "r9"]
    assert log.forgotten == 7


def test_long_streams_count_by_their_stamps():
    log = Log(stamps=100)
    for number in range(5):
        log.append(entry(number, chunks=40))
    assert ids(log.page(0, 100)[0]) == ["r3", "r4"]


def test_the_file_begins_with_the_clock_and_the_count_of_the_forgotten(tmp_path: Path):
    log = Log(requests=1)
    log.append(entry(1))
    log.append(entry(2, chunks=3))
    log.write(tmp_path / "truth.jsonl")
    head, *rows = (json.loads(line) for line in (tmp_path / "truth.jsonl").read_bytes().splitlines())
    assert head["forgotten"] == 1
    assert set(head["clock"]) == {"wall_ns", "monotonic_ns", "boot_id"}
    assert [row["chunk_ns"] for row in rows] == [[0, 1, 2]]


def test_the_clock_pairs_the_two_clocks_of_one_instant():
    clock = Log().clock
    skew_ns = (time.time_ns() - clock.wall_ns) - (time.monotonic_ns() - clock.monotonic_ns)
    assert abs(skew_ns) < 50_000_000


def test_the_pacer_calls_in_order_of_due_times_and_never_early():
    rng = random.Random(5)
    offsets = [rng.randrange(20_000_000) for _ in range(200)]
    called: list[tuple[int, int]] = []

    async def play() -> None:
        pacer = Pacer(asyncio.get_running_loop())
        start = time.monotonic_ns()
        for offset in offsets:
            due = start + offset
            pacer.at(due, lambda due=due: called.append((due, time.monotonic_ns())))
        done = asyncio.get_running_loop().create_future()
        pacer.at(start + 20_000_000, lambda: done.set_result(None))
        await asyncio.wait_for(done, 5)

    asyncio.run(play())
    assert [due for due, _ in called] == sorted(due for due, _ in called)
    assert all(at >= due for due, at in called)


def test_a_call_that_fails_does_not_hold_up_the_others():
    called: list[str] = []
    blamed: list[object] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: blamed.append(context["exception"]))
        pacer = Pacer(loop)
        done = loop.create_future()
        pacer.at(0, lambda: called[0])  # An IndexError.
        pacer.at(1, lambda: done.set_result(None))
        await asyncio.wait_for(done, 5)

    asyncio.run(play())
    assert isinstance(blamed[0], IndexError)


def test_what_is_asked_for_while_calling_is_called_too():
    async def play() -> list[str]:
        pacer = Pacer(asyncio.get_running_loop())
        called: list[str] = []
        done = asyncio.get_running_loop().create_future()
        pacer.at(0, lambda: (called.append("outer"), pacer.at(0, lambda: done.set_result(None))))
        await asyncio.wait_for(done, 5)
        return called

    assert asyncio.run(play()) == ["outer"]
