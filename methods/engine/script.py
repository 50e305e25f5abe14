"""What a scripted target and its scripted draft say, place by place: known before anything runs, so that how many
passes each loop must take can be counted without it. Pure.

The prompt is the script: "kept 80 other 10 tokens 60 prompt 10 seed 1". The target's answer is `tokens` long, whatever
it is asked in between. At `kept` of 100 places the draft's first choice is the target's token, at `other` of 100 its
second choice is. A place is a deck's card: the numbers of cards are exact, a seed shuffles them.
"""

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import Self

EOS, UNKNOWN = 0, 1  # tokens
FIRST, SECOND, NEITHER = range(3)  # of a draft's choices the one that is the target's token


@dataclass(frozen=True)
class Script:
    """`prompt`: as many passes the reading of the prompt takes."""

    kept: int
    other: int
    tokens: int
    prompt: int
    seed: int

    @property
    def text(self) -> str:
        """The prompt."""
        return " ".join(f"{name} {value}" for name, value in zip(NAMES, astuple(self), strict=True))

    @classmethod
    def read(cls, prompt_T: Sequence[int]) -> Self | None:
        """The script that a prompt is; None for another prompt."""
        values = [token - NUMBERS for token in prompt_T[1::2]]
        named = list(prompt_T[::2]) == list(range(UNKNOWN + 1, NUMBERS))
        return cls(*values) if named and len(values) == len(NAMES) and min(values) >= 0 else None

    @cached_property
    def _cards(self) -> list[int]:
        """Of each place behind the first, which the prompt decides. The draft for the next one is right: nobody can
        have prepared for what comes in an answer's first round."""
        count = self.tokens - 1
        first = round(count * self.kept / 100)
        second = min(round(count * self.other / 100), count - first)
        cards = [FIRST] * first + [SECOND] * second + [NEITHER] * (count - first - second)
        random.Random(self.seed).shuffle(cards)
        if first:
            right = cards.index(FIRST)
            cards[0], cards[right] = cards[right], cards[0]
        return cards

    def card(self, place: int) -> int:
        """Which of the draft's choices for that place is the target's token. Behind the answer's end the first."""
        return self._cards[place - 1] if 0 < place < self.tokens else FIRST

    def token(self, place: int) -> int:
        """The target's."""
        return EOS if place == self.tokens - 1 else NUMBERS + (7 * place + self.seed) % SPAN

    def choices(self, place: int) -> tuple[int, int]:
        """The draft's first and second choice."""
        others = [NUMBERS + SPAN + place % SPAN, NUMBERS + 2 * SPAN + place % SPAN]
        card = self.card(place)
        if card != NEITHER:
            others[card] = self.token(place)
        return others[0], others[1]


NAMES = tuple(field.name for field in fields(Script))
NUMBERS = UNKNOWN + 1 + len(NAMES)  # the token of the number 0, that of the next number follows
SPAN = 300  # different tokens of an answer; as many stand for each wrong choice
WORDS = ["<eos>", "<unknown>", *NAMES, *map(str, range(3 * SPAN))]  # the vocabulary, a token each
BRIEF = Script(kept=100, other=0, tokens=4, prompt=1, seed=0)  # behind a prompt that is no script
