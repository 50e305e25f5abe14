"""Draft, then verify, on one device: any drafter (Leviathan et al. 2023, algorithm 1; trees: SpecInfer, Miao et al.
2024)."""

import time
from collections.abc import Sequence

from methods.base import Method, Span, Step
from methods.drafters.base import Drafter
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.target import Target


class Speculative(Method):
    """Each pass verifies what was drafted and adds one token of the target's own."""

    def __init__(self, target: Decoder, drafter: Drafter, gamma: int | None = None) -> None:
        """`gamma`: tokens drafted per round; None: as many as the drafter's own tree has."""
        self.target, self.drafter, self.gamma = Target(target, drafter.taps), drafter, gamma

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        first, features_TF = self.target.start(prompt_T, sampling)
        self.drafter.begin(prompt_T, sampling, features_TF)
        self.drafter.settle(first)
        return self.target.pending

    def step(self) -> Step:
        begin = time.perf_counter()
        tree = self.drafter.propose(self._room)
        drafted = time.perf_counter()
        outcome = self.target.judge(tree)
        verified = time.perf_counter()
        self.drafter.settle(outcome)
        return Step(
            outcome.tokens,
            drafted=tree.drafted,
            accepted=outcome.accepted,
            nodes=len(tree.tokens_N),
            spans=[
                Span("target", "draft", begin, drafted, tree.drafted),
                Span("target", "verify", drafted, verified),
                Span("target", "draft", verified, time.perf_counter()),
            ],
            margins=outcome.margins,
        )

    @property
    def _room(self) -> int:
        """Most tokens to draft: the pending one takes a row too."""
        room = self.target.room - 1
        return room if self.gamma is None else min(self.gamma, room)
