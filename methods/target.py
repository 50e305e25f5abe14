"""The target's side of every method: prefill, then score a tree, decide, commit. All methods decide through here.

Invariant: the cache holds every token of the answer so far but the pending one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from methods.engine.decoder import Decoder, Scores
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.engine.verify import verify


@dataclass(frozen=True)
class Ruling:
    """A pass's outcome: the decided tokens (kept drafts, then the target's own), the kept nodes (root first), and the
    pass's scores. `leaf_kept`: the last token is no token of the target's own but a drafted leaf, kept too."""

    tokens: list[int]
    path_A: list[int]
    scores: Scores
    margins: list[float] | None = None
    leaf_kept: bool = False

    @property
    def accepted(self) -> int:
        """Drafted tokens that were kept."""
        return len(self.tokens) - 1 + self.leaf_kept


class Target:
    """A decoder that decides. `pending`: the last decided token; `decided`: how many there are, the prompt included."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.sampling = Sampling()
        self.generator = self.sampling.generator("verify")
        self.pending, self.decided = -1, 0

    @property
    def max_length(self) -> int:
        return self.decoder.max_length

    @property
    def room(self) -> int:
        return self.decoder.room

    def start(self, prompt_T: Sequence[int], sampling: Sampling) -> tuple[int, Scores]:
        """Prefill and decide the first token."""
        self.sampling, self.generator = sampling, sampling.generator("verify")
        scores = self.decoder.prefill(prompt_T)
        root = TokenTree.chain([prompt_T[-1]])
        self.pending = verify(root, scores.logits_NV, sampling, self.generator).next_token
        self.decided = len(prompt_T) + 1
        return self.pending, scores

    def judge(self, tree: TokenTree) -> Ruling:
        """Score a tree rooted at the pending token, keep what the target agrees with, and decide the next token."""
        return self.decide(tree, self.decoder.score(tree))

    def decide(self, tree: TokenTree, scores: Scores) -> Ruling:
        """`judge` for a tree whose first nodes the decoder has scored last, those behind them being leaves."""
        verdict = verify(tree, scores.logits_NV, self.sampling, self.generator)
        self.decoder.commit(verdict.path_A)
        self.pending, self.decided = verdict.next_token, self.decided + len(verdict.path_A)
        if self.decoder.length != self.decided - 1:
            raise AssertionError(f"the cache holds {self.decoder.length} tokens, {self.decided} are decided")
        kept = [int(tree.tokens_N[node]) for node in verdict.path_A[1:]]
        doubtful = self.decoder.row_invariant is False and self.sampling.greedy
        margins = _margins(scores.logits_NV[verdict.path_A]) if doubtful else None
        return Ruling([*kept, verdict.next_token], verdict.path_A, scores, margins, verdict.leaf_kept)


def _margins(logits_AV: Tensor) -> list[float]:
    """Top-1 minus top-2 logit of each row: how close each decision was."""
    best = logits_AV.topk(2, -1).values
    return [float(margin) for margin in best[:, 0] - best[:, 1]]
