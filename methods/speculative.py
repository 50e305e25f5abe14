"""Draft, then verify, on one device: any drafter (Leviathan et al. 2023, algorithm 1; trees: SpecInfer, Miao et al.
2024)."""

from collections.abc import Sequence

from methods.base import Method, Span, Step
from methods.drafters.base import Drafter
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.traffic import Moment, moment
from methods.target import Target
from methods.tree_size import AutoNodes, measured_passes


class Speculative(Method):
    """Each pass verifies what was drafted and adds one token of the target's own."""

    def __init__(
        self,
        target: Decoder,
        drafter: Drafter,
        most: int | None = None,
        sought: AutoNodes | None = None,
        typical: bool = False,
    ) -> None:
        """`most`: tokens drafted per round; None: as many as the drafter's own tree has. `sought`: how many are best is
        to be found out by the answers so far, first those of the runner's warm-up (tree_size.py). `typical`: as
        `Target` has it."""
        self.target, self.drafter = Target(target, drafter.taps, typical), drafter
        self.drafter.limit(most, None)
        self.sought = sought

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> int:
        first, features_TF = self.target.start(prompt_T, sampling)
        if self.sought and not self.sought.pass_seconds and self.target.room:
            self.sought.pass_seconds = measured_passes(self.target.decoder, self.target.pending)
        self.drafter.begin(prompt_T, sampling, features_TF)
        self.drafter.settle(first)
        return self.target.pending

    def step(self) -> Step:
        if self.sought:
            self.drafter.limit(*self.sought.size)
        begin = moment()
        # The pending token takes a row too.
        tree = self.drafter.propose(self.drafter.wanted(self.target.room - 1))
        depths = self.drafter.depths(tree.drafted)
        drafted = moment()
        outcome = self.target.judge(tree)
        verified = moment()
        self.drafter.settle(outcome)
        settled = moment()
        if self.sought and not tree.is_chain:  # which is of no size that was asked for
            seconds = drafted.seconds - begin.seconds, verified.seconds - drafted.seconds
            self.sought.judged(tree, outcome.path_A, *seconds)
        return Step(
            outcome.tokens,
            drafted=tree.drafted,
            accepted=outcome.accepted,
            nodes=tree.nodes,
            spans=[
                _drafting(begin, drafted, tree.drafted, next(iter(depths), 0)),
                Span("target", "verify", drafted.seconds, verified.seconds),
                _drafting(verified, settled),
            ],
            margins=outcome.margins,
            depths=depths,
            tree=tree,
            path_A=outcome.path_A,
        )

    def finish(self) -> None:
        if self.sought and self.sought.answered():
            self.drafter.fit()

    def settled(self) -> dict[str, int | str]:
        size = self.sought.chosen._asdict() if self.sought and self.sought.chosen else {}
        return self.drafter.settled() | size


def _drafting(begin: Moment, end: Moment, tokens: int = 0, depth: int = 0) -> Span:
    return Span("target", "draft", begin.seconds, end.seconds, tokens, depth=depth, read=end.read - begin.read)
