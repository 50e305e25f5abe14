"""The target alone, one token per pass: the baseline of every comparison."""

import time
from collections.abc import Sequence

from methods.base import Method, Span, Step
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.target import Target


class Autoregressive(Method):
    """One node per pass."""

    def __init__(self, target: Decoder) -> None:
        self.target = Target(target)

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        return self.target.start(prompt_T, sampling)[0]

    def step(self) -> Step:
        begin = time.perf_counter()
        ruling = self.target.judge(TokenTree.chain([self.target.pending]))
        verified = Span("target", "verify", begin, time.perf_counter())
        return Step(ruling.tokens, spans=[verified], margins=ruling.margins)


def build(models: Models) -> Autoregressive:
    return Autoregressive(models.target)
