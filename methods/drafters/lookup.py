"""Prompt lookup: copy what followed the last occurrence of the current n-gram (Saxena 2023, prompt lookup decoding;
Yang et al. 2023, "Inference with Reference"). No model, no probabilities."""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters.base import ChainDrafter, Draft
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.target import Outcome


class LookupDrafter(ChainDrafter):
    """Longest match first, `max_ngram` down to 1 token; among equals the most recent. Searches prompt and output."""

    def __init__(self, max_ngram: int) -> None:
        super().__init__()
        self.max_ngram = max_ngram
        self.tokens: list[int] = []
        # n-gram -> index behind its last occurrence that something follows
        self.followers: dict[tuple[int, ...], int] = {}

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.tokens, self.followers = [], {}
        self._append(prompt_T)

    def _append(self, tokens: Sequence[int]) -> None:
        """Add decided tokens; the n-grams that end just before each now have a follower."""
        for token in tokens:
            end = len(self.tokens)
            for size in range(1, min(self.max_ngram, end) + 1):
                self.followers[tuple(self.tokens[end - size :])] = end
            self.tokens.append(token)

    def draft(self, n: int) -> Draft:
        known = self.tokens + self.drafted
        for size in range(min(self.max_ngram, len(known)), 0, -1):
            start = self.followers.get(tuple(known[-size:]))
            if start is not None:
                found = self.tokens[start : start + n]
                self.drafted += found
                return Draft(found)
        return Draft([])

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        self._append(outcome.tokens)

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        self._append(outcome.tokens)


def build(models: Models, max_ngram: int) -> LookupDrafter:
    """Prompt lookup, which needs no weights."""
    return LookupDrafter(max_ngram)
