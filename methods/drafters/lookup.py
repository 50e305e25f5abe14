"""Prompt lookup: copy what followed the last occurrence of the current n-gram (Saxena 2023, prompt lookup decoding;
Yang et al. 2023, "Inference with Reference"). No model, no probabilities."""

from collections.abc import Sequence

from methods.drafters.base import Draft
from methods.engine.decoder import Scores
from methods.engine.sampling import Sampling


class LookupDrafter:
    """Longest match first, `max_ngram` down to 1 token; among equals the most recent. Searches prompt and output."""

    def __init__(self, max_ngram: int) -> None:
        self.max_ngram = max_ngram
        self.tokens: list[int] = []
        self.drafted: list[int] = []
        # n-gram -> index behind its last occurrence that something follows
        self.followers: dict[tuple[int, ...], int] = {}

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features: Scores | None) -> None:
        self.tokens, self.drafted, self.followers = [], [], {}
        for token in prompt_T:
            self._append(token)

    def _append(self, token: int) -> None:
        """Confirm a token; the n-grams that end just before it now have a follower."""
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

    def settle(self, accepted: int, next_token: int, features: Scores | None) -> None:
        for token in [*self.drafted[:accepted], next_token]:
            self._append(token)
        self.drafted = []
