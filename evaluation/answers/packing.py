"""The lists of numbers in answers as arrays, a fraction of the size: many thousands of answers then fit into memory.

Judges read of them what lists give too: their length, their items and their sum.
"""

from array import array
from collections.abc import Sequence

from evaluation.answers.record import Answer, Choice

NESTED = ("token_ids", "drafted", "accepted", "nodes", "margins", "depths", "pass_time")  # a list for each turn


def pack(answer: Answer) -> Answer:
    """The answer itself, its lists of tokens and passes packed."""
    for choice in answer.choices:
        _replace(choice, "accept_lengths", packed(choice.accept_lengths))
        for key in NESTED:
            turns = getattr(choice, key)
            _replace(choice, key, None if turns is None else [packed(turn) for turn in turns])
    return answer


def renumbered(answer: Answer, by: int) -> Answer:
    """The answer itself, its repeats counted from another number on."""
    for choice in answer.choices:
        _replace(choice, "index", choice.index + by)
    return answer


def _replace(choice: Choice, key: str, value: object) -> None:
    """Without checking the choice again, as `dataclasses.replace` would: it says the same as before."""
    object.__setattr__(choice, key, value)


def packed(numbers: Sequence[float]) -> Sequence[float]:
    """The same numbers in the narrowest array that holds them, as they are where none does."""
    if any(isinstance(number, float) for number in numbers):
        return array("d", numbers)
    for kind in "iq":  # none so narrow that a sum of two of its numbers would overflow in numpy
        try:
            return array(kind, numbers)
        except OverflowError:
            continue
    return numbers
