"""The target alone, one token per pass: the baseline of every comparison."""

import time
from collections.abc import Sequence

from methods.base import Method, Span, Step
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.target import Target


class Autoregressive(Method):
    """One node per pass."""

    def __init__(self, target: Decoder) -> None:
        self.target = Target(target)

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        self.target.start(prompt_T, sampling)
        return self.target.pending

    def step(self) -> Step:
        begin = time.perf_counter()
        outcome = self.target.judge(TokenTree.chain([self.target.pending]))
        verified = Span("target", "verify", begin, time.perf_counter())
        return Step(outcome.tokens, spans=[verified], margins=outcome.margins)
