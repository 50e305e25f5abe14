"""What became of the drafts: how many were judged, and how many of them accepted, by position and in a row."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from evaluation.answers.record import Choice
from evaluation.answers.run import Run

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Drafts:
    """Draft tokens that were judged and accepted, of each pass that drafted.

    `known`: whether every choice records them as they are counted now. `tree`: they were trees, of which what is said
    of chains is not defined."""

    drafted: Ints
    accepted: Ints
    known: bool = True
    tree: bool = False

    @classmethod
    def of(cls, choices: Sequence[Choice], tree: bool = False) -> Self:
        """Files without `nodes` count the depth of a tree as drafted: that says nothing."""
        known = [c for c in choices if c.drafted is not None and c.accepted is not None]
        whole = len(known) == len(choices) and not (tree and any(c.nodes is None for c in choices))
        drafted, accepted = (
            np.fromiter((n for c in known for turn in getattr(c, key) for n in turn), np.int64)
            for key in ("drafted", "accepted")
        )
        return cls(drafted[drafted > 0], accepted[drafted > 0], whole, tree)

    @property
    def judged(self) -> int | None:
        """Draft tokens that the target judged; None where unknown."""
        return int(self.drafted.sum()) if self.known else None

    @property
    def chains(self) -> bool:
        """Whether there are any of which position and run length are defined."""
        return len(self.drafted) > 0 and not self.tree

    @property
    def conditional_acceptance(self) -> list[float] | None:
        """Entry i: of the passes that drafted more than i tokens and accepted the first i, the share that accepted
        the next one too. As far as there are any; None where unknown, and for trees."""
        return self._by_position(lambda i: self.accepted >= i)

    @property
    def tried_by_position(self) -> list[int]:
        """How many passes each entry of `conditional_acceptance` is of."""
        return [int(((self.drafted > i) & (self.accepted >= i)).sum()) for i in range(self.drafted.max(initial=0))]

    @property
    def joint_acceptance(self) -> list[float] | None:
        """Entry i: of the passes that drafted more than i tokens, the share that accepted more than i. None where
        unknown, and for trees.

        This is the chance that a whole prefix of i + 1 drafted tokens is accepted, so it falls with i."""
        return self._by_position(lambda i: self.accepted >= 0)

    def _by_position(self, reached: Callable[[int], Any]) -> list[float] | None:
        if not self.chains:
            return None
        tried = [(self.drafted > i) & reached(i) for i in range(int(self.drafted.max()))]
        return [float((self.accepted[mask] > i).mean()) for i, mask in enumerate(tried) if mask.any()]

    @property
    def run_length(self) -> float | None:
        """Accepted draft tokens per rejection: how long a run of accepted tokens is, across passes. PEARL's own "mean
        accepted tokens" (Liu et al. 2025), not to be compared with MAT. None where unknown, where nothing was
        rejected, and for trees."""
        rejections = int((self.accepted < self.drafted).sum())
        return float(self.accepted.sum()) / rejections if self.chains and rejections else None

    @property
    def acceptance_rate(self) -> float | None:
        """alpha of the i.i.d. model: of the draft tokens up to and including each pass's first rejected one, the share
        that was accepted. None where unknown or nothing was drafted, and for trees."""
        tried = int(self.accepted.sum() + (self.accepted < self.drafted).sum())
        return float(self.accepted.sum()) / tried if self.chains and tried else None


def drafts_of(run: Run, choices: Sequence[Choice]) -> Drafts:
    """Of choices of the run. Another library's loop does not tell what it drafts."""
    told = run.header is None or run.header.loop != "peer"
    return Drafts.of(choices, run.tree) if told else Drafts(np.zeros(0, int), np.zeros(0, int), known=False)


@dataclass(frozen=True)
class AtDepth:
    """Of drafted tokens that lie so many places behind the last true feature, all before them being accepted: how many
    the target judged, and how many of these it accepted."""

    depth: int
    tried: int
    accepted: int

    @property
    def share(self) -> float:
        return self.accepted / self.tried


def by_depth(choices: Iterable[Choice]) -> list[AtDepth]:
    """The acceptance at each depth that occurs. None where no drafter reads features, or the files do not tell."""
    tried: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    for choice in choices:
        turns = zip(choice.depths or [], choice.drafted or [], choice.accepted or [], strict=False)
        for depths, judged_of_passes, kept_of_passes in turns:
            begin = 0
            for judged, kept in zip(judged_of_passes, kept_of_passes, strict=True):
                tried.update(depths[begin : begin + min(kept + 1, judged)])
                accepted.update(depths[begin : begin + kept])
                begin += judged
    return [AtDepth(depth, tried[depth], accepted[depth]) for depth in sorted(tried) if depth]


def run_lengths(choice: Choice) -> Iterable[int]:
    """Accepted drafts before each rejection. What follows an answer's last one is no whole run, and is left out."""
    for drafted, accepted in zip(choice.drafted or [], choice.accepted or [], strict=True):
        length = 0
        for judged, kept in zip(drafted, accepted, strict=True):
            length += kept
            if kept < judged:
                yield length
                length = 0
