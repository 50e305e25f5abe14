"""What PEARL's draft rank prepares while the target verifies (`--branches F`): windows behind the tokens that may come
instead of its drafts. If one of these outcomes comes, its window need not be waited for. The idea is that of Saguaro
(Kumar et al. 2026), joined to PEARL (Liu et al., ICLR 2025).

An outcome is how many drafts are kept, and the target's token behind them. The likeliest come first, by the draft's own
q: that of the drafts before, times that of the token. A pass of the draft gives each of several outcomes one token.

It is lossless whatever is prepared, and however far: a window is drawn from the draft's q behind its outcome before the
target has decided, and whether it is used depends on the outcome alone. What is drawn never ends or drops a window.

Legend: G drafted tokens, K nodes of a pass, V target vocabulary.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from methods.drafters.base import BranchingDrafter, Draft, Place
from methods.engine.tree import TokenTree
from methods.pearl.messages import Branch, Prepare

TOGETHER = 8  # outcomes that a pass goes on with: on CPUs more rows take longer, see results/README.md
REMEMBERED = 9  # rounds, and passes of the draft, by which the next ones are judged


@dataclass
class Prospect:
    """An outcome that may come, with what is drafted behind it: tokens_G, nodes_G of the tree behind which they were
    chosen, and their q_GV."""

    chance: float
    accepted: int
    token: int
    tokens_G: list[int] = field(default_factory=list)
    nodes_G: list[int] = field(default_factory=list)
    q_GV: list[Tensor] = field(default_factory=list)
    begin: float = 0.0
    ends_G: list[float] = field(default_factory=list)

    @property
    def branch(self) -> Branch:
        """What the target is to know of it."""
        return Branch(self.accepted, self.token, list(self.tokens_G))

    def draft(self, count: int) -> Draft:
        """Its first `count` tokens."""
        return Draft(self.tokens_G[:count], torch.stack(self.q_GV[:count]) if self.q_GV else None)

    def depths(self, count: int, reads_features: bool) -> list[int]:
        """Of these: where the drafter reads features, the first lies as far behind the last true one as the drafts
        before it, the outcome's token and itself are many."""
        return [self.accepted + 2 + i if reads_features else 0 for i in range(count)]


def prospects(places: Sequence[Place]) -> list[Prospect]:
    """The outcomes, the likeliest first: at each place any of its other tokens, if all before it are kept."""
    found, reached = [], 1.0
    for accepted, place in enumerate(places):
        found += [Prospect(reached * chance, accepted, token) for token, chance in place.others]
        reached *= place.chance
    return sorted(found, key=lambda prospect: -prospect.chance)


class Preparation:
    """The windows that are prepared in a round, and the tree in which they grow: the chain of the drafts, then a level
    for each pass."""

    def __init__(self, drafter: BranchingDrafter, waiting: Sequence[Prospect], window: int) -> None:
        """`waiting`: outcomes, the likeliest first; `window`: most tokens behind each. Something is drafted."""
        self.drafter, self.window = drafter, window
        self._waiting, self._growing = list(waiting), list[Prospect]()
        self._tokens = [drafter.pending, *drafter.drafted[:-1]]
        self._parents = list(range(-1, len(drafter.drafted) - 1))
        self._chain = len(self._tokens)
        self._found: dict[tuple[int, int], Prospect] = {}

    def goes_on(self) -> bool:
        """Whether something is left to prepare, and room for it: else `grow` must not be called."""
        self._growing = [prospect for prospect in self._growing if len(prospect.tokens_G) < self.window]
        if not self._growing:
            self._growing, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
        spare = self.drafter.spare - (len(self._tokens) - self._chain)
        return 0 < len(self._growing) <= spare

    def grow(self) -> list[Branch]:
        """A token more for each of the outcomes in turn: one pass of the draft. Returns what has come of them."""
        begin, known = time.perf_counter(), len(self._tokens)
        for prospect in self._growing:
            self._parents.append(prospect.nodes_G[-1] if prospect.nodes_G else prospect.accepted)
            prospect.nodes_G.append(len(self._tokens))
            self._tokens.append(prospect.tokens_G[-1] if prospect.tokens_G else prospect.token)
        draft = self.drafter.branch(TokenTree(list(self._tokens), list(self._parents)), known)
        end = time.perf_counter()
        for place, prospect in enumerate(self._growing):
            prospect.begin = prospect.begin or begin
            prospect.ends_G.append(end)
            prospect.tokens_G.append(draft.tokens_G[place])
            prospect.q_GV += [] if draft.q_GV is None else [draft.q_GV[place]]
            self._found[prospect.accepted, prospect.token] = prospect
        return [prospect.branch for prospect in self._growing]

    def take(self, decided: Sequence[int], count: int) -> Prospect:
        """The prepared outcome of these decided tokens, which the drafter goes on behind the first `count` tokens of.
        The drafter knows of the outcome."""
        found = self._found[len(decided) - 1, decided[-1]]
        self.drafter.adopt(found.nodes_G[:count], found.tokens_G[:count])
        return found


def prepare(drafter: BranchingDrafter, wanted: Prepare, verified: int, drafting: bool) -> Preparation | None:
    """What to prepare in a round that decides on the first `verified` drafts and, if `drafting`, on the next one. None
    where the drafter has no more room. Where it does not draft, it looks one token ahead."""
    if not drafting:
        drafter.draft(1)
    if len(drafter.drafted) <= verified:
        return None
    *places, last = drafter.places(verified + 1, wanted.branches)
    if not drafting:  # behind the drafts the target has the last word: what the draft would take is an outcome as well
        likeliest = [(drafter.drafted[verified], last.chance), *last.others]
        last = Place(last.chance, sorted(likeliest, key=lambda other: -other[1])[: wanted.branches])
    return Preparation(drafter, prospects([*places, last]), wanted.window)


class Spare:
    """The time that the draft rank has left in a round, by when earlier orders came and how long its passes took: never
    by what is drafted."""

    def __init__(self, passes: int | None = None) -> None:
        """`passes`: so many fit into each round, so that a run can be repeated; None: by the clock."""
        self.passes, self.by_the_clock = passes, passes is None
        self._rounds = deque[float](maxlen=REMEMBERED)
        self._seconds = deque[float](maxlen=REMEMBERED)
        self._began, self._done = 0.0, 0

    def begin(self) -> None:
        """An order has come."""
        self._began, self._done = time.perf_counter(), 0

    def end(self, time_of_order: float) -> None:
        """The next one has."""
        self._rounds.append(time_of_order - self._began)

    def took(self, seconds: float) -> None:
        """A pass has been made."""
        self._done += 1
        self._seconds.append(seconds)

    @property
    def fits(self) -> bool:
        """Whether another pass will be done before the next order comes."""
        if self.passes is not None:
            return self._done < self.passes
        if not self._rounds:
            return False
        pass_seconds = median(self._seconds) if self._seconds else 0.0
        return time.perf_counter() - self._began + pass_seconds <= median(self._rounds)
