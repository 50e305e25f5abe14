"""PEARL's draft rank: drafts for one prompt after the other, until there are no more."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from methods.drafters.base import BranchingDrafter, ChainDrafter, Draft
from methods.engine.link import Close, Link, LocalLink
from methods.engine.loader import DTYPES
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.pearl.branches import Preparation, Spare, prepare
from methods.pearl.messages import Begin, Order, Prepared, Ready, Row, RowWanted, Window
from methods.target import Outcome

PROMPT_SECONDS = 0.02  # per token of a prompt, beyond the link's own patience: reading it takes longer than a round


def warm_up(drafter: ChainDrafter, models: Models) -> None:
    """Draft behind a prompt of no meaning: what a GPU sets up in its first pass must not fall into a round, in which
    the target has patience for seconds only."""
    if models.draft_device.type == "cpu":
        return
    width = len(drafter.taps) * models.target_checkpoint.config.width
    *prompt, token = (number % models.vocabulary for number in range(5))  # in which nothing repeats that can be copied
    features_TF = torch.ones(len(prompt), width, dtype=DTYPES[models.dtype]) if width else None
    drafter.begin(prompt, Sampling(), features_TF)
    drafter.settle(Outcome([token], [0], None if features_TF is None else features_TF[-1:]))
    drafter.draft(2)


@torch.inference_mode()
def serve(link: Link, drafters: Mapping[str, ChainDrafter], passes: int | None = None) -> None:
    """Draft by the drafter that the target asks for. Returns when the target closes the link. `passes`: so many prepare
    branches in each round, instead of as many as there is time for."""
    for name, drafter in drafters.items():
        link.send(Ready(name, list(drafter.taps), drafter.longest))
    while not isinstance(message := link.receive("a prompt", None), Close):
        if not isinstance(message, Begin):
            raise link.unexpected(message, "a prompt")
        _Answer(link, drafters[message.drafter], message, Spare(passes)).serve()
    link.send(Close())


@contextmanager
def local_draft_rank(drafters: Mapping[str, ChainDrafter], passes: int = 1) -> Iterator[tuple[Link, dict[str, Ready]]]:
    """A draft rank in this process, which works only while the target's waits for it: so a run can be repeated, in
    free mode too, and with branches: `passes` prepare some in each round. Yields the target's end of the link and what
    the drafters said of themselves; an error of the draft's rank is raised at that end."""
    here, there = LocalLink.pair("target", "draft")

    def run() -> None:
        there.turn.acquire()
        try:
            serve(there, drafters, passes)
        except Exception as error:
            there.end(error)

    rank = threading.Thread(target=run, daemon=True)
    rank.start()
    try:
        yield here, {name: here.receive("its drafter") for name in drafters}
    finally:
        here.close()
        rank.join()


class _Answer:
    """Drafting for one prompt."""

    def __init__(self, link: Link, drafter: ChainDrafter, begin: Begin, spare: Spare) -> None:
        self.link, self.drafter, self.begin, self.spare = link, drafter, begin, spare
        self.prepared: Preparation | None = None  # beside the pass of the last order
        self.sent = self.decided = 0  # of all tokens that were sent, and how many of the first of them are judged
        self.rows: dict[int, Tensor] = {}  # what each of the others was drawn from, by its number

    def serve(self) -> None:
        if not self.drafter.taps:  # else the prompt's features must come first
            self.drafter.begin(self.begin.prompt_T, self.begin.sampling, None)
        order = self._received(self._next("the first order", prompt_patience(self.link, self.begin.prompt_T)))
        if self.drafter.taps:
            self.drafter.begin(self.begin.prompt_T, self.begin.sampling, order.features_AF)
        while not order.stop:
            self.spare.begin()
            self._learn(order)
            verified = len(self.drafter.drafted)
            early, following = self._draft(order) or self._prepare(order, verified), order.round + 1
            order = self._received(early or self._next(f"the order of round {following}"), following)
            if not early:
                self.spare.end(time.perf_counter())
        if self.begin.free or order.prepare:  # this is the last that comes of it
            self.link.send(Window(order.round, [], None, 0.0, 0.0, [], self.sent))

    def _next(self, what: str, patience: float = 0.0) -> object:
        """The next message, after the rows that are wanted first."""
        while isinstance(message := self.link.receive(what, patience), RowWanted):
            self._tell(message)
        return message

    def _poll(self) -> object | None:
        """The next message, if it has come."""
        while isinstance(message := self.link.poll(), RowWanted):
            self._tell(message)
        return message

    def _tell(self, wanted: RowWanted) -> None:
        if wanted.number not in self.rows:
            raise self.link.unexpected(wanted, "a row that there is")
        self.link.send(Row(wanted.number, self.rows[wanted.number]))

    def _send(self, round: int, draft: Draft, begin: float, end: float, depths_G: list[int]) -> None:
        """Tokens as a window. What they were drawn from stays here until they are judged."""
        tokens_G, q_GV = draft.tokens_G, draft.q_GV
        q_G = None if q_GV is None else [float(q_V[token]) for q_V, token in zip(q_GV, tokens_G, strict=True)]
        self.link.send(Window(round, tokens_G, q_G, begin, end, depths_G, self.sent))
        self.rows |= {} if q_GV is None else dict(enumerate(q_GV, self.sent))
        self.sent += len(tokens_G)

    def _received(self, message: object, round: int | None = None) -> Order:
        """The message as the order of that round; None: of an answer's first one, whichever that is."""
        if not isinstance(message, Order) or round not in (None, message.round):
            raise self.link.unexpected(message, "the first order" if round is None else f"the order of round {round}")
        return message

    def _learn(self, order: Order) -> None:
        """What was decided; the window that was prepared for it is sent at once."""
        if order.decided_A:
            self.decided = self.decided + len(order.decided_A) if order.confirmed else self.sent
            self.rows = {number: q_V for number, q_V in self.rows.items() if number >= self.decided}
            (self.drafter.confirm if order.confirmed else self.drafter.settle)(order.outcome)
        if order.taken:
            if self.prepared is None:
                raise self.link.unexpected(order, "an order without branches")
            found = self.prepared.take(order.decided_A, order.taken)
            depths_G = found.depths(order.taken, bool(self.drafter.taps))
            self._send(order.round, found.draft(order.taken), found.begin, found.ends_G[order.taken - 1], depths_G)
        self.prepared = None

    def _draft(self, order: Order) -> object | None:
        """Draft and send the window; in free mode token by token, until the next order has come, which is returned."""
        free = self.begin.free
        share = 1 if free else order.window
        for _ in range(order.window if free else min(order.window, 1)):
            begin = time.perf_counter()
            draft = self.drafter.draft(share)
            depths_G = self.drafter.depths(len(draft.tokens_G))
            self._send(order.round, draft, begin, time.perf_counter(), depths_G)
            if free and (following := self._poll()):
                return following
            if not draft.tokens_G:
                break
        return None

    def _prepare(self, order: Order, verified: int) -> object | None:
        """Prepare branches while there is time; if the next order comes meanwhile, it is returned. `verified`: drafts
        that the pass scores."""
        if order.prepare is None or not self.spare.fits:
            return None
        if not isinstance(self.drafter, BranchingDrafter):
            raise ValueError(f"expected a drafter that prepares branches, got {type(self.drafter).__name__}")
        self.prepared = prepare(self.drafter, order.prepare, verified, order.window > 0)
        looked = None
        while True:
            now = time.perf_counter()
            if self.spare.by_the_clock and (following := self._poll()):
                self.spare.end(looked or now)  # it came behind the last look
                return following
            if self.prepared is None or not self.spare.fits or not self.prepared.goes_on():
                return None
            looked, branches = now, self.prepared.grow()
            end = time.perf_counter()
            self.spare.took(end - now)
            self.link.send(Prepared(order.round, branches, now, end))


def prompt_patience(link: Link, prompt_T: Sequence[int]) -> float:
    """Seconds to wait for the first thing that comes behind a prompt."""
    return link.patience + PROMPT_SECONDS * len(prompt_T)
