"""This module starts the processes of a launch on this machine, as many as the methods need, and ends them together.

The starter alone speaks for the ranks: each tells it how it ended, and of all that it hears the cause is printed, once.
A rank dies with its starter, whatever ends that. A run that an outer launcher has started (`accelerate launch`,
`torchrun`: several nodes too) is left as it is.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NoReturn

from rich.console import Console

from evaluation.launch.ending import Ending, ending_of, flush, leave, tell, worst
from evaluation.launch.watch import FIRST, SIGNS, Silences, hangs, silence, watching

GRACE = 1.5  # seconds that the others have to end when one has failed, before they are made to
LOOK = 0.2  # seconds between two looks at the ranks
ENDING = {signal.SIGTERM, signal.SIGHUP}
PR_SET_PDEATHSIG = 1  # of prctl(2)


def launched() -> bool:
    """Return whether this process is one of a launch already."""
    return "RANK" in os.environ


def run_rank(main: Callable[[], int]) -> NoReturn:
    """Run `main` in this process, which an outer launcher has started, and end it."""
    rank, world = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))

    def watched() -> int:
        if world == 1:
            return main()
        with watching(rank, world):
            return main()

    leave(tell(ending_of(rank, watched)))


@dataclass
class _Rank:
    """A rank as its starter sees it: it sends None as a sign of life, and last its outcome."""

    number: int
    process: SpawnProcess
    news: Connection
    outcome: Ending | None = None

    def look(self) -> bool:
        """Read what the rank has told so far. Returns whether it has told something."""
        code = self.process.exitcode  # first: what it has sent before its end is there by now
        heard = False
        with suppress(EOFError, OSError):  # it is dead
            while self.outcome is None and self.news.poll():
                self.outcome, heard = self.news.recv(), True
        if self.outcome is None and code is not None:
            self.outcome = Ending(1, f"rank {self.number} {_death(code)}")
        return heard


def _death(code: int) -> str:
    """What ended a process, by its exit code."""
    if code >= 0:
        return f"ended with exit status {code} and did not tell why"
    names = {number.value: number.name for number in signal.Signals}
    hint = ", as the system does where memory runs out" if -code == signal.SIGKILL else ""
    return f"was ended by {names.get(-code, f'signal {-code}')}{hint}"


def launch(main: Callable[[], int], count: int) -> int:
    """Run `main`, a function of a module, in `count` processes. Returns the exit status: 2 if one has found a mistake
    of the user's, else that of the first to fail, else 0."""
    return tell(run_ranks(main, count))


def run_ranks(
    main: Callable[..., int],
    count: int,
    pipes: Sequence[Connection] | None = None,
    unwanted: threading.Event | None = None,
) -> Ending:
    """The same, and how it ended. `pipes`: one for each rank, which its `main` is given. They are made to end when
    `unwanted` is set. The thread that calls this must live until then, for they end with it."""
    ranks: list[_Rank] = []
    try:
        with _undisturbed():
            _start(ranks, main, count, pipes)
        outcomes = _listen(ranks, unwanted or threading.Event())
    finally:
        _end(ranks)
    return worst(outcomes)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put Ctrl-C and the like off until all ranks are started and known. They inherit this: a rank lets the others in
    again, but leaves Ctrl-C to the starter."""
    resource_tracker.ensure_running()  # its own start would let them in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDING})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(ranks: list[_Rank], main: Callable[..., int], count: int, pipes: Sequence[Connection] | None = None) -> None:
    context = multiprocessing.get_context("spawn")
    job, port = pickle.dumps(main), _free_port()
    for rank in range(count):
        news, voice = context.Pipe(duplex=False)
        given = () if pipes is None else (pipes[rank],)
        process = context.Process(target=_process, args=(rank, count, port, os.getpid(), voice, job, *given))
        ranks.append(_Rank(rank, process, news))
        process.start()
        voice.close()


def _listen(ranks: list[_Rank], unwanted: threading.Event) -> list[Ending]:
    """How the ranks ended, in order, until all have, until the others have had their time when one has failed, or until
    they are unwanted."""
    outcomes: list[Ending] = []
    silences = Silences((rank.number for rank in ranks), silence(), FIRST * silence())
    running, end = list(ranks), float("inf")
    while running and time.monotonic() < end and not unwanted.is_set():
        wait([waited for rank in running for waited in (rank.news, rank.process.sentinel)], LOOK)
        for rank in list(running):
            if rank.look():
                silences.heard(rank.number)
            if rank.outcome is not None:
                running.remove(rank)
                silences.ended(rank.number)
                outcomes.append(rank.outcome)
        if (hung := silences.too_long()) is not None:
            return [*outcomes, hangs(hung)]
        if any(outcome.status for outcome in outcomes):
            end = min(end, time.monotonic() + GRACE)
    return outcomes


def _end(ranks: list[_Rank]) -> None:
    """Make all ranks end that have not; nothing is lost, for answers are on disk as soon as they are there."""
    started = [rank for rank in ranks if rank.process.pid is not None]
    for rank in started:
        if rank.outcome is None:
            rank.process.kill()  # which ends a stopped one too
            Console(stderr=True).show_cursor()  # it may have been drawing a progress bar
    for rank in started:
        rank.process.join(GRACE)
        if rank.process.is_alive():
            rank.process.kill()


def _process(
    rank: int, count: int, port: int, starter: int, voice: Connection, job: bytes, *given: Connection
) -> NoReturn:
    """A rank, from its beginning to its end. `job`: its function, still pickled, for to load it takes long."""
    _die_with(starter)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    speaking = threading.Lock()

    def say(news: Ending | None) -> None:
        with speaking, suppress(OSError):  # the starter is gone, and so is this process soon
            voice.send(news)

    def live() -> None:
        while True:
            say(None)
            time.sleep(silence() / SIGNS)

    threading.Thread(target=live, daemon=True).start()
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in (here | {"RANK": rank, "LOCAL_RANK": rank}).items()}
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else accelerate warns; `take_share` sets the number of threads
    outcome = ending_of(rank, lambda: pickle.loads(job)(*given))
    flush()  # the starter does not wait for long
    say(outcome)
    leave(outcome.status)


def _die_with(starter: int) -> None:
    """Have the system end this process with its starter, and end it now if that has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != starter:
        leave(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
