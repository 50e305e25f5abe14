"""What a drafter's own work takes, beside the passes of models."""

from collections.abc import Callable, Iterable
from statistics import median

HOST_LIMIT = 0.3e-3  # seconds of a round: 3% of a pass of 10 ms
SETTLED = 10  # rounds until what they need is there
TRIES = 12


def usual(rounds: Callable[[], Iterable[float]]) -> float:
    """The median of the rounds, each at its fastest of some tries: others may share the processor's caches. `rounds`:
    the thread's own seconds in each, the same rounds in every try."""
    tries = [list(rounds()) for _ in range(TRIES)]
    return median(min(seconds) for seconds in list(zip(*tries, strict=True))[SETTLED:])
