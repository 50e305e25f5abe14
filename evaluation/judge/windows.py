"""Which windows a run of PEARL has drafted, as its passes tell: `auto` chooses anew behind each answer, and the header
names all that occurred, but not how often.

A pass that follows one with all drafts kept has judged the window that was drafted beside that one: its other tokens,
and the first of the next. So each window is known that was of use.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from evaluation.answers.record import Choice
from methods.pearl.window import Windows


@dataclass
class Seen:
    """Lengths of windows that were judged: of those behind a prompt or a rejection, and of the others."""

    first: list[int] = field(default_factory=list)
    later: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, passes: Iterable[tuple[int, int]], pre_verify: bool) -> "Seen":
        """`passes`: how many drafts each judged, and how many it kept, behind the prefill."""
        seen, nothing_drafted, first = cls(), True, True
        for judged, kept in passes:
            if nothing_drafted and (judged > 1 or not pre_verify):
                seen.first.append(max(judged - 1, 1))  # it was there before the pass, which judged one token more
                first = False
            elif nothing_drafted:
                first = True
            else:
                (seen.first if first else seen.later).append(judged)
                first = False
            nothing_drafted = kept < judged
        return seen

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.first + other.first, self.later + other.later)

    def typical(self, default: Windows) -> Windows:
        """The mean of each kind, the default's where none was seen."""
        first, later = (
            fmean(lengths or [known]) for lengths, known in zip((self.first, self.later), default, strict=True)
        )
        return Windows(max(round(first), 1), max(round(later), 1))


def seen(choices: Sequence[Choice], pre_verify: bool) -> list[tuple[int, Seen]]:
    """Of each turn: the tokens that came behind the prefill's, and the windows."""
    return [turn for choice in choices for turn in _turns(choice, pre_verify)]


def _turns(choice: Choice, pre_verify: bool) -> Iterator[tuple[int, Seen]]:
    for tokens, judged, kept in zip(choice.new_tokens, choice.drafted or [], choice.accepted or [], strict=True):
        yield tokens - 1, Seen.of(list(zip(judged, kept, strict=True))[1:], pre_verify)


def typical_windows(choices: Sequence[Choice], pre_verify: bool, default: Windows) -> Windows:
    """Of a whole run."""
    return sum((found for _, found in seen(choices, pre_verify)), Seen()).typical(default)
