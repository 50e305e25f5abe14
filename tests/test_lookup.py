"""Prompt lookup against both of its rules, written once more from their definitions."""

import random

import pytest

from methods.drafters.lookup import LookupDrafter
from methods.engine.sampling import Sampling
from methods.target import Outcome


def copied(text: list[int], longest: int, window: int, first: bool) -> list[int]:
    """By going through all places where the newest n-gram has stood before."""
    for size in range(min(longest, len(text)), 0, -1):
        ends = [end for end in range(size, len(text)) if text[end - size : end] == text[-size:]]
        drafts = [text[end : end + window] for end in ends]
        if first:
            drafts = [draft for draft in drafts if len(draft) == window]
        if drafts:
            return drafts[0 if first else -1]
    return []


@pytest.mark.parametrize("first", [False, True])
def test_drafts_are_those_of_the_definition(first: bool) -> None:
    numbers, apart = random.Random(0), 0
    for _ in range(300):
        text = numbers.choices(range(3, 9), k=numbers.randint(1, 40))
        longest, window, split = numbers.randint(1, 4), numbers.randint(1, 6), numbers.randrange(len(text))
        drafter = LookupDrafter(longest, first)
        drafter.begin(text[:split], Sampling(), None)
        drafter.settle(Outcome(text[split:], [0]))
        assert drafter.draft(window).tokens_G == copied(text, longest, window, first)
        apart += copied(text, longest, window, first) != copied(text, longest, window, not first)
    assert apart > 100, "else the rules were not told apart"
