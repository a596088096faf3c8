"""Sleep under gevent until a monotonic instant, to some hundredths of a millisecond.

libev's epoll backend rounds every timeout up to a whole millisecond, so `gevent.sleep` is 0.4 to 0.9 ms
late. A timerfd is a file descriptor that becomes readable at an absolute CLOCK_MONOTONIC instant: the
kernel keeps the time, the hub waits for it like for any socket, and nothing spins. Where the platform
has none (macOS), `gevent.sleep` is used, and the lateness shows in the records.
"""

from __future__ import annotations

import ctypes
import os
import sys

import gevent

from harness.clock import now_ns

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """One timer, used by one greenlet at a time."""

    def __init__(self) -> None:
        self._fd = -1
        if sys.platform != "linux":
            return
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            return
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(self._fd, 1)
        self._spec = _TimerSpec()

    def sleep_until(self, instant_ns: int) -> None:
        """Return at or just after `instant_ns` on `harness.clock.now_ns`; at once if it has passed."""
        if instant_ns <= now_ns():
            return
        if self._fd < 0:
            gevent.sleep((instant_ns - now_ns()) / 1e9)
            return
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(instant_ns, 1_000_000_000)
        self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)
        self._hub.wait(self._watcher)
        os.read(self._fd, 8)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            self._watcher.close()
            os.close(self._fd)
            self._fd = -1
