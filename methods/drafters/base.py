"""The contract of every drafter. It proposes; it never sees the clock, EOS or limits.

Legend: T prompt tokens, G drafted tokens, A kept nodes of a tree, V target vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from methods.engine.decoder import Scores
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree


@dataclass(frozen=True)
class Draft:
    """tokens_G, and q_GV: the distribution that each was drawn from (None: chosen deterministically)."""

    tokens_G: list[int]
    q_GV: Tensor | None = None


class Drafter(Protocol):
    """Proposes a chain. `features` are the target's Scores of the pass just done, for drafters that read them; None on
    a rank of its own, which the target's scores do not reach."""

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features: Scores | None) -> None:
        """A new prompt. `settle(0, first_token, ...)` follows before the first draft."""
        ...

    def draft(self, n: int) -> Draft:
        """At most n tokens, continuing after what has been drafted since the last `settle`."""
        ...

    def settle(self, accepted: int, next_token: int, features: Scores | None) -> None:
        """Keep the first `accepted` drafted tokens, drop the rest, and go on after `next_token`."""
        ...


class TreeDrafter(Protocol):
    """Proposes a tree, a new one after each `settle`."""

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features: Scores | None) -> None:
        """A new prompt. `settle([0], first_token, ...)` follows before the first tree."""
        ...

    def grow(self, n: int) -> TokenTree:
        """A tree of at most n drafted tokens behind the pending one."""
        ...

    def settle(self, path_A: Sequence[int], next_token: int, features: Scores | None) -> None:
        """Keep the nodes `path_A` of the last tree, root first, drop the rest, and go on after `next_token`."""
        ...
