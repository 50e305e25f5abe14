"""Two drafters of chains as one: where the first has nothing to draft, the other goes on behind it.

Heads for a fixed number of places end there; so `medusa@behind=eagle3` has its first tokens by one product, and those
behind them by a head that may go on from its own predictions. Each takes the other's tokens as drafted (`take`), and
each is told what the target decided, whoever drafted it.

Legend: T prompt tokens, G drafted tokens, F feature width, V target vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters.base import ChainDrafter, Draft
from methods.engine.sampling import Sampling, stacked
from methods.target import Outcome


class Behind(ChainDrafter):
    """The first as far as it drafts, then the other. Their taps lie side by side, so each reads a slice of its own."""

    def __init__(self, first: ChainDrafter, other: ChainDrafter) -> None:
        super().__init__()
        self.first, self.other = first, other
        self.longest = None if None in (first.longest, other.longest) else max(first.longest or 0, other.longest or 0)
        self.taps = *first.taps, *other.taps
        self._depths: list[int] = []  # of what was drafted last

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.drafted = []
        for drafter, part_TF in zip((self.first, self.other), self._parts(features_TF), strict=True):
            drafter.begin(prompt_T, sampling, part_TF)

    def draft(self, n: int) -> Draft:
        tokens: list[int] = []
        rows: list[Tensor | None] = []
        self._depths = []
        for drafter, another in ((self.first, self.other), (self.other, self.first)):
            if len(tokens) == n:
                break
            draft = drafter.draft(n - len(tokens))
            another.take(draft.tokens_G)
            tokens += draft.tokens_G
            rows += [None] * len(draft.tokens_G) if draft.q_GV is None else list(draft.q_GV)
            self._depths += drafter.depths(len(draft.tokens_G))
        self.drafted += tokens
        return Draft(tokens, stacked(tokens, rows))

    def depths(self, count: int) -> list[int]:
        return self._depths[len(self._depths) - count :]

    def take(self, tokens_G: Sequence[int]) -> None:
        super().take(tokens_G)
        self.first.take(tokens_G)
        self.other.take(tokens_G)

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        for drafter, part in zip((self.first, self.other), self._told(outcome), strict=True):
            drafter.settle(part)

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        for drafter, part in zip((self.first, self.other), self._told(outcome), strict=True):
            drafter.confirm(part)

    def _told(self, outcome: Outcome) -> list[Outcome]:
        """The outcome for each of the two, with the features that it reads."""
        return [outcome._replace(features_AF=part_AF) for part_AF in self._parts(outcome.features_AF)]

    def _parts(self, features_NF: Tensor | None) -> list[Tensor | None]:
        """The slice of each of the two; None for one that reads none."""
        if features_NF is None:
            return [None, None]
        end = features_NF.shape[1] // len(self.taps) * len(self.first.taps)
        slices = features_NF[:, :end], features_NF[:, end:]
        return [part_NF if part_NF.shape[1] else None for part_NF in slices]
