"""SAM-Decoding (Hu et al., ACL 2025): copy what followed the longest suffix of the text that has occurred before.

A suffix automaton over prompt and answer knows that suffix at every token. The longer it is, the more is copied. Before
another drafter (either.py) it copies behind longer matches only.

Two things differ from the paper's code. Where the text ends behind an occurrence, which then overlaps the current
suffix, we go on with what has been copied; theirs stops, or copies behind a shorter match than the one by which it has
decided to copy. And theirs fills up short drafts with token 0, and counts these as drafted. Its corpus, which comes
before the answer itself in one of its versions and behind it in the other, is a drafter of its own here: rest.py.

Legend: T prompt tokens, F feature width.
"""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters.base import ChainDrafter, Draft
from methods.drafters.suffix_automaton import SuffixAutomaton
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.options import MOST
from methods.target import Outcome

LATEST = "latest"


class SamDrafter(ChainDrafter):
    """`least`: tokens that must have matched before anything is copied; `share`: tokens copied for each that has."""

    def __init__(self, least: int, share: float, longest: int | None, latest: bool) -> None:
        super().__init__()
        self.least, self.share, self.longest, self.latest = least, share, longest, latest
        self.text = SuffixAutomaton(latest)

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.drafted, self.text = [], SuffixAutomaton(self.latest)
        self.text.extend(prompt_T)

    def draft(self, n: int) -> Draft:
        matched, start = self.text.match(self.drafted)
        decided = matched - len(self.drafted)
        if decided < self.least:
            return Draft([])
        most = int(self.share * decided) if self.longest is None else min(self.longest, int(self.share * decided))
        copied = self.text.following(start, max(min(n, most - len(self.drafted)), 0), self.drafted)
        self.drafted += copied
        return Draft(copied)

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        self.text.extend(outcome.tokens)

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        self.text.extend(outcome.tokens)


def build(models: Models, matched: int, alpha: float, longest: int, occurrence: str) -> SamDrafter:
    """SAM-Decoding, which needs no weights."""
    return SamDrafter(matched, alpha, None if longest == MOST else longest, occurrence == LATEST)
