"""Draft, then verify, on one device: any drafter, chain or tree (Leviathan et al. 2023, algorithm 1)."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from methods.base import Method, Span, Step
from methods.drafters.base import Drafter, TreeDrafter
from methods.drafters.lookup import LookupDrafter
from methods.drafters.model import ModelDrafter, SelfDrafter
from methods.drafters.sorted import SortedDrafter, SortedTreeDrafter
from methods.engine.decoder import Decoder, Scores
from methods.engine.sampling import Sampling
from methods.engine.staged import StagedDecoder
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.target import Target


class _DraftThenVerify(Method, ABC):
    """Each pass verifies what was drafted and adds one token of the target's own."""

    drafter: Drafter | TreeDrafter

    def __init__(self, target: Decoder) -> None:
        self.target = Target(target)

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        first, scores = self.target.start(prompt_T, sampling)
        self.drafter.begin(prompt_T, sampling, scores)
        self._settle([0], scores)
        return first

    def step(self) -> Step:
        begin = time.perf_counter()
        tree = self._propose(self.target.room - 1)
        drafted = time.perf_counter()
        ruling = self.target.judge(tree)
        verified = time.perf_counter()
        self._settle(ruling.path_A, ruling.scores)
        return Step(
            ruling.tokens,
            drafted=int(tree.depth_N.max()),
            accepted=ruling.accepted,
            spans=[
                Span("target", "draft", begin, drafted, len(tree.tokens_N) - 1),
                Span("target", "verify", drafted, verified),
                Span("target", "draft", verified, time.perf_counter()),
            ],
            margins=ruling.margins,
        )

    @abstractmethod
    def _propose(self, room: int) -> TokenTree:
        """A tree rooted at the pending token, with at most `room` drafted ones."""

    @abstractmethod
    def _settle(self, path_A: Sequence[int], scores: Scores) -> None:
        """Tell the drafter which nodes were kept; the target's pending token follows them."""


class Speculative(_DraftThenVerify):
    """A chain of up to `gamma` drafted tokens per pass."""

    def __init__(self, target: Decoder, drafter: Drafter, gamma: int) -> None:
        super().__init__(target)
        self.drafter: Drafter = drafter
        self.gamma = gamma

    def _propose(self, room: int) -> TokenTree:
        draft = self.drafter.draft(min(self.gamma, room))
        return TokenTree.chain([self.target.pending, *draft.tokens_G], draft.q_GV)

    def _settle(self, path_A: Sequence[int], scores: Scores) -> None:
        self.drafter.settle(len(path_A) - 1, self.target.pending, scores)


class SpeculativeTree(_DraftThenVerify):
    """A tree per pass (SpecInfer, Miao et al. 2024), of the drafter's own size."""

    def __init__(self, target: Decoder, drafter: TreeDrafter) -> None:
        super().__init__(target)
        self.drafter: TreeDrafter = drafter

    def _propose(self, room: int) -> TokenTree:
        return self.drafter.grow(room)

    def _settle(self, path_A: Sequence[int], scores: Scores) -> None:
        self.drafter.settle(path_A, self.target.pending, scores)


def model_drafter(models: Models) -> ModelDrafter:
    """The pair's draft as a drafter; one of the target's own layers works in the target's cache if that is here."""
    if models.draft_is_target and not models.drafts_only:
        return SelfDrafter(Decoder(models.draft_model, host=models.target), models.target, models.vocabulary)
    return ModelDrafter(models.draft, models.vocabulary)


def sorted_drafter(models: Models, threshold: float, exit: int) -> SortedDrafter:
    """The pair's trained draft as a drafter with exits."""
    return SortedDrafter(_staged(models, threshold, exit), models.vocabulary)


def build_sps(models: Models, gamma: int) -> Speculative:
    """Speculative sampling with a smaller model."""
    return Speculative(models.target, model_drafter(models), gamma)


def build_pld(models: Models, gamma: int, max_ngram: int) -> Speculative:
    """Prompt lookup decoding."""
    return Speculative(models.target, LookupDrafter(max_ngram), gamma)


def build_sd2(models: Models, gamma: int, threshold: float, exit: int) -> Speculative:
    """SD2 with a chain."""
    return Speculative(models.target, sorted_drafter(models, threshold, exit), gamma)


def build_sd2_tree(
    models: Models, branches: int, depth: int, nodes: int, threshold: float, exit: int
) -> SpeculativeTree:
    """SD2 with a tree."""
    drafter = SortedTreeDrafter(_staged(models, threshold, exit), models.vocabulary, branches, depth, nodes)
    return SpeculativeTree(models.target, drafter)


def _staged(models: Models, threshold: float, exit: int) -> StagedDecoder:
    """The pair's draft, left at one of its exits, or (0) at the first confident one."""
    if not 0 <= threshold <= 1:
        raise UserError(f"expected a threshold between 0 and 1, got {threshold}")
    exits = models.draft_exits
    if exit not in (0, *exits):
        raise UserError(f"expected --exit 0 (adaptive) or one of {', '.join(map(str, exits))}, got {exit}")
    return StagedDecoder(models.draft_model, [exit] if exit else exits, threshold, models.max_length)
