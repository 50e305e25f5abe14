"""The target's side of every method: prefill, then score a tree, decide, commit. All methods decide through here.

Invariant: the cache holds every token of the answer so far but the pending one.

Legend: T prompt tokens, N scored nodes of a tree, A kept ones, the root included, F feature width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from methods.engine.decoder import Decoder, Scores
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.engine.verify import typically_accepted, verify


class Outcome(NamedTuple):
    """What the target decided in a pass.

    tokens: the kept drafts in order, then the token that is pending now. path_A: the kept nodes, root first; the row of
    path_A[i] chose tokens[i]. features_AF: of these rows the features that the drafter asked for, side by side.
    nodes_N and logits_NV: tokens and logits of all nodes that were scored; None on another rank than the target's.
    `leaf_kept`: the last token is no token of the target's own but a drafted leaf, kept too. `margins`: see
    `methods.base.Step`."""

    tokens: list[int]
    path_A: list[int]
    features_AF: Tensor | None = None
    logits_NV: Tensor | None = None
    leaf_kept: bool = False
    margins: list[float] | None = None
    nodes_N: Sequence[int] | None = None

    @property
    def accepted(self) -> int:
        """Drafted tokens that were kept."""
        return len(self.tokens) - 1 + self.leaf_kept


class Target:
    """A decoder that decides. `taps`: the features that its drafter reads. `typical`: where sampling, it keeps what is
    likely enough, so that its output is no longer the model's. `pending`: the last decided token; `decided`: how many
    there are, the prompt included."""

    def __init__(self, decoder: Decoder, taps: Sequence[int] = (), typical: bool = False) -> None:
        self.decoder, self.taps, self.typical = decoder, tuple(taps), typical
        decoder.record(self.taps)
        self.sampling = Sampling()
        self.generator = self.sampling.generator("verify")
        self.pending, self.decided = -1, 0

    @property
    def max_length(self) -> int:
        return self.decoder.max_length

    @property
    def room(self) -> int:
        return self.decoder.room

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> tuple[Outcome, Tensor | None]:
        """Prefill and decide the first token. Returns that as an outcome, and the features of all T rows."""
        self.sampling, self.generator = sampling, sampling.generator("verify")
        scores = self.decoder.prefill(prompt_T, self.taps)
        root = TokenTree.chain([prompt_T[-1]])
        self.pending = verify(root, scores.logits_NV, sampling, self.generator).next_token
        self.decided = len(prompt_T) + 1
        features_TF = scores.features_NF
        last_1F = None if features_TF is None else features_TF[-1:]
        return Outcome([self.pending], [0], last_1F, scores.logits_NV, nodes_N=[prompt_T[-1]]), features_TF

    def score(self, tree: TokenTree) -> Scores:
        """One pass over a tree that is rooted at the pending token, with the drafter's features."""
        return self.decoder.score(tree, self.taps)

    def judge(self, tree: TokenTree) -> Outcome:
        """Score a tree rooted at the pending token, keep what the target agrees with, and decide the next token."""
        return self.decide(tree, self.score(tree))

    def decide(self, tree: TokenTree, scores: Scores) -> Outcome:
        """`judge` for a tree whose first nodes the decoder has scored last, those behind them being leaves."""
        if self.typical and not self.sampling.greedy:
            verdict = typically_accepted(tree, scores.logits_NV, self.sampling)
        else:
            verdict = verify(tree, scores.logits_NV, self.sampling, self.generator, scores.best_N2)
        path_A = verdict.path_A
        self.decoder.commit(path_A)
        self.pending, self.decided = verdict.next_token, self.decided + len(path_A)
        if self.decoder.length != self.decided - 1:
            raise AssertionError(f"the cache holds {self.decoder.length} tokens, {self.decided} are decided")
        kept = [tree.tokens[node] for node in path_A[1:]]
        kept_rows = slice(len(path_A)) if tree.is_chain else path_A  # a list of rows would be copied to the device
        features_AF = None if scores.features_NF is None else scores.features_NF[kept_rows]
        doubtful = self.decoder.row_invariant is False and self.sampling.greedy
        margins = _margins(scores.logits_NV[path_A]) if doubtful else None
        nodes_N = tree.tokens[: scores.logits_NV.shape[0]]
        return Outcome(
            [*kept, self.pending], path_A, features_AF, scores.logits_NV, verdict.leaf_kept, margins, nodes_N
        )


def _margins(logits_AV: Tensor) -> list[float]:
    """Top-1 minus top-2 logit of each row: how close each decision was."""
    best = logits_AV.topk(2, -1).values
    return [float(margin) for margin in best[:, 0] - best[:, 1]]
