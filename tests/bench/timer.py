"""A timerfd on the monotonic clock: the event loop's own timers are rounded to a millisecond."""

import ctypes
import os
import struct
import time

_libc = ctypes.CDLL(None, use_errno=True)


def create() -> int:
    """A file that becomes readable when the timer goes off."""
    fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "no timer")
    return fd


def arm(fd: int, at: float, every: float = 0.0) -> None:
    """Go off at a moment of `time.perf_counter`, and if so asked again and again after it."""
    times = [int(part) for t in (every, max(at, 1e-9)) for part in divmod(round(t * 1e9), 1_000_000_000)]
    if _libc.timerfd_settime(fd, 1, struct.pack("4q", *times), None):
        raise OSError(ctypes.get_errno(), "no timer")


def expired(fd: int) -> int:
    """How often it went off since the last call."""
    return int(struct.unpack("Q", os.read(fd, 8))[0])
