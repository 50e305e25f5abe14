"""Token Recycling (Luo et al., ACL 2025): the target's own runners-up are drafted when their token comes again.

An adjacency matrix holds, for each token, the 8 most likely next ones of the last pass that scored it, wherever in the
tree. A fixed tree is filled from it: child j of a node is the j-th of its token. No model, no training.

Legend: T prompt tokens, N nodes of the last tree, F feature width, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters.base import Drafter
from methods.drafters.static_tree import Path, StaticShape, cheapest_first, level_order
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.target import Outcome

HOT = "hot"
ROW = 8  # next tokens held for each token
UNKNOWN = [0] * ROW  # the row of a token that no pass has scored

# The tree of the paper's code, "2.2.2": how many children each node has, by the ranks on the path to it.
CHILDREN: dict[Path, int] = {
    (): 8,
    **{(0,): 8, (1,): 4, (2,): 3, (3,): 2, (4,): 1, (5,): 1, (6,): 1, (7,): 1},
    **{(0, 0): 8, (0, 1): 3, (0, 2): 2, **{(0, rank): 1 for rank in range(3, 8)}, (1, 0): 2, (1, 1): 1},
    **{(rank, 0): 1 for rank in range(2, 6)},
    **{(0, 0, 0): 5, (0, 0, 1): 2, (0, 0, 2): 1, (0, 0, 3): 1, (0, 0, 4): 1, (0, 1, 0): 1, (0, 2, 0): 1},
    **{(1, 0, 0): 1, (2, 0, 0): 1, (3, 0, 0): 1},
    **{(0, 0, 0, 0): 3, (0, 0, 0, 1): 1, (0, 0, 0, 2): 1, (0, 0, 1, 0): 1, (0, 1, 0, 0): 1, (1, 0, 0, 0): 1},
    **{(0, 0, 0, 0, 0): 2, (0, 0, 0, 1, 0): 1},
}
PATHS = level_order((*path, rank) for path, count in CHILDREN.items() for rank in range(count))
SHAPE = StaticShape(cheapest_first(PATHS))


class RecyclingDrafter(Drafter):
    """The matrix begins empty with every prompt, so that no answer's drafts depend on the ones before; with `hot` it is
    kept, as the paper's code does."""

    def __init__(self, nodes: int, hot: bool = False, shape: StaticShape = SHAPE) -> None:
        self.nodes, self.hot, self.shape = nodes, hot, shape
        self.rows: dict[int, list[int]] = {}  # token -> the most likely next ones, first the best
        self.pending = -1

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        if not self.hot:
            self.rows = {}

    def settle(self, outcome: Outcome) -> None:
        if outcome.logits_NV is not None and outcome.nodes_N is not None:
            best = outcome.logits_NV.topk(min(ROW, outcome.logits_NV.shape[-1])).indices.tolist()
            self.rows |= zip(outcome.nodes_N, best, strict=True)  # of a token that occurs twice the later node counts
        self.pending = outcome.tokens[-1]

    def propose(self, room: int) -> TokenTree:
        tokens: dict[Path, int] = {(): self.pending}
        for path in self.shape.tree(min(room, self.nodes), self.levels):
            row = self.rows.get(tokens[path[:-1]], UNKNOWN) if path[:-1] in tokens else []
            if path[-1] < len(row):
                tokens[path] = row[path[-1]]
        del tokens[()]
        return self.shape.filled(self.pending, tokens)


def build(models: Models, nodes: int, start: str) -> RecyclingDrafter:
    """Token Recycling, which needs no weights."""
    return RecyclingDrafter(nodes, start == HOT)
