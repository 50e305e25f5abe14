"""What the two ranks of PEARL tell each other.

Named tuples, here and wherever a pass makes an object of its own: a frozen dataclass takes longer to make.

Legend: T prompt tokens, A decided tokens of a pass, G drafted tokens, F feature width, V target vocabulary.
"""

from typing import NamedTuple

from torch import Tensor

from methods.engine.sampling import Sampling
from methods.target import Outcome


class Ready(NamedTuple):
    """Draft to target: a drafter is loaded, reads these taps of the target, and drafts at most so many tokens."""

    drafter: str
    taps: list[int]
    longest: int | None = None


class Begin(NamedTuple):
    """Target to draft: a new prompt for the drafter of that name. `free`: its tokens are wanted one by one."""

    drafter: str
    free: bool
    prompt_T: list[int]
    sampling: Sampling


class Prepare(NamedTuple):
    """While the pass of a round runs: windows of up to `window` tokens are wanted behind the `branches` most likely
    other tokens of each place that it decides on."""

    branches: int
    window: int


class Order(NamedTuple):
    """Target to draft: how round `round` begins.

    decided_A: the tokens that the last pass decided, none where there was no pass. `confirmed`: all of them are drafts,
    and those behind them hold; else drafts that are not among them are void. Then up to `window` tokens are to be
    drafted; `stop`: none, the answer is complete. features_AF: the target's states that chose the decided tokens,
    for a drafter that reads them; with an answer's first order those of the whole prompt, [T, F].

    `taken`: so many tokens that were prepared behind the decided ones are the target's tail now; they come back as a
    window of their own, and what is drafted follows them. `prepare`: None without branches, or where no pass runs."""

    round: int
    decided_A: list[int]
    confirmed: bool
    window: int
    stop: bool
    features_AF: Tensor | None
    prepare: Prepare | None = None
    taken: int = 0

    @property
    def outcome(self) -> Outcome:
        """What the drafter is to know of it."""
        count = len(self.decided_A)
        features_AF = None if self.features_AF is None else self.features_AF[-count:]
        return Outcome(self.decided_A, list(range(count)), features_AF, leaf_kept=self.confirmed)


class Window(NamedTuple):
    """Draft to target, in answer to `round`: tokens_G, the probability q_G that each was drawn with (None: they are
    certain), when they were drafted, in seconds of the monotonic clock, and how far behind the last true feature, as
    `ChainDrafter.depths` tells. `first`: the number of the first of them within the answer.

    What they were drawn from, [V] of each, stays with the draft's rank, for it is long and seldom needed."""

    round: int
    tokens_G: list[int]
    q_G: list[float] | None
    begin: float
    end: float
    depths_G: list[int]
    first: int


class RowWanted(NamedTuple):
    """Target to draft: all probabilities that the token of that number was drawn from, for it was rejected."""

    number: int


class Row(NamedTuple):
    """Draft to target: they are q_V."""

    number: int
    q_V: Tensor


class Branch(NamedTuple):
    """An outcome of the pass of a round, `accepted` drafts and `token` behind them, and what is drafted behind that so
    far."""

    accepted: int
    token: int
    tokens_G: list[int]


class Prepared(NamedTuple):
    """Draft to target, at any time of `round`: what a pass of the draft has added to some branches. begin, end: of that
    pass, as a window has them."""

    round: int
    branches: list[Branch]
    begin: float
    end: float


KINDS = (Ready, Begin, Order, Window, Prepared, RowWanted, Row)
