"""What this process reads: every linear layer adds the bytes of its weights when it is used. Two ranks that read one
memory slow each other down by it, so draft-then-verify says how much its drafter reads."""

import time
from typing import NamedTuple

_read = 0


class Moment(NamedTuple):
    """`seconds` of the monotonic clock, and `read`, bytes of weights since the process has begun."""

    seconds: float
    read: int


def add(weights: int) -> None:
    """So many bytes of weights are read."""
    global _read
    _read += weights


def moment() -> Moment:
    """Now."""
    return Moment(time.perf_counter(), _read)
