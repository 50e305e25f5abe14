"""Two drafters as one that take turns: in each round the first proposes where it has something to, else the other does.

So copying where enough has matched goes with any other drafter (SAM-Decoding, Hu et al., ACL 2025). Both are told what
the target decided, whoever drafted it, so that the other goes on from there when it is its turn again.

Legend: T prompt tokens, F feature width.
"""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters.base import ChainDrafter, Drafter
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.target import Outcome


class Either(Drafter):
    """How much the loop wants is said of the other's proposals; the first knows by itself how much to propose."""

    def __init__(self, first: ChainDrafter, other: Drafter) -> None:
        if first.taps:
            raise ValueError(f"expected a first drafter that reads no features, got taps {first.taps}")
        self.first, self.other, self.taps = first, other, other.taps
        self._proposed: Drafter = other  # what was judged last

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.first.begin(prompt_T, sampling, None)
        self.other.begin(prompt_T, sampling, features_TF)

    def propose(self, room: int) -> TokenTree:
        tree, self._proposed = self.first.propose(room), self.first
        if not tree.drafted:
            tree, self._proposed = self.other.propose(self.other.wanted(room)), self.other
        return tree

    def depths(self, count: int) -> list[int]:
        return self._proposed.depths(count)

    def settle(self, outcome: Outcome) -> None:
        self.first.settle(outcome._replace(features_AF=None))
        self.other.settle(outcome)

    def limit(self, most: int | None, levels: int | None) -> None:
        self.other.limit(most, levels)

    def settled(self) -> dict[str, int | str]:
        return self.other.settled()

    def fit(self) -> None:
        self.other.fit()
