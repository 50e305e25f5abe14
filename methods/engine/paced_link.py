"""A link over which a message takes a time that is known: for calibration, over a real link that is faster."""

import time
from dataclasses import make_dataclass
from typing import Any

from methods.engine.link import Alive, Close, Link
from methods.engine.scripted import WAITS
from methods.engine.socket_link import SocketLink


class PacedLink(Link):
    """An end. What is sent goes over `link` within a message that says when it is due, in seconds of the monotonic
    clock, which both ends share. Both must be of this kind."""

    def __init__(self, link: SocketLink, seconds: float) -> None:
        """`seconds`: what a message takes; more than the real link needs."""
        super().__init__(link.names, link.patience)
        self.link, self.seconds = link, seconds
        fields = {kind: [("due", float), ("message", kind)] for kind in link.kinds if kind not in (Alive, Close)}
        self._paced = {kind: make_dataclass(f"Paced{kind.__name__}", fields[kind]) for kind in fields}
        link.kinds += self._paced.values()
        self._early: Any = None  # what has come and is not due yet

    def send(self, message: Any) -> None:
        paced = self._paced.get(type(message))  # a farewell is not
        self.link.send(paced(time.perf_counter() + self.seconds, message) if paced else message)

    def close(self) -> None:
        self.link.close()

    def receive(self, what: str, patience: float | None = 0.0) -> Any:
        paced = self._early or self.link.receive(what, patience)
        self._early = None
        if not hasattr(paced, "due"):
            return paced
        if time.perf_counter() < paced.due:
            WAITS.until(paced.due)
        return paced.message

    def poll(self) -> Any:
        self._early = self._early or self.link.poll()
        due = getattr(self._early, "due", 0.0)
        return None if self._early is None or time.perf_counter() < due else self.receive("the next message")
