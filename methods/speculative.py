"""Draft, then verify, on one device: any chain drafter (Leviathan et al. 2023, algorithm 1; Chen et al. 2023)."""

import time
from collections.abc import Sequence

from methods.base import Step
from methods.drafters.base import Drafter
from methods.drafters.lookup import LookupDrafter
from methods.drafters.model import ModelDrafter
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.target import Target


class Speculative:
    """Each pass verifies up to `gamma` drafted tokens and adds one of the target's own."""

    def __init__(self, target: Decoder, drafter: Drafter, gamma: int) -> None:
        self.target, self.drafter, self.gamma = Target(target), drafter, gamma

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        first, scores = self.target.start(prompt_T, sampling)
        self.drafter.begin(prompt_T, sampling, scores)
        self.drafter.settle(0, first, scores)
        return first

    def step(self) -> Step:
        begin = time.perf_counter()
        draft = self.drafter.draft(min(self.gamma, self.target.room - 1))
        drafted = time.perf_counter()
        tree = TokenTree.chain([self.target.pending, *draft.tokens_G], draft.q_GV)
        ruling = self.target.judge(tree)
        verified = time.perf_counter()
        self.drafter.settle(ruling.accepted, self.target.pending, ruling.scores)
        return Step(
            ruling.tokens,
            drafted=len(draft.tokens_G),
            accepted=ruling.accepted,
            draft_time=drafted - begin + time.perf_counter() - verified,
            verify_time=verified - drafted,
            margins=ruling.margins,
        )


def build_sps(models: Models, gamma: int) -> Speculative:
    """Speculative sampling with a smaller model."""
    return Speculative(models.target, ModelDrafter(models.draft, models.target.model.config.vocab_size), gamma)


def build_pld(models: Models, gamma: int, max_ngram: int) -> Speculative:
    """Prompt lookup decoding."""
    return Speculative(models.target, LookupDrafter(max_ngram), gamma)
