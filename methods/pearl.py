"""PEARL: draft while verifying, on two ranks (Liu et al., ICLR 2025). Over any chain drafter.

The target rank alone decides. Its state is the pending token and the tail: drafted tokens behind it, in order. In each
round the target scores the chain [pending] + D, D being the tail so far, while the draft rank drafts on behind it. Then
D and the first new token e_1 are verified, one row of logits for each:

    all kept         commit D + [e_1]; e_1 is pending; the tail is what was drafted behind it
    rejected at n    commit the n kept ones and the target's own token, which is pending; the tail is empty

The paper's pre-verify is a round whose D is empty, its post-verify one whose D is not. There is no bonus token: the
last row has already judged the next window's first token. No unverified token is ever returned.

Legend: T prompt tokens, D drafted tokens that are scored, V target vocabulary.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from methods.auto_window import LONGEST_WINDOW, AutoWindow
from methods.base import Method, Span, Step
from methods.drafters.base import Drafter
from methods.engine.decoder import Decoder, Scores
from methods.engine.link import Begin, Close, Draft, Link, Ready, Ruling
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.speculative import model_drafter, sorted_drafter
from methods.target import Target

AUTO, FREE = "auto", "free"
PROMPT_SECONDS = 0.02  # per token of a prompt, beyond the link's own patience: reading it takes longer than a round


class Pearl(Method):
    """The target's rank. `window`: tokens drafted per round; "auto": as many as are best by what the first answers
    show, those of the runner's warm-up (auto_window.py); "free": as many as come until the target has decided.

    Without `pre_verify` a window is drafted before it is verified; without `post_verify` the draft waits while a
    window is verified, and the pass yields a token of the target's own. Without either it is draft-then-verify."""

    def __init__(
        self, target: Decoder, link: Link, drafter: str, window: int | str, pre_verify: bool, post_verify: bool
    ) -> None:
        """`drafter`: its name on the draft rank."""
        self.target, self.link, self.drafter = Target(target), link, drafter
        self.pre_verify, self.post_verify, self.free = pre_verify, post_verify, window == FREE
        self.sought = AutoWindow() if window == AUTO else None  # None too when it is found
        self.found: int | None = None
        self._given = window if isinstance(window, int) else LONGEST_WINDOW
        self._round = 0
        self._rooted = 0  # the last round that began with an empty tail: drafts of earlier ones are void
        self._news: tuple[int, int | None] = 0, None  # what the draft rank does not know yet, as Ruling has it
        self._patience = link.patience
        self._drop_tail()

    @property
    def window(self) -> int:
        """Tokens to draft in the next round."""
        return self.sought.window if self.sought else self.found or self._given

    def _drop_tail(self) -> None:
        self.tail: list[int] = []
        self._tail_q: list[Tensor | None] = []

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        self.link.send(Begin(self.drafter, self.free, list(prompt_T), sampling))
        first, _ = self.target.start(prompt_T, sampling)
        self._news, self._patience = (0, first), _prompt_patience(self.link, prompt_T)
        self._drop_tail()
        return first

    def step(self) -> Step:
        spans: list[Span] = []
        if not self.tail and not self.pre_verify:
            self._order(self.window)
            self._collect(0, spans)
        known = min(len(self.tail), self.target.room - 1)
        drafting = self.post_verify or known == 0
        self._order(self.window if drafting else 0)
        begin = time.perf_counter()
        scores = self.target.decoder.score(TokenTree.chain([self.target.pending, *self.tail[:known]]))
        scored = time.perf_counter()
        if drafting:
            self._collect(known, spans)
        spans.append(Span("target", "verify", begin, scored))
        return self._decide(scores, min(len(self.tail), known + drafting), spans)

    def _decide(self, scores: Scores, judged: int, spans: list[Span]) -> Step:
        """Verify the first `judged` tokens of the tail and keep what is left to verify."""
        begin = time.perf_counter()
        tree = TokenTree.chain([self.target.pending, *self.tail[:judged]], self._q_of(judged))
        ruling = self.target.decide(tree, scores)
        if ruling.leaf_kept:
            self._news = judged, None
            del self.tail[:judged], self._tail_q[:judged]
        else:
            self._news = ruling.accepted, self.target.pending
            self._drop_tail()
        spans.append(Span("target", "verify", begin, time.perf_counter()))
        if self.sought:
            seconds = sum(span.seconds for span in spans if span.work == "verify")
            self.sought.verified(seconds, ruling.accepted, ruling.accepted < judged)
        return Step(ruling.tokens, judged, ruling.accepted, spans, ruling.margins)

    def _q_of(self, judged: int) -> Tensor | None:
        rows = [q for q in self._tail_q[:judged] if q is not None]
        return torch.stack(rows) if rows else None

    def finish(self) -> None:
        self._order(0, stop=True)
        while self.free and self.link.receive("the last draft").round < self._round:
            pass  # drafted before the draft rank knew of the end
        self.found = self.sought.answered() if self.sought else self.found
        if self.found:
            self.sought = None

    def settled(self) -> dict[str, int]:
        return {"gamma": self.found} if self.found else {}

    def _order(self, window: int, stop: bool = False) -> None:
        """Begin a round: tell the draft rank what was decided last, and how much to draft."""
        (accepted, next_token), self._news = self._news, (0, None)
        self._round += 1
        if next_token is not None:
            self._rooted = self._round
        self.link.send(Ruling(self._round, accepted, next_token, window, stop))

    def _collect(self, known: int, spans: list[Span]) -> None:
        """Put this round's draft into the tail, waiting for it. In free mode: all that has come, but wait until the
        tail goes on behind its first `known` tokens."""
        begin, arrived = time.perf_counter(), False
        while not arrived:
            draft = self.link.receive(f"the draft of round {self._round}", self._patience)
            self._take(draft, spans)
            # An empty draft: the drafter's context is full.
            arrived = draft.round == self._round and not (self.free and draft.tokens_G)
            arrived = arrived or (self.free and len(self.tail) > known)
        while self.free and (draft := self.link.poll()):
            self._take(draft, spans)
        self._patience = self.link.patience
        spans.append(Span("target", "wait", begin, time.perf_counter()))

    def _take(self, draft: Draft, spans: list[Span]) -> None:
        if not isinstance(draft, Draft) or draft.round > self._round or (draft.round < self._round and not self.free):
            raise self.link.unexpected(draft, f"the draft of round {self._round}")
        spans.append(Span("draft", "draft", draft.begin, draft.end, len(draft.tokens_G)))
        if draft.round < self._rooted:
            return
        self.tail += draft.tokens_G
        self._tail_q += [None] * len(draft.tokens_G) if draft.q_GV is None else list(draft.q_GV)
        if self.sought:
            self.sought.drafted(len(draft.tokens_G), draft.end - draft.begin)


def serve(link: Link, drafters: dict[str, Drafter]) -> None:
    """The draft's rank: draft for one prompt after the other, by the drafter that the target asks for."""
    link.send(Ready())
    while not isinstance(message := link.receive("a prompt", None), Close):
        if not isinstance(message, Begin):
            raise link.unexpected(message, "a prompt")
        drafter = drafters[message.drafter]
        drafter.begin(message.prompt_T, message.sampling, None)
        _serve_answer(link, drafter, message)
    link.send(Close())


def _serve_answer(link: Link, drafter: Drafter, begin: Begin) -> None:
    free = begin.free
    confirmed, last = 0, 0  # confirmed: of the tokens that were drafted since the drafter settled
    ruling = link.receive("the first ruling", _prompt_patience(link, begin.prompt_T))
    while True:
        if not isinstance(ruling, Ruling) or last not in (0, ruling.round - 1):
            raise link.unexpected(ruling, f"the ruling of round {last + 1}")
        if ruling.stop:
            if free:
                link.send(Draft(ruling.round, [], None, 0.0, 0.0))
            return
        last = ruling.round
        if ruling.next_token is None:
            confirmed += ruling.accepted
        else:
            drafter.settle(confirmed + ruling.accepted, ruling.next_token, None)
            confirmed = 0
        early = _draft(link, drafter, ruling, free)
        ruling = early or link.receive(f"the ruling of round {last + 1}")


def _prompt_patience(link: Link, prompt_T: Sequence[int]) -> float:
    return link.patience + PROMPT_SECONDS * len(prompt_T)


def _draft(link: Link, drafter: Drafter, ruling: Ruling, free: bool) -> Ruling | None:
    """Draft and send the window; in free mode token by token, until the next ruling has come, which is returned."""
    share = 1 if free else ruling.window
    for _ in range(ruling.window if free else min(ruling.window, 1)):
        begin = time.perf_counter()
        draft = drafter.draft(share)
        link.send(Draft(ruling.round, draft.tokens_G, draft.q_GV, begin, time.perf_counter()))
        if free and (next_ruling := link.poll()):
            return next_ruling
        if not draft.tokens_G:
            break
    return None


def build_pearl(models: Models, name: str, gamma: int | str, without: str) -> Pearl:
    """PEARL with a smaller model. `name`: of its drafter on the draft rank."""
    return _build(models, name, gamma, without)


def draft_pearl(models: Models, gamma: int | str, without: str) -> Drafter:
    """Its drafter, for the draft rank."""
    return model_drafter(models)


def build_pearl_sd2(models: Models, name: str, gamma: int | str, without: str, threshold: float, exit: int) -> Pearl:
    """PEARL with a sorted draft. `name`: of its drafter on the draft rank."""
    return _build(models, name, gamma, without)


def draft_pearl_sd2(models: Models, gamma: int | str, without: str, threshold: float, exit: int) -> Drafter:
    """Its drafter, for the draft rank."""
    return sorted_drafter(models, threshold, exit)


def _build(models: Models, drafter: str, gamma: int | str, without: str) -> Pearl:
    pre_verify, post_verify = without not in ("pre-verify", "both"), without not in ("post-verify", "both")
    if gamma == FREE and not (pre_verify and post_verify):
        raise UserError(f"expected --gamma auto or a number beside --without {without}, got free")
    if models.link is None:
        raise ValueError("expected a link to a draft rank, got none")
    return Pearl(models.target, models.link, drafter, gamma, pre_verify, post_verify)
