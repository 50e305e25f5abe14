"""The contract of every drafter. It proposes tokens; it never sees the clock, EOS or limits.

A drafter speaks in decided tokens: `settle` says what the target decided, whoever drafted it, so drafters compose.

Legend: T prompt tokens, G drafted tokens, F feature width, V target vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from torch import Tensor

from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.target import Outcome


class Draft(NamedTuple):
    """tokens_G, and q_GV: the distribution that each was drawn from (None: chosen deterministically)."""

    tokens_G: list[int]
    q_GV: Tensor | None = None


class Drafter(ABC):
    """Proposes a tree of tokens behind the pending one, which is decided but not yet in the target's cache.

    `taps`: the target's features that it reads, as `Transformer` names them; they come side by side. `most` and
    `levels`: most tokens that it is to propose, and levels of its trees; None: as many as it has. The loop sets them by
    `limit`."""

    taps: tuple[int, ...] = ()
    most: int | None = None
    levels: int | None = None

    @abstractmethod
    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        """Start anew with a prompt; `settle` with the first token follows before the first proposal. Row i of
        features_TF is the target's state that read token i; None where the drafter has no taps."""

    @abstractmethod
    def propose(self, room: int) -> TokenTree:
        """A tree rooted at the pending token, with at most `room` drafted ones."""

    @abstractmethod
    def settle(self, outcome: Outcome) -> None:
        """Go on behind the decided tokens, the last of which is pending now. Other drafts are void."""

    def limit(self, most: int | None, levels: int | None) -> None:
        """The loop wants no more in a round."""
        self.most, self.levels = most, levels

    def wanted(self, room: int) -> int:
        """How many tokens the loop wants where there is room for so many."""
        return room if self.most is None else min(self.most, room)

    def depths(self, count: int) -> list[int]:
        """Of the `count` tokens of a chain that it has proposed last; see `ChainDrafter`. None of a tree."""
        return []

    def most_levels(self, depth: int) -> int:
        """Of a tree that could be so deep."""
        return depth if self.levels is None else min(self.levels, depth)

    def settled(self) -> dict[str, int | str]:
        """Which of its options it has chosen by itself, and what."""
        return {}

    def fit(self) -> None:
        """The warm-up is over: a tree whose shape is to be found out takes what was best so far, and keeps it."""
        return


class ChainDrafter(Drafter):
    """Proposes a chain, and can go on behind what it has drafted while that is verified: what PEARL takes.

    `pending`: the last decided token; `drafted`: the drafts behind it that are not decided yet. Both are kept here;
    a drafter that needs to know more extends `settle` and `confirm`. `longest`: most tokens that it can draft behind
    the pending one; None: as many as there is room for."""

    longest: int | None = None

    def __init__(self) -> None:
        self.pending = -1
        self.drafted: list[int] = []

    @abstractmethod
    def draft(self, n: int) -> Draft:
        """At most n tokens behind `drafted`, to which they are added."""

    def take(self, tokens_G: Sequence[int]) -> None:
        """Another drafter has drafted these behind `drafted`, to which they are added: go on behind them."""
        self.drafted += tokens_G

    def depths(self, count: int) -> list[int]:
        """Of the newest `count` of `drafted`, right behind `draft`: how many places each lies behind the last token
        whose true features were read, which is the pending one. So 1: no unverified token is between. 0: of a drafter
        that reads no features."""
        behind = len(self.drafted) - count + 1
        return list(range(behind, behind + count)) if self.taps else [0] * count

    def propose(self, room: int) -> TokenTree:
        """The chain of what `draft` gives."""
        draft = self.draft(room)
        return TokenTree.chain([self.pending, *draft.tokens_G], draft.q_GV)

    def settle(self, outcome: Outcome) -> None:
        self.pending, self.drafted = outcome.tokens[-1], []

    def confirm(self, outcome: Outcome) -> None:
        """The decided tokens are the first of `drafted`, the last of them is pending, and the drafts behind it hold."""
        self.pending = outcome.tokens[-1]
        del self.drafted[: len(outcome.tokens)]

    def kept(self, outcome: Outcome) -> int:
        """How many of `drafted` were decided, from the first on; the pending token is not counted."""
        pairs = zip(self.drafted, outcome.tokens[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class Place(NamedTuple):
    """What a drafter thinks of the place of one of its drafts: the probability of that draft, and of the most likely
    other tokens, the likeliest first."""

    chance: float
    others: list[tuple[int, float]]


class BranchingDrafter(ChainDrafter):
    """Can also draft behind tokens that may come instead of its drafts, while these are verified: what PEARL asks for
    with `--branches`, once something is drafted.

    It does so along a tree that the loop grows. The root is the pending token; node i, for all drafts but the last, is
    the i-th of `drafted`; behind them come others. Its drafts stay as they are."""

    @property
    @abstractmethod
    def spare(self) -> int:
        """How many nodes there is room for behind those of the chain."""

    @abstractmethod
    def places(self, count: int, others: int) -> list[Place]:
        """Of the first `count` of `drafted`, with so many other tokens each, or fewer."""

    @abstractmethod
    def branch(self, tree: TokenTree, known: int) -> Draft:
        """What it drafts behind each node from `known` on, one token each. The nodes before that are those of the
        last call, or, when something was drafted or decided since then, the chain's."""

    @abstractmethod
    def adopt(self, nodes: Sequence[int], tokens: Sequence[int]) -> None:
        """Go on behind `tokens`, which are the drafts now: what `branch` gave for these nodes. `settle` has just said
        that the token of the first node is pending, and nothing was drafted between."""


def newest_state(outcome: Outcome) -> Tensor:
    """The features that chose the pending token, [1, F]."""
    if outcome.features_AF is None:
        raise ValueError("expected the target's features behind the last decided token, got none")
    return outcome.features_AF[-1:]
