"""SD2 as a tree that grows where the draft is confident (the dynamic tree of EAGLE-2, Li et al. 2024, section 4).

Legend: T prompt tokens, F nodes of a level that are expanded, R rows of the draft's head.
"""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters.base import Drafter
from methods.drafters.growing import GrowingTree
from methods.drafters.language_model import head_tokens
from methods.drafters.sd2.chain import staged_decoder
from methods.drafters.sd2.exits import StagedDecoder
from methods.engine.backends.best import likeliest
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.target import Outcome


class SortedTreeDrafter(Drafter):
    """Level by level the `branches` most confident nodes get their `branches` most likely children each, `depth` levels
    deep; the `nodes` most confident of all are proposed. The exit is chosen for each level, by its most confident
    node."""

    def __init__(self, decoder: StagedDecoder, vocabulary: int, branches: int, depth: int, nodes: int) -> None:
        """`vocabulary`: the target's size V."""
        self.decoder, self.branches, self.depth, self.nodes = decoder, branches, depth, nodes
        self.tokens_R = head_tokens(decoder.model, vocabulary).tolist()
        self.unseen: list[int] = []  # decided tokens that the draft has not seen, the pending one last

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.decoder.prefill(prompt_T[-self.decoder.max_length :])
        self.unseen = []

    def settle(self, outcome: Outcome) -> None:
        self.unseen += outcome.tokens

    def propose(self, room: int) -> TokenTree:
        tree = GrowingTree(self.unseen[-1], min(room, self.nodes))
        if room and len(self.unseen) <= self.decoder.room:
            self.decoder.feed(self.unseen[:-1])
            self.unseen = self.unseen[-1:]
            for _ in range(self.most_levels(self.depth)):
                if not tree.level or len(tree.expanded) > self.decoder.room:
                    break
                logits_FR = self.decoder.branch(tree.scored, tree.known)
                if logits_FR.shape[1] > len(self.tokens_R):
                    logits_FR = logits_FR[:, : len(self.tokens_R)]
                places_FB, log_p_FB = likeliest(logits_FR, min(self.branches, tree.nodes))
                tokens_FB = [[self.tokens_R[place] for place in places] for places in places_FB]
                tree.grow(tokens_FB, log_p_FB, self.branches)
        return tree.proposed


def build(models: Models, branches: int, depth: int, nodes: int, threshold: float, exit: int) -> SortedTreeDrafter:
    """The pair's sorted draft."""
    decoder = staged_decoder(models, threshold, exit)
    return SortedTreeDrafter(decoder, models.vocabulary, branches, depth, nodes)
