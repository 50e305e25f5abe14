"""Token Recycling (Luo et al., ACL 2025): the target's own runners-up are drafted when their token comes again.

An adjacency matrix holds, for each token, the 8 most likely next ones of the last pass that scored it, wherever in the
tree. A fixed tree is filled from it: child j of a node is the j-th of its token. No model, no training.

Legend: T prompt tokens, N nodes of the last tree, F feature width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.drafters.base import Drafter
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.target import Outcome

ROW = 8  # next tokens held for each token
UNKNOWN = [0] * ROW  # the row of a token that no pass has scored

# The tree of the paper's code, "2.2.2": how many children each node has, by the ranks on the path to it.
CHILDREN: dict[tuple[int, ...], int] = {
    (): 8,
    **{(0,): 8, (1,): 4, (2,): 3, (3,): 2, (4,): 1, (5,): 1, (6,): 1, (7,): 1},
    **{(0, 0): 8, (0, 1): 3, (0, 2): 2, **{(0, rank): 1 for rank in range(3, 8)}, (1, 0): 2, (1, 1): 1},
    **{(rank, 0): 1 for rank in range(2, 6)},
    **{(0, 0, 0): 5, (0, 0, 1): 2, (0, 0, 2): 1, (0, 0, 3): 1, (0, 0, 4): 1, (0, 1, 0): 1, (0, 2, 0): 1},
    **{(1, 0, 0): 1, (2, 0, 0): 1, (3, 0, 0): 1},
    **{(0, 0, 0, 0): 3, (0, 0, 0, 1): 1, (0, 0, 0, 2): 1, (0, 0, 1, 0): 1, (0, 1, 0, 0): 1, (1, 0, 0, 0): 1},
    **{(0, 0, 0, 0, 0): 2, (0, 0, 0, 1, 0): 1},
}
PATHS = sorted(((*path, rank) for path, count in CHILDREN.items() for rank in range(count)), key=lambda p: (len(p), p))

# The same by what their ranks promise: each step down costs 1 and its rank, so that a parent comes before its children.
BEST = sorted(PATHS, key=lambda path: (len(path) + sum(path), PATHS.index(path)))
SIZES = {(): 0} | {path: size for size, path in enumerate(BEST, 1)}  # of the smallest tree that has a path


class RecyclingDrafter(Drafter):
    """The matrix begins empty with every prompt, so that no answer depends on the ones before."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.rows: dict[int, list[int]] = {}  # token -> the most likely next ones, first the best
        self.scored: list[int] = []  # tokens of the nodes that the target has scored last
        self.pending = -1

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.rows, self.scored = {}, [prompt_T[-1]]

    def settle(self, outcome: Outcome) -> None:
        if outcome.logits_NV is not None:
            best = outcome.logits_NV.topk(min(ROW, outcome.logits_NV.shape[-1])).indices.tolist()
            self.rows |= zip(self.scored, best, strict=True)  # of a token that occurs twice the later node counts
        self.pending = outcome.tokens[-1]

    def propose(self, room: int) -> TokenTree:
        nodes: dict[tuple[int, ...], int] = {(): 0}
        tokens, parents, most = [self.pending], [-1], min(room, self.nodes)
        for path in (path for path in PATHS if SIZES[path] <= most):
            parent = nodes.get(path[:-1])
            row = [] if parent is None else self.rows.get(tokens[parent], UNKNOWN)
            if parent is not None and path[-1] < len(row):
                nodes[path] = len(tokens)
                tokens.append(row[path[-1]])
                parents.append(parent)
        self.scored = tokens
        return TokenTree(torch.tensor(tokens), torch.tensor(parents), sizes_N=[SIZES[path] for path in nodes])


def build(models: Models, nodes: int) -> RecyclingDrafter:
    """Token Recycling, which needs no weights."""
    return RecyclingDrafter(nodes)
