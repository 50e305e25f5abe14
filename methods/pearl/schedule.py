"""PEARL's `--schedule auto`: the paper's, without pre-verify, or with branches, by what the first answers show.

Each answer of the warm-up is given by another one. How often drafts are kept, what a draft token and a pass take, and
how often an outcome had been prepared for then say what a token would take by each (`schedule_seconds` in
`methods/theory.py`). Nothing of it depends on what the tokens are.
"""

from statistics import median
from typing import NamedTuple

from methods.theory import BRANCHING, PAPER, WITHOUT_PRE_VERIFY, schedule_seconds

BRANCHES = 3  # other tokens at each place, where the run does not say how many
COST_OF_BRANCHES = 1.01  # the theory has them for nothing, but they use the memory and the link


class Parts(NamedTuple):
    """What PEARL does by a schedule."""

    pre_verify: bool
    branches: int


class AutoSchedule:
    """What is known of the answers so far. `chosen`: None until each schedule has given one."""

    def __init__(self, branches: int) -> None:
        """`branches`: how many it may prepare at each place; 0 where the drafter cannot prepare any."""
        self._parts = {PAPER: Parts(True, 0), WITHOUT_PRE_VERIFY: Parts(False, 0)}
        if branches:
            self._parts[BRANCHING] = Parts(True, branches)
        self._answers = 0
        self._kept = self._rejected = self._hits = self._misses = 0
        self._draft_seconds, self._pass_seconds = list[float](), list[float]()  # of a token, of a pass
        self.chosen: str | None = None

    @property
    def parts(self) -> Parts:
        """Of the next answer."""
        return self._parts[self.chosen or list(self._parts)[self._answers % len(self._parts)]]

    def drafted(self, tokens: int, seconds: float) -> None:
        """A window of so many tokens has come."""
        if tokens and self.chosen is None:
            self._draft_seconds.append(seconds / tokens)

    def verified(self, seconds: float, kept: int, rejected: bool, hit: bool | None) -> None:
        """A pass has judged drafted tokens: `kept` of them, and one that it rejected or none. `hit`: whether what came
        had been prepared for; None where nothing is prepared, or was wanted."""
        if self.chosen is not None:
            return
        self._pass_seconds.append(seconds)
        self._kept, self._rejected = self._kept + kept, self._rejected + rejected
        self._hits, self._misses = self._hits + (hit is True), self._misses + (hit is False)

    def answered(self, window: int) -> None:
        """An answer has ended, and so many tokens are drafted per round: choose, when each schedule was tried."""
        self._answers += 1
        known = self._draft_seconds and self._pass_seconds
        if self.chosen is not None or self._answers < len(self._parts) or not known:
            return
        # Laplace's rule of succession, as the window's choice has it.
        alpha = (self._kept + 1) / (self._kept + self._rejected + 2)
        hits = (self._hits + 1) / (self._hits + self._misses + 2)
        seconds = schedule_seconds(alpha, window, median(self._draft_seconds), median(self._pass_seconds), hits)
        seconds[BRANCHING] *= COST_OF_BRANCHES
        self.chosen = min(self._parts, key=lambda name: seconds[name])
