"""A link over which a message takes a time that is known: for calibration, over a real link that is faster."""

import time
from dataclasses import dataclass
from typing import Any

from methods.engine.gloo import GlooLink
from methods.engine.link import Link
from methods.engine.scripted import WAITS


@dataclass(frozen=True)
class Due:
    """When the message that follows may be had, in seconds of the monotonic clock, which both ends share."""

    seconds: float


class PacedLink(Link):
    """An end. Each message goes over `link` as it is, behind another one that says when it is due: a known time after
    it was sent. Both ends must be of this kind."""

    def __init__(self, link: GlooLink, seconds: float) -> None:
        """`seconds`: what a message takes; more than the real link needs."""
        super().__init__(link.names, link.patience)
        self.link, self.seconds = link, seconds
        self._due: float | None = None  # of the message that comes next
        self._waiting: list[Any] = []  # one that has come and is not due yet
        link.kinds.append(Due)

    def send(self, message: Any) -> None:
        self.link.send(Due(time.perf_counter() + self.seconds))
        self.link.send(message)

    def close(self) -> None:
        self.link.close()

    def receive(self, what: str, patience: float | None = 0.0) -> Any:
        while not self._take(self.link.receive(what, patience) if not self._waiting else None):
            pass
        if self._due is not None and time.perf_counter() < self._due:
            WAITS.until(self._due)
        return self._given()

    def poll(self) -> Any:
        while not self._waiting and (message := self.link.poll()) is not None:
            self._take(message)
        late = self._due is None or time.perf_counter() >= self._due
        return self._given() if self._waiting and late else None

    def _take(self, message: Any) -> bool:
        """Note what has come over the link. Returns whether a message is there, due or not."""
        if isinstance(message, Due):
            self._due = message.seconds
        elif message is not None:
            self._waiting.append(message)
        return bool(self._waiting)

    def _given(self) -> Any:
        self._due = None
        return self._waiting.pop()
