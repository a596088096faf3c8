"""Run a module under a sampling profiler: `python -m harness.sampling FILE MODULE [ARGUMENT...]`.

The kernel sends SIGPROF each time this process has used another slice of CPU (a tick: 4 ms on most
kernels, whatever is asked for), and the stack that runs then is noted. A deterministic profiler (cProfile)
was tried first: its book of calls and returns is torn by greenlet switches, and its cost a call makes
small functions look big. What is asleep uses no CPU and gets no ticks.

Only what starts fast may be imported here: Locust monkey-patches the process after this module has loaded.
"""

from __future__ import annotations

import dis
import json
import linecache
import runpy
import signal
import sys
import time
from pathlib import Path
from types import CodeType, FrameType

_ASKED_S = 0.001
_DEEPEST = 64

Place = tuple[CodeType, int, str]
"""A code object, the offset of the instruction that runs, and the module's name."""


class Sampler:
    """Notes the stack at each tick of the process's CPU clock."""

    def __init__(self) -> None:
        self._ticks: list[tuple[int, tuple[Place, ...]]] = []

    def start(self) -> None:
        """Start the clock; only in the main thread."""
        signal.signal(signal.SIGPROF, self._on_tick)
        signal.setitimer(signal.ITIMER_PROF, _ASKED_S, _ASKED_S)

    def stop(self) -> None:
        """Stop the clock: an unhandled SIGPROF would kill the process at its exit."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)

    def write(self, path: Path) -> None:
        """Write the stacks, each once, and the ticks that fell on them.

        Args:
            path: a JSON file, `{"stacks": [[[file, line, module, function, call], ...]], "ticks":
                [[ns, stack]]}`: frames from the innermost out, stamps by the monotonic clock; `call` is
                the expression that was being called, if one was.
        """
        numbers: dict[tuple[Place, ...], int] = {}
        ticks = [(t_ns, numbers.setdefault(stack, len(numbers))) for t_ns, stack in self._ticks]
        stacks = [[_frame(place) for place in _running(stack)] for stack in numbers]
        path.write_text(json.dumps({"stacks": stacks, "ticks": ticks}), encoding="utf-8")

    def _on_tick(self, _number: int, frame: FrameType | None) -> None:
        stack: list[Place] = []
        while frame is not None and len(stack) < _DEEPEST:
            stack.append((frame.f_code, frame.f_lasti, frame.f_globals.get("__name__", "")))
            frame = frame.f_back
        self._ticks.append((time.monotonic_ns(), tuple(stack)))


def _running(stack: tuple[Place, ...]) -> tuple[Place, ...]:
    """The stack without a function that had not begun.

    Python sees a signal between instructions. One that came while C code ran (the event loop) is seen
    at the entry of the next function that C code calls: the tick belongs to the caller.
    """
    return stack[1:] if len(stack) > 1 and _at_entry(*stack[0][:2]) else stack


def _at_entry(code: CodeType, offset: int) -> bool:
    entry = next((each.offset for each in dis.get_instructions(code) if each.opname == "RESUME"), 0)
    return offset <= entry


def _frame(place: Place) -> tuple[str, int, str, str, str]:
    code, offset, module = place
    return code.co_filename, code.co_firstlineno, module, code.co_qualname, _call(code, offset)


def _call(code: CodeType, offset: int) -> str:
    """The callee as it is written, `self._sock.recvmsg`, if the instruction is a call; else empty."""
    names = {each.offset: each.opname for each in dis.get_instructions(code)}
    if not names.get(offset, "").startswith("CALL"):
        return ""
    line, end_line, column, end_column = list(code.co_positions())[offset // 2]
    if line is None or column is None:
        return ""
    text = linecache.getline(code.co_filename, line).encode()
    return text[column : end_column if end_line == line else None].split(b"(")[0].decode().strip()


def main() -> None:
    """Run the module as `python -m` would, sampled, and write what was seen, however it ends."""
    file, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    sampler = Sampler()
    sampler.start()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sampler.stop()
        sampler.write(Path(file))


if __name__ == "__main__":
    main()
