"""A link between two ranks: what they tell each other are messages, named tuples or dataclasses."""

import queue
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from methods.errors import PeerError


class LinkError(PeerError):
    """The other rank is gone, hangs, or says what cannot be. Its text names the rank and what was waited for."""


@dataclass(frozen=True)
class Alive:
    """A sign of life."""


@dataclass(frozen=True)
class Close:
    """There will be no more messages. Each end answers the other's."""


class Link(ABC):
    """One end. `names`: of this end and of the other, for an error's sake; `patience`: seconds that the other has to
    answer."""

    def __init__(self, names: tuple[str, str], patience: float) -> None:
        self.names, self.patience = names, patience
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._heard = time.monotonic()  # when the last message came

    @abstractmethod
    def send(self, message: Any) -> None:
        """Raises LinkError if the peer is gone, or does not take it."""

    @abstractmethod
    def close(self) -> None:
        """Send the last message, unless it is sent, and wait for the other's."""

    def receive(self, what: str, patience: float | None = 0.0) -> Any:
        """The next message. `what` is waited for, in words, for an error's sake; `patience`: seconds, 0 for the link's
        own, None for as long as the peer lives. Raises LinkError if it is gone, hangs, or is silent for so long."""
        limit = self.patience if patience == 0 else patience
        while True:
            try:
                return self._checked(self._received.get(timeout=limit or self.patience), what)
            except queue.Empty:
                silent = time.monotonic() - self._heard
                if limit is None and silent < 1.2 * self.patience:
                    continue
            raise self._silent(limit or silent, what)

    def poll(self) -> Any:
        """The next message if it has come, else None."""
        try:
            return self._checked(self._received.get_nowait(), "the next message")
        except queue.Empty:
            return None

    def give_way(self) -> None:
        """Let the other end do what it has to do, where the two ends take turns."""
        return

    def _checked(self, message: Any, what: str) -> Any:
        if isinstance(message, Exception):
            self._received.put(message)  # whoever asks again is told again
            raise self._gone(f"for {what}") from message
        return message

    def _silent(self, seconds: float, what: str) -> LinkError:
        return LinkError(
            f"{self.names[0]} waited {seconds:.3g} seconds for {what} of {self.names[1]}, which hangs or is far too "
            "slow (PEARL_BENCH_PATIENCE sets another limit)"
        )

    def _gone(self, what: str) -> LinkError:
        return LinkError(f"{self.names[1]} has ended while {self.names[0]} waited {what}")

    def unexpected(self, message: object, what: str) -> LinkError:
        """The error for a message that the protocol does not allow here."""
        return LinkError(f"{self.names[0]} waited for {what} of {self.names[1]} and got {message}: they have lost step")


class LocalLink(Link):
    """A link within a process, between two threads of which one runs at a time: an end hands over where it would wait.
    So what both do can be repeated."""

    def __init__(self, names: tuple[str, str], patience: float = 60, polite: bool = False) -> None:
        """`polite`: this end lets the other one run before it looks whether something has come."""
        super().__init__(names, patience)
        self.turn = threading.Semaphore(0)
        self.polite = polite
        self.other = self

    @classmethod
    def pair(cls, here: str, there: str) -> tuple["LocalLink", "LocalLink"]:
        """Two ends of those names; the second is polite."""
        ends = cls((here, there)), cls((there, here), polite=True)
        ends[0].other, ends[1].other = ends[1], ends[0]
        return ends

    def send(self, message: Any) -> None:
        self.other._received.put(message)

    def close(self) -> None:
        self.end(Close())

    def end(self, last: Any) -> None:
        """Let the other end have `last`, a message or an exception, and never wait for this one again."""
        self.send(last)
        self.other.turn.release()

    def give_way(self) -> None:
        self.other.turn.release()
        self.turn.acquire()

    def receive(self, what: str, patience: float | None = 0.0) -> Any:
        while self._received.empty():
            self.give_way()
        return super().receive(what, patience)

    def poll(self) -> Any:
        if self.polite:
            self.give_way()
        return super().poll()
