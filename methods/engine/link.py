"""Typed messages between the target rank and the draft rank of a pair, over torch.distributed (gloo).

A thread of each end receives all the time, so that a dead peer is noticed at once, a slow one after `patience`, and a
look at what has come costs nothing. Another sends a sign of life now and then, so that a peer that hangs is noticed
also where a message may take as long as it likes.

A message is a head of whole numbers, its first tokens included, then the tokens beyond and the probabilities where
there are any; each part costs a round trip. Token ids never travel as floating-point numbers, and at temperature 0 no
probability travels at all.
Tensors are staged through the host, so that the two ranks may also share one GPU.

Legend: T prompt tokens, G drafted tokens, V target vocabulary.
"""

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from methods.engine.sampling import Sampling
from methods.errors import PeerError


class LinkError(PeerError):
    """The other rank is gone, hangs, or says what cannot be. Its text names the rank and what was waited for."""


@dataclass(frozen=True)
class Begin:
    """Target to draft: a new prompt for the drafter of that name. `free`: its tokens are wanted one by one."""

    drafter: str
    free: bool
    prompt_T: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Ruling:
    """Target to draft: how round `round` begins. Of the drafted tokens `accepted` more are confirmed. `next_token`: the
    token to go on after, the unconfirmed ones being dropped; None: go on after what was drafted. Then up to `window`
    tokens are to be drafted; `stop`: none, the answer is complete."""

    round: int
    accepted: int
    next_token: int | None
    window: int = 0
    stop: bool = False


@dataclass(frozen=True)
class Draft:
    """Draft to target, in answer to `round`: tokens_G, their q_GV (None: point masses), and when they were drafted."""

    round: int
    tokens_G: list[int]
    q_GV: Tensor | None
    begin: float
    end: float


@dataclass(frozen=True)
class Ready:
    """Draft to target: the drafters are loaded."""


@dataclass(frozen=True)
class Alive:
    """A sign of life."""


@dataclass(frozen=True)
class Close:
    """There will be no more prompts. Each end answers the other's."""


Message = Begin | Ruling | Draft | Ready | Alive | Close
_KINDS: tuple[type, ...] = (Begin, Ruling, Draft, Ready, Alive, Close)
_NUMBERS = 8  # of a head, before the sizes: tokens, rows and columns of q
_INLINE = 32  # tokens in a head
_HEAD = 1 + _NUMBERS + 3 + _INLINE
_NONE = -1  # for a token that is None


def encode(message: Message) -> list[Tensor]:
    """The tensors of a message: its head, and further tokens and probabilities if it has any."""
    numbers: list[int] = []
    tokens: list[int] = []
    q_GV: Tensor | None = None
    match message:
        case Begin(drafter, free, prompt_T, sampling):
            reals = _as_numbers(sampling.temperature, sampling.top_p)
            numbers = [len(drafter), int(free), sampling.top_k, sampling.seed, *reals]
            tokens = [*map(ord, drafter), *prompt_T]
        case Ruling(round_, accepted, next_token, window, stop):
            numbers = [round_, accepted, _NONE if next_token is None else next_token, window, int(stop)]
        case Draft(round_, tokens, q, begin, end):
            numbers, q_GV = [round_, *_as_numbers(begin, end)], q
    shape = (0, 0) if q_GV is None else q_GV.shape
    kind = _KINDS.index(type(message))
    head = [kind, *numbers, *[0] * (_NUMBERS - len(numbers)), len(tokens), *shape, *tokens[:_INLINE]]
    tensors = [torch.tensor(head + [0] * (_HEAD - len(head)))]
    if len(tokens) > _INLINE:
        tensors.append(torch.tensor(tokens[_INLINE:]))
    if q_GV is not None:
        tensors.append(q_GV.double().cpu().contiguous())
    return tensors


def decode(kind: type, numbers: Sequence[int], tokens: list[int], q_GV: Tensor | None) -> Message:
    """The message that `encode` took apart."""
    if kind is Begin:
        letters, free, top_k, seed = numbers[:4]
        temperature, top_p = _as_reals(*numbers[4:6])
        name = "".join(map(chr, tokens[:letters]))
        return Begin(name, bool(free), tokens[letters:], Sampling(temperature, top_k, top_p, seed))
    if kind is Ruling:
        next_token = None if numbers[2] == _NONE else numbers[2]
        return Ruling(numbers[0], numbers[1], next_token, numbers[3], bool(numbers[4]))
    return Draft(numbers[0], tokens, q_GV, *_as_reals(*numbers[1:3])) if kind is Draft else kind()


def _as_numbers(*reals: float) -> list[int]:
    return torch.tensor(reals, dtype=torch.float64).view(torch.int64).tolist()


def _as_reals(*numbers: int) -> list[float]:
    return torch.tensor(numbers, dtype=torch.int64).view(torch.float64).tolist()


@dataclass
class Link:
    """One end. `group`: of the two; `names`: of this end and of the other, for an error's sake; `patience`: seconds
    that the other has to answer."""

    group: dist.ProcessGroup
    names: tuple[str, str]
    patience: float
    _received: "queue.SimpleQueue[Message | Exception]" = field(default_factory=queue.SimpleQueue)
    _sending: threading.Lock = field(default_factory=threading.Lock)
    _closed: threading.Event = field(default_factory=threading.Event)  # our Close is sent
    _parted: threading.Event = field(default_factory=threading.Event)  # the other's Close has come
    _heard: float = 0.0  # when the last message came

    def __post_init__(self) -> None:
        self._heard = time.monotonic()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._receive_all, self._live)]
        for thread in self._threads:
            thread.start()

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
            message: Message | None = None
            while not isinstance(message, Close):
                message = self._receive_one()
                self._heard = time.monotonic()
                if not isinstance(message, Alive):
                    self._received.put(message)
            self._parted.set()
        except Exception as error:
            self._received.put(error)

    def _receive_one(self) -> Message:
        head: list[int] = self._tensor(torch.int64, _HEAD).tolist()
        count, rows, columns = head[1 + _NUMBERS : 4 + _NUMBERS]
        tokens = head[4 + _NUMBERS :][:count]
        if count > _INLINE:
            tokens += self._tensor(torch.int64, count - _INLINE).tolist()
        q_GV = self._tensor(torch.float64, rows, columns) if rows else None
        return decode(_KINDS[head[0]], head[1 : 1 + _NUMBERS], tokens, q_GV)

    def _tensor(self, dtype: torch.dtype, *shape: int) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        self.group.recv([tensor], self._peer, 0).wait()
        return tensor

    def send(self, message: Message) -> None:
        """Raises LinkError if the peer is gone, or does not take it."""
        limit = timedelta(seconds=self.patience)
        try:
            with self._sending:
                if self._closed.is_set():
                    return
                if isinstance(message, Close):
                    self._closed.set()
                for tensor in encode(message):
                    self.group.send([tensor], self._peer, 0).wait(limit)
        except RuntimeError as error:
            raise LinkError(
                f"{self.names[0]} waited {self.patience:g} seconds for {self.names[1]} to take a message: it has "
                "ended, or hangs"
            ) from error

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

    def _checked(self, message: Message | Exception, what: str) -> Message:
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

    def unexpected(self, message: Message, what: str) -> LinkError:
        """The error for a message that the protocol does not allow here."""
        return LinkError(f"{self.names[0]} waited for {what} of {self.names[1]} and got {message}: they have lost step")
