"""PEARL's draft rank: drafts for one prompt after the other, until there are no more."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from methods.drafters.base import ChainDrafter
from methods.engine.link import Close, Link, LocalLink
from methods.pearl.messages import Begin, Order, Ready, Window

PROMPT_SECONDS = 0.02  # per token of a prompt, beyond the link's own patience: reading it takes longer than a round


def serve(link: Link, drafters: Mapping[str, ChainDrafter]) -> None:
    """Draft by the drafter that the target asks for. Returns when the target closes the link."""
    for name, drafter in drafters.items():
        link.send(Ready(name, list(drafter.taps), drafter.longest))
    while not isinstance(message := link.receive("a prompt", None), Close):
        if not isinstance(message, Begin):
            raise link.unexpected(message, "a prompt")
        _Answer(link, drafters[message.drafter], message).serve()
    link.send(Close())


@contextmanager
def local_draft_rank(drafters: Mapping[str, ChainDrafter]) -> Iterator[tuple[Link, dict[str, Ready]]]:
    """A draft rank in this process, which works only while the target's waits for it: so a run can be repeated, in
    free mode too. Yields the target's end of the link and what the drafters said of themselves; an error of the draft's
    rank is raised at that end."""
    here, there = LocalLink.pair("target", "draft")

    def run() -> None:
        there.turn.acquire()
        try:
            serve(there, drafters)
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

    def __init__(self, link: Link, drafter: ChainDrafter, begin: Begin) -> None:
        self.link, self.drafter, self.begin = link, drafter, begin

    def serve(self) -> None:
        if not self.drafter.taps:  # else the prompt's features must come first
            self.drafter.begin(self.begin.prompt_T, self.begin.sampling, None)
        order = self._received(self.link.receive("the first order", prompt_patience(self.link, self.begin.prompt_T)))
        if self.drafter.taps:
            self.drafter.begin(self.begin.prompt_T, self.begin.sampling, order.features_AF)
        while not order.stop:
            self._learn(order)
            early, following = self._draft(order), order.round + 1
            order = self._received(early or self.link.receive(f"the order of round {following}"), following)
        if self.begin.free:
            self.link.send(Window(order.round, [], None, 0.0, 0.0))

    def _received(self, message: object, round: int | None = None) -> Order:
        """The message as the order of that round; None: of an answer's first one, whichever that is."""
        if not isinstance(message, Order) or round not in (None, message.round):
            raise self.link.unexpected(message, "the first order" if round is None else f"the order of round {round}")
        return message

    def _learn(self, order: Order) -> None:
        if order.decided_A:
            (self.drafter.confirm if order.confirmed else self.drafter.settle)(order.outcome)

    def _draft(self, order: Order) -> object | None:
        """Draft and send the window; in free mode token by token, until the next order has come, which is returned."""
        free = self.begin.free
        share = 1 if free else order.window
        for _ in range(order.window if free else min(order.window, 1)):
            begin = time.perf_counter()
            draft = self.drafter.draft(share)
            depths_G = self.drafter.depths(len(draft.tokens_G))
            self.link.send(Window(order.round, draft.tokens_G, draft.q_GV, begin, time.perf_counter(), depths_G))
            if free and (following := self.link.poll()):
                return following
            if not draft.tokens_G:
                break
        return None


def prompt_patience(link: Link, prompt_T: Sequence[int]) -> float:
    """Seconds to wait for the first thing that comes behind a prompt."""
    return link.patience + PROMPT_SECONDS * len(prompt_T)
