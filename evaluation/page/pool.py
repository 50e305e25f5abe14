"""A pool: the ranks of one replica, launched as any run launches them, which wait for jobs with their models loaded."""

import asyncio
import multiprocessing
import threading
from functools import partial
from multiprocessing.connection import Connection

from evaluation.launch.config import RunConfig
from evaluation.launch.ending import Ending
from evaluation.launch.processes import run_ranks
from evaluation.page.messages import FromRank, Job, Stop
from evaluation.page.worker import work


class Pool:
    """As many ranks as `config` needs. What the first of them says comes by `receive`; None: all have ended, and
    `ending` says how."""

    def __init__(self, config: RunConfig) -> None:
        self.size, self.ending = config.ranks, Ending(0)
        self._unwanted = threading.Event()
        self._news: asyncio.Queue[FromRank | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        ours, theirs = zip(*(multiprocessing.Pipe() for _ in range(self.size)), strict=True)
        self._pipes: list[Connection] = list(ours)
        self._threads = [
            threading.Thread(target=self._launch, args=(config, list(theirs)), daemon=True),
            threading.Thread(target=self._listen, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _launch(self, config: RunConfig, pipes: list[Connection]) -> None:
        """The ranks' life, which this thread's must outlast."""
        try:
            self.ending = run_ranks(partial(work, config), self.size, pipes, self._unwanted)
        finally:
            for pipe in pipes:
                pipe.close()  # the listener reads to the end of what was said

    def _listen(self) -> None:
        try:
            while True:
                self._tell(self._pipes[0].recv())
        except (EOFError, OSError):  # the first rank is gone, and the others follow
            self._threads[0].join()
            self._tell(None)

    def _tell(self, news: FromRank | None) -> None:
        self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def receive(self) -> FromRank | None:
        return await self._news.get()

    def send(self, message: Job | Stop) -> None:
        """A job to all ranks, Stop to the first one."""
        for pipe in self._pipes if isinstance(message, Job) else self._pipes[:1]:
            pipe.send(message)

    def end(self) -> None:
        """Make all ranks end."""
        self._unwanted.set()

    async def closed(self) -> None:
        """The same, and wait for their end."""
        self.end()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    @property
    def alive(self) -> bool:
        return self._threads[0].is_alive() and not self._unwanted.is_set()
