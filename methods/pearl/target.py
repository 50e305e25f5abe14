"""PEARL's target rank, which alone decides (Liu et al., ICLR 2025).

Its state is the pending token and the tail: drafted tokens behind it, in order. In each round the target scores the
chain [pending] + D, D being the tail so far, while the draft rank drafts on behind it. Then D and the first new token
e_1 are verified, one row of logits for each:

    all kept         commit D + [e_1]; e_1 is pending; the tail is what was drafted behind it
    rejected at n    commit the n kept ones and the target's own token, which is pending; the tail is empty

The paper's pre-verify is a round whose D is empty, its post-verify one whose D is not. There is no bonus token: the
last row has already judged the next window's first token. No unverified token is ever returned.

Legend: T prompt tokens, D drafted tokens that are scored, V target vocabulary.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from methods.base import Branches, Method, Span, Step
from methods.engine.decoder import Decoder, Scores
from methods.engine.link import Link
from methods.engine.sampling import Sampling
from methods.engine.tree import DistantRow, TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.options import AUTO, NOTHING
from methods.pearl.draft import prompt_patience
from methods.pearl.messages import Begin, Order, Prepare, Prepared, Ready, Row, RowWanted, Window
from methods.pearl.schedule import BRANCHES, AutoSchedule, Parts
from methods.pearl.window import LONGEST_WINDOW, AutoWindow
from methods.target import Outcome, Target

FREE = "free"


class Pearl(Method):
    """The target's rank. `window`: tokens drafted per round; "auto": as many as are best by what the rounds so far
    show, first those of the runner's warm-up (window.py); "free": as many as come until the target has decided.

    Without `pre_verify` a window is drafted before it is verified; without `post_verify` the draft waits while a
    window is verified, and the pass yields a token of the target's own. Without either it is draft-then-verify.

    With `branches` the draft's rank also prepares windows behind other tokens than its drafts, as many at each place
    (branches.py). An outcome that was prepared for has its window at once: that is the tail, and the draft goes on
    behind it. With `schedule` it finds out which of this to do (schedule.py)."""

    def __init__(
        self,
        target: Decoder,
        link: Link,
        drafter: str,
        window: int | str,
        pre_verify: bool,
        post_verify: bool,
        branches: int = 0,
        schedule: AutoSchedule | None = None,
    ) -> None:
        """`drafter`: its name on the draft rank."""
        self.target, self.link, self.drafter = Target(target), link, drafter
        self.pre_verify, self.post_verify, self.free = pre_verify, post_verify, window == FREE
        self.auto = AutoWindow(LONGEST_WINDOW, pre_verify, post_verify) if window == AUTO else None
        self._given = window if isinstance(window, int) else LONGEST_WINDOW
        self._round = self._asked = 0  # and the window that was asked for in it
        self._first = True  # the next window is the first behind a prompt or a rejection
        self._rooted = 0  # the last round that began with an empty tail: drafts of earlier ones are void
        self._news: Outcome | None = None  # what the draft rank does not know yet
        self._prompt_TF: Tensor | None = None  # the prompt's features, until it has them
        self._patience = link.patience
        self.branches, self.schedule = branches, schedule
        self._prepared: dict[tuple[int, int], list[int]] = {}  # of this round: outcome -> what is drafted behind it
        self._ahead: list[int] = []  # what was prepared behind the pending token, until it has come as a window
        self._drop_tail()

    def meet(self, ready: Ready) -> None:
        """The drafter is loaded, and reads these features of the target."""
        self.target.taps = tuple(ready.taps)
        if self.auto and ready.longest:
            self.auto = AutoWindow(ready.longest, self.pre_verify, self.post_verify)

    @property
    def window(self) -> int:
        """Tokens to draft in the next round."""
        return self.auto.window(self._first) if self.auto else self._given

    def _wanted(self, stop: bool) -> Prepare | None:
        """What to prepare beside the pass that begins, or has been: windows that are the first behind a rejection."""
        passing = stop or self.tail or self._ahead or self.pre_verify  # else a window is waited for first
        if not self.branches or not passing:
            return None
        return Prepare(self.branches, self.auto.window(True) if self.auto else self._given)

    def _drop_tail(self) -> None:
        self.tail: list[int] = []
        self._tail_q: list[tuple[int, float] | None] = []  # the number and the probability of each that was drawn
        self._tail_depths: list[int] = []

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        if self.schedule:
            self._follow(self.schedule.parts)
        self.link.send(Begin(self.drafter, self.free, list(prompt_T), sampling))
        self._news, self._prompt_TF = self.target.start(prompt_T, sampling)
        self._patience = prompt_patience(self.link, prompt_T)
        self._drop_tail()
        self._first = True
        self._ahead, self._prepared = [], {}
        return self.target.pending

    def _follow(self, parts: Parts) -> None:
        self.pre_verify, self.branches = parts
        if self.auto:
            self.auto.pre_verify = self.pre_verify

    def step(self) -> Step:
        spans: list[Span] = []
        if not (self.tail or self._ahead or self.pre_verify):
            self._order(self.window)
            self._collect(0, spans)
        chain = self.tail or self._ahead
        known = min(len(chain), self.target.room - 1)
        drafting = self.post_verify or known == 0
        self._order(self.window if drafting else 0)
        begin = time.perf_counter()
        scores = self.target.score(TokenTree.chain([self.target.pending, *chain[:known]]))
        scores.wait()
        scored = time.perf_counter()
        hidden = self._collect_ahead(spans)
        if drafting:
            self._collect(known, spans)
        spans.append(Span("target", "verify", begin, scored))
        return self._decide(scores, min(len(self.tail), known + drafting), spans, hidden)

    def _collect_ahead(self, spans: list[Span]) -> float:
        """Put what was prepared into the tail, with its q. Returns for how many seconds it was drafted."""
        if not self._ahead:
            return 0.0
        begin, window = time.perf_counter(), self._next_window(spans)
        if not isinstance(window, Window) or (window.round, window.tokens_G) != (self._round, self._ahead):
            raise self.link.unexpected(window, f"the window of round {self._round} that was prepared")
        self._add(window)
        self._ahead = []
        spans.append(Span("target", "wait", begin, time.perf_counter()))
        return window.end - window.begin

    def _decide(self, scores: Scores, judged: int, spans: list[Span], hidden: float) -> Step:
        """Verify the first `judged` tokens of the tail and keep what is left to verify."""
        begin = time.perf_counter()
        if self.branches:
            self.link.give_way()
        while self.branches and (message := self.link.poll()):
            self._note(message, spans)
        tokens, depths = self.tail[:judged], self._tail_depths[:judged]
        tree = TokenTree.chain([self.target.pending, *tokens], self._rows(judged, spans))
        outcome = self._news = self.target.decide(tree, scores)
        if outcome.leaf_kept:
            del self.tail[:judged], self._tail_q[:judged], self._tail_depths[:judged]
        else:
            self._drop_tail()
            self._ahead = self._prepared.get((outcome.accepted, outcome.tokens[-1]), [])
            self._first = not self._ahead  # else that window is there
        prepared, self._prepared = len(self._prepared), {}
        spans.append(Span("target", "verify", begin, time.perf_counter()))
        nodes = len(scores.logits_NV)
        hit = None if outcome.leaf_kept or not self.branches else bool(self._ahead)
        seconds, rejected = sum(span.seconds for span in spans if span.work == "verify"), outcome.accepted < judged
        if self.auto:
            self.auto.verified(nodes, seconds, outcome.accepted, rejected)
        if self.schedule:
            self.schedule.verified(seconds, outcome.accepted, rejected, hit)
        beside = Branches(prepared, hit, hidden) if self.branches else None
        accepted, path_A = outcome.accepted, outcome.path_A
        return Step(outcome.tokens, judged, accepted, nodes, spans, outcome.margins, depths, beside, tree, path_A)

    def _rows(self, judged: int, spans: list[Span]) -> list[DistantRow | None]:
        """What the first tokens of the tail were drawn from, which the draft's rank has."""
        drawn = zip(self.tail, self._tail_q[:judged], strict=False)
        return [q and DistantRow(token, q[1], partial(self._fetch, q[0], spans)) for token, q in drawn]

    def _fetch(self, number: int, spans: list[Span]) -> Tensor:
        """Ask for such a row. What comes before it is older than the question."""
        self.link.send(RowWanted(number))
        while not isinstance(message := self._next_message(f"the row of a draft in round {self._round}", spans), Row):
            self._take(message, spans)
        if message.number != number:
            raise self.link.unexpected(message, f"the row of draft {number}")
        return message.q_V

    def finish(self) -> None:
        self._order(0, stop=True)
        while (self.free or self.branches) and self._next_window([]).round < self._round:
            pass  # drafted before the draft rank knew of the end
        if self.schedule:
            self.schedule.answered(self.auto.window(False) if self.auto else self._given)
            self._follow(self.schedule.parts)
        if self.auto:
            self.auto.answered()

    def settled(self) -> dict[str, int | str]:
        chosen = self.auto.chosen if self.auto else None
        windows = {"gamma": chosen.later, "first": chosen.first} if chosen else {}
        return windows | ({"schedule": self.schedule.chosen} if self.schedule and self.schedule.chosen else {})

    def _order(self, window: int, stop: bool = False) -> None:
        """Begin a round: tell the draft rank what was decided last, and how much to draft. If it knows all that and has
        nothing to do, it need not be told."""
        self._asked, self._first = window, self._first and not window
        if not (window or stop or self.branches or self._news is not None or self._prompt_TF is not None):
            return
        self._round += 1
        decided: list[int] = []
        confirmed, features = False, None
        if self._news is not None:
            decided, confirmed, features = self._news.tokens, self._news.leaf_kept, self._news.features_AF
            self._rooted = self._rooted if confirmed else self._round
        if self._prompt_TF is not None:
            features = self._prompt_TF
        self._news = self._prompt_TF = None
        taken = 0 if stop else len(self._ahead)
        self.link.send(Order(self._round, decided, confirmed, window, stop, features, self._wanted(stop), taken))

    def _collect(self, known: int, spans: list[Span]) -> None:
        """Put this round's draft into the tail, waiting for it. In free mode: all that has come, but wait until the
        tail goes on behind its first `known` tokens."""
        begin, arrived = time.perf_counter(), False
        while not arrived:
            window = self._next_window(spans)
            self._take(window, spans)
            # An empty window: the drafter's context is full.
            arrived = window.round == self._round and not (self.free and window.tokens_G)
            arrived = arrived or (self.free and len(self.tail) > known)
        while self.free and (window := self.link.poll()):
            self._take(window, spans)
        self._patience = self.link.patience
        spans.append(Span("target", "wait", begin, time.perf_counter()))

    def _next_window(self, spans: list[Span]) -> Any:
        """Wait for the next message that tells of no branches; of those that do, note what they say."""
        return self._next_message(f"the window of round {self._round}", spans)

    def _next_message(self, what: str, spans: list[Span]) -> Any:
        """The same, named in words."""
        while isinstance(message := self.link.receive(what, self._patience), Prepared):
            self._note(message, spans)
        return message

    def _note(self, message: object, spans: list[Span]) -> None:
        """What has been prepared, unless it is for an outcome that is known by now."""
        if not isinstance(message, Prepared) or message.round > self._round or not self.branches:
            raise self.link.unexpected(message, f"the window of round {self._round}")
        spans.append(Span("draft", "prepare", message.begin, message.end, len(message.branches)))
        if message.round == self._round:
            self._prepared |= {(branch.accepted, branch.token): branch.tokens_G for branch in message.branches}

    def _take(self, window: Window, spans: list[Span]) -> None:
        late = isinstance(window, Window) and window.round < self._round
        if not isinstance(window, Window) or window.round > self._round or (late and not self.free):
            raise self.link.unexpected(window, f"the window of round {self._round}")
        depth = next(iter(window.depths_G), 0)
        spans.append(Span("draft", "draft", window.begin, window.end, len(window.tokens_G), depth=depth))
        if window.round < self._rooted:
            return
        self._add(window)
        if self.auto:
            self.auto.drafted(self._asked, len(window.tokens_G), window.end - window.begin)
        if self.schedule:
            self.schedule.drafted(len(window.tokens_G), window.end - window.begin)

    def _add(self, window: Window) -> None:
        self.tail += window.tokens_G
        self._tail_q += [None] * len(window.tokens_G) if window.q_G is None else [*enumerate(window.q_G, window.first)]
        self._tail_depths += window.depths_G


def build(
    models: Models, drafter: str, gamma: int | str, without: str, branches: int, schedule: str, branching: bool
) -> Pearl:
    """The target's rank. `drafter`: what it calls its drafter on the draft's rank; `branching`: whether that can
    prepare branches."""
    if gamma == FREE and branches:
        raise UserError("expected --gamma auto or a number beside --branches, got free, which leaves no time for them")
    if schedule == AUTO and (gamma == FREE or without != NOTHING):
        raise UserError("expected --schedule auto without --gamma free and without --without: it chooses by itself")
    pre_verify, post_verify = without not in ("pre-verify", "both"), without not in ("post-verify", "both")
    if gamma == FREE and not (pre_verify and post_verify):
        raise UserError(f"expected --gamma auto or a number beside --without {without}, got free")
    if models.link is None:
        raise ValueError("expected a link to a draft rank, got none")
    sought = AutoSchedule((branches or BRANCHES) if branching else 0) if schedule == AUTO else None
    return Pearl(models.target, models.link, drafter, gamma, pre_verify, post_verify, branches, sought)
