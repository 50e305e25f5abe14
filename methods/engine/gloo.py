"""The link between the processes of a pair of ranks, over torch.distributed (gloo).

A thread of each end receives all the time, so that a dead peer is noticed at once, a slow one after `patience`, and a
look at what has come costs nothing. Another sends a sign of life now and then, so that a peer that hangs is noticed
also where a message may take as long as it likes.

A message is a head of whole numbers, the first of its own included, then those beyond and its tensors where there are
any; each part costs a round trip. Tensors are staged through the host, so that the two ranks may also share one GPU.
"""

import queue
import threading
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from methods.engine.codec import decode, encode, shapes
from methods.engine.link import Alive, Close, Link, LinkError

_CONTROL = Alive, Close
_INLINE = 56  # numbers of a message that travel with its head
_HEAD = 2 + _INLINE


class GlooLink(Link):
    """Between two processes."""

    def __init__(
        self, group: dist.ProcessGroup, names: tuple[str, str], patience: float, kinds: Sequence[type]
    ) -> None:
        """`group`: of the two; `kinds`: dataclasses that may travel, the same and in the same order at both ends."""
        super().__init__(names, patience)
        self.group, self.kinds = group, [*_CONTROL, *kinds]
        self._sending = threading.Lock()
        self._open()

    def _open(self) -> None:
        self._closed = threading.Event()  # our Close is sent
        self._parted = threading.Event()  # the other's Close has come
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._receive_all, self._live)]
        for thread in self._threads:
            thread.start()

    def reopen(self) -> None:
        """Begin anew, where both ends are closed and both do so: what had come and was not received is forgotten."""
        self._received = queue.SimpleQueue()
        self._heard = time.monotonic()
        self._open()

    def close(self) -> None:
        """Send the last message, unless it is sent, wait for the other's, and end the threads: then nothing holds the
        group. Raises LinkError if the other does not close its end too."""
        self.send(Close())
        for thread in self._threads:
            thread.join(self.patience)
        if self._threads[0].is_alive():
            raise self._silent(self.patience, "the farewell")
        if not self._parted.is_set():
            raise self._gone("for its farewell")

    def _live(self) -> None:
        with suppress(LinkError):  # whoever waits for the peer will tell
            while not self._closed.wait(self.patience / 4):
                self.send(Alive())

    @property
    def _peer(self) -> int:
        return 1 - self.group.rank()

    def _receive_all(self) -> None:
        try:
            message: Any = None
            while not isinstance(message, Close):
                message = self._receive_one()
                self._heard = time.monotonic()
                if not isinstance(message, Alive):
                    self._received.put(message)
            self._parted.set()
        except Exception as error:
            self._received.put(error)

    def _receive_one(self) -> Any:
        kind_index, count, *numbers = self._tensor(torch.int64, _HEAD).tolist()
        kind = self.kinds[kind_index]
        if count > _INLINE:
            numbers += self._tensor(torch.int64, count - _INLINE).tolist()
        tensors = [self._tensor(shape.dtype, *shape.sizes) for shape in shapes(kind, numbers)]
        return decode(kind, numbers, tensors)

    def _tensor(self, dtype: torch.dtype, *shape: int) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        self.group.recv([tensor], self._peer, 0).wait()
        return tensor

    def send(self, message: Any) -> None:
        """Raises LinkError if the peer is gone, or does not take it."""
        limit = timedelta(seconds=self.patience)
        try:
            with self._sending:
                if self._closed.is_set():
                    return
                if isinstance(message, Close):
                    self._closed.set()
                for tensor in self._parts(message):
                    self.group.send([tensor], self._peer, 0).wait(limit)
        except RuntimeError as error:
            raise LinkError(
                f"{self.names[0]} waited {self.patience:g} seconds for {self.names[1]} to take a message: it has "
                "ended, or hangs"
            ) from error

    def _parts(self, message: Any) -> list[Tensor]:
        """The tensors of a message: its head, further numbers and tensors if it has any."""
        numbers, tensors = encode(message)
        head = [self.kinds.index(type(message)), len(numbers), *numbers[:_INLINE]]
        more = [torch.tensor(numbers[_INLINE:])] if len(numbers) > _INLINE else []
        head += [0] * (_HEAD - len(head))
        return [
            torch.frombuffer(array("q", head), dtype=torch.int64),
            *more,
            *tensors,
        ]  # ten times torch.tensor's speed
