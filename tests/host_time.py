"""What a drafter's own work takes, beside the passes of models."""

import time
from collections.abc import Callable, Iterable
from statistics import median

HOST_LIMIT = 0.3e-3  # seconds of a round: 3% of a pass of 10 ms
SETTLED = 10  # rounds until what they need is there
TRIES = 12
YARDSTICK = 40e-6  # seconds that yardstick() takes where a pass takes the 10 ms


def yardstick() -> float:
    """The thread's own seconds for a fixed piece of work of the kind that drafters do: numbers in tuples, lists and
    tables."""
    begin = time.thread_time()
    table: dict[tuple[int, int], list[int]] = {}
    for number in range(400):
        table.setdefault((number % 37, number % 11), []).append(number)
    return time.thread_time() - begin


def usual(rounds: Callable[[], Iterable[float]]) -> float:
    """The median of the rounds, each at its fastest of some tries, as a processor takes that has YARDSTICK for that
    work: one that is slower, or whose caches others use, takes as much longer for both. `rounds`: the thread's own
    seconds in each, the same rounds in every try."""
    tries, works = [], []
    for _ in range(TRIES):
        works += [yardstick() for _ in range(5)]
        tries.append(list(rounds()))
    fastest = median(min(seconds) for seconds in list(zip(*tries, strict=True))[SETTLED:])
    return fastest * YARDSTICK / min(works)
