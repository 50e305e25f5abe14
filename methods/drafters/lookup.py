"""Prompt lookup: copy what followed the last occurrence of the current n-gram (Saxena 2023, prompt lookup decoding;
Yang et al. 2023, "Inference with Reference"). No model, no probabilities.

The published code copies from the first occurrence instead, and only where a whole window follows it, so that what has
just begun to repeat itself is not copied: `match` chooses.

Legend: T prompt tokens, G drafted tokens, F feature width.
"""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters.base import ChainDrafter, Draft
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.target import Outcome


class LookupDrafter(ChainDrafter):
    """Longest match first, `max_ngram` down to 1 token; among equals the most recent, or the `first` that a whole
    window follows. Searches prompt and output."""

    def __init__(self, max_ngram: int, first: bool = False) -> None:
        super().__init__()
        self.max_ngram, self.first = max_ngram, first
        self.tokens: list[int] = []
        # n-gram -> index behind its last, or first, occurrence that something follows
        self.followers: dict[tuple[int, ...], int] = {}

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.tokens, self.followers = [], {}
        self._append(prompt_T)

    def _append(self, tokens: Sequence[int]) -> None:
        """Add decided tokens; the n-grams that end just before each now have a follower."""
        for token in tokens:
            end = len(self.tokens)
            for size in range(1, min(self.max_ngram, end) + 1):
                ngram = tuple(self.tokens[end - size :])
                self.followers[ngram] = self.followers.get(ngram, end) if self.first else end
            self.tokens.append(token)

    def draft(self, n: int) -> Draft:
        known = self.tokens + self.drafted
        for size in range(min(self.max_ngram, len(known)), 0, -1):
            start = self.followers.get(tuple(known[-size:]))
            found = [] if start is None else self.tokens[start : start + n]
            if found and (len(found) == n or not self.first):
                self.drafted += found
                return Draft(found)
        return Draft([])

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        self._append(outcome.tokens)

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        self._append(outcome.tokens)


def build(models: Models, max_ngram: int, match: str) -> LookupDrafter:
    """Prompt lookup, which needs no weights."""
    return LookupDrafter(max_ngram, match == "first")
