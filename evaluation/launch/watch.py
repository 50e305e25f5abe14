"""The ranks of a launch give signs of life now and then, and one that is silent for long hangs.

A rank that computes or loads for hours is not silent, for its signs come from a thread; one that is stopped is. The
starter listens to the ranks that it has started. Ranks of an outer launcher listen to each other over its store.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from evaluation.launch.ending import Ending, leave, tell
from evaluation.launch.ranks import patience

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCES = 5  # silence of a rank that hangs, in patiences of the link: threads wait too where a library loads
FIRST = 2  # times as long without a first sign, which a rank gives when its interpreter has started
FIRST_ELSEWHERE = 4  # and where it must have loaded torch for it, perhaps on another node
SIGNS = 10  # within the silence of a rank that hangs


def silence() -> float:
    """Return after how many seconds without a sign of life a rank hangs."""
    return PATIENCES * patience()


class Silences:
    """This says how long each rank has been silent, by a clock that stands still while this process does, as after
    Ctrl-Z."""

    def __init__(self, ranks: Iterable[int], limit: float, first: float) -> None:
        """`first`: the limit of a rank that has given no sign yet."""
        self._limit = limit
        self._left = dict.fromkeys(ranks, first)  # seconds, of each rank
        self._now = time.monotonic()

    def heard(self, rank: int) -> None:
        if rank in self._left:
            self._left[rank] = self._limit

    def ended(self, rank: int) -> None:
        """Expect nothing more of the rank."""
        self._left.pop(rank, None)

    def too_long(self) -> int | None:
        """Return the first rank that hangs. It must be called several times within the limit."""
        now = time.monotonic()
        passed, self._now = min(now - self._now, self._limit / 4), now
        self._left = {rank: left - passed for rank, left in self._left.items()}
        return next((rank for rank, left in self._left.items() if left <= 0), None)


def hangs(rank: int) -> Ending:
    return Ending(
        1, f"rank {rank} has given no sign of life for long: it hangs (PEARL_BENCH_PATIENCE sets another limit)"
    )


class Watch:
    """A rank watches the others over the launch's store, where each counts its own signs of life."""

    def __init__(self, store: "Store", rank: int, world: int, limit: float, first: float) -> None:
        self._store, self._rank = store, rank
        self._counts = dict.fromkeys((other for other in range(world) if other != rank), 0)
        self._silences = Silences(self._counts, limit, first)

    def look(self) -> int | None:
        """Give a sign and look for those of the others. Returns the first rank that hangs. Raises RuntimeError without
        a store."""
        self._store.add(f"signs of {self._rank}", 1)
        for rank, known in self._counts.items():
            self._counts[rank] = self._store.add(f"signs of {rank}", 0)
            if self._counts[rank] != known:
                self._silences.heard(rank)
            if self._store.add(f"end of {rank}", 0):
                self._silences.ended(rank)
        return self._silences.too_long()

    def end(self) -> None:
        """Give no more signs."""
        self._store.add(f"end of {self._rank}", 1)


@contextmanager
def watching(rank: int, world: int) -> Iterator[None]:
    """End this rank, which an outer launcher has started, where another hangs or the launcher has ended."""
    limit, done = silence(), threading.Event()
    watch = threading.Thread(target=_watch, args=(rank, world, limit, done), daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join(limit / SIGNS)


def _watch(rank: int, world: int, limit: float, done: threading.Event) -> None:
    from torch._C._distributed_c10d import TCPStore

    first = FIRST_ELSEWHERE * limit
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=first))
        watch, hung = Watch(store, rank, world, limit, first), None
        while hung is None and not done.wait(limit / SIGNS):
            hung = watch.look()
        outcome = None if hung is None else hangs(hung)
        watch.end()
    except RuntimeError:
        outcome = Ending(1, f"rank {rank} has lost the store of its launch: the launcher, or another rank, has ended")
    if outcome is not None and not done.is_set():
        leave(tell(outcome))
