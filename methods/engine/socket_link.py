"""The link between the processes of a pair of ranks, over a Unix socket: the ranks of a replica are on one node.

A thread of each end receives all the time, so that a dead peer is noticed at once, a slow one after `patience`, and a
look at what has come costs nothing. Another sends a sign of life now and then, so that a peer that hangs is noticed
also where a message may take as long as it likes.

A message is the count of its bytes, the index of its kind, the count of its numbers, these, and its tensors, each from
a multiple of eight bytes on. Tensors are staged through the host, so that the two ranks may also share one GPU.
"""

import queue
import socket
import struct
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.engine.codec import Shape, decode, encode
from methods.engine.link import Alive, Close, Link, LinkError
from methods.errors import UserError, one_line

_CONTROL = Alive, Close
_COUNT, _TIME = struct.Struct("@q"), struct.Struct("@ll")  # a number of a message; seconds and microseconds
_SIZE = _COUNT.size
_LONGEST = 90  # bytes of a socket's path: systems take 104 or 108


class SocketLink(Link):
    """Between two processes of one node."""

    def __init__(self, end: socket.socket, names: tuple[str, str], patience: float, kinds: Sequence[type]) -> None:
        """`end`: connected to the other one; `kinds`: of messages that may travel, the same and in the same order at
        both ends."""
        super().__init__(names, patience)
        self.end, self.kinds = end, [*_CONTROL, *kinds]
        end.settimeout(None)
        limit = _TIME.pack(int(patience), int(patience % 1 * 1e6))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
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
        """Send the last message, unless it is sent, wait for the other's, and end the threads. Raises LinkError if the
        other does not close its end too."""
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
            with suppress(OSError):
                self.end.shutdown(socket.SHUT_RD)  # nothing more is read: the other need not wait to find out
            self._received.put(error)

    def _receive_one(self) -> Any:
        (count,) = _COUNT.unpack(self._bytes(_SIZE))
        content = bytearray(self._bytes(count))
        view = memoryview(content).cast("q")
        place = (2 + view[1]) * _SIZE
        kind_index, _, *numbers = view[: 2 + view[1]].tolist()

        def tensor(shape: Shape) -> Tensor:
            nonlocal place
            found = _tensor(content, place, shape)
            place += _padded(found.nbytes)
            return found

        return decode(self.kinds[kind_index], numbers, tensor)

    def _bytes(self, count: int) -> bytes:
        found = self.end.recv(count, socket.MSG_WAITALL)
        while len(found) < count:  # a signal, or the end
            more = self.end.recv(count - len(found), socket.MSG_WAITALL)
            if not more:
                raise ConnectionError("the other end is closed")
            found += more
        return found

    def send(self, message: Any) -> None:
        """Raises LinkError if the peer is gone, or does not take it."""
        try:
            with self._sending:
                if self._closed.is_set():
                    return
                if isinstance(message, Close):
                    self._closed.set()
                self.end.sendall(self._packed(message))
        except OSError as error:
            raise LinkError(
                f"{self.names[0]} waited {self.patience:g} seconds for {self.names[1]} to take a message: it has "
                "ended, or hangs"
            ) from error

    def _packed(self, message: Any) -> bytes:
        numbers, tensors = encode(message)
        parts = [_content(tensor) for tensor in tensors]
        count = (2 + len(numbers)) * _SIZE + sum(map(len, parts))
        head = array("q", [count, self.kinds.index(type(message)), len(numbers), *numbers]).tobytes()
        return b"".join([head, *parts]) if parts else head


def _content(tensor: Tensor) -> bytes:
    """Its bytes, filled up to a multiple of eight."""
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return content.ljust(_padded(len(content)), b"\0")


def _padded(count: int) -> int:
    return -(-count // _SIZE) * _SIZE


def _tensor(content: bytearray, place: int, shape: Shape) -> Tensor:
    """The tensor whose bytes begin at a place; it shares the memory."""
    count = prod(shape.sizes)
    flat = torch.frombuffer(content, dtype=shape.dtype, count=count, offset=place) if count else torch.empty(0)
    return flat.to(shape.dtype).view(shape.sizes)


@contextmanager
def meeting_place(patience: float) -> Iterator[tuple[str, Callable[[], socket.socket]]]:
    """Where another process of this user can `reach` this one: the address, and what waits for it. That raises OSError
    if nobody comes in `patience` seconds. Raises UserError where no place can be made."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            short = len(tempfile.gettempdir()) < _LONGEST - 30
            place = tempfile.TemporaryDirectory(prefix="pearl-bench-", dir=None if short else "/tmp")
            address = str(Path(stack.enter_context(place)) / "link")  # the folder is this user's alone
            listening.bind(address)
        except OSError as error:
            raise UserError(
                f"expected a folder for temporary files in which PEARL's ranks can meet: {one_line(error)}; set TMPDIR "
                "to one that can be written"
            ) from None
        listening.listen(1)
        listening.settimeout(patience)
        yield address, lambda: listening.accept()[0]


def reach(address: str) -> socket.socket:
    """The end of a link to who waits there. Raises OSError if nobody does."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(address)
    return end
