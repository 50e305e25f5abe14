"""Lookahead decoding (Fu et al., ICML 2024): the target guesses tokens far ahead by Jacobi iteration, in passes that
verify too, and n-grams of what it has guessed are drafted when their first token comes again. No model, no training.

The window has W columns and up to N - 1 rows, each of which is what the target made of the row above it. A pass scores
it behind the pending token, and what comes out of the newest row is the next one. So a column has N tokens, each of
which the target said behind those above it: an n-gram. At first there is one row, of random tokens of the prompt, which
is longer and loses a token with every row that comes, until there are W columns of N - 1 rows. From then on each pass
adds W n-grams to the pool, and the oldest row goes. Those in the pool that begin with the pending token are verified,
the G newest.

No special mask is needed, for the window is a tree: its oldest row is a chain behind the pending token, which is in the
first column, and each other token hangs behind the one above it. Its nodes are scored, and never kept.

The published code commits N - 1 tokens where all N - 1 of a guess are right; here that is N, with the target's own
token behind them. Its record of the text, from which the pool may learn too, has the last token of a pass in the place
of all; here it has the text. Its window is drawn without a seed.

Legend: T prompt tokens, N nodes of a tree, F feature width, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor

from methods.drafters.base import Drafter
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.engine.verify import most_likely
from methods.models import Models
from methods.options import NOTHING
from methods.target import Outcome

CHEAP_ROWS = {"cpu": 8, "cuda": 64}  # of a pass that takes little longer than one of a single row
LONG = 32  # rows of a pass from which on n-grams are as long as in the paper
Ngram = tuple[int, ...]  # the tokens behind its first one


class NgramPool:
    """The n-grams that begin with each token, at most so many, those seen last."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._behind: dict[int, dict[Ngram, None]] = {}  # first token -> in the order in which they were seen last

    def add(self, first: int, ngram: Ngram) -> None:
        """It was seen now."""
        known = self._behind.setdefault(first, {})
        known.pop(ngram, None)
        known[ngram] = None
        if len(known) > self.most:
            del known[next(iter(known))]

    def replace(self, first: int, old: Iterable[Ngram], new: Iterable[Ngram]) -> None:
        """Some that begin with the token go, and others were seen now."""
        for ngram in old:
            self._behind[first].pop(ngram)
        for ngram in new:
            self.add(first, ngram)

    def behind(self, first: int) -> list[Ngram]:
        """Those that begin with the token, the newest last."""
        return list(self._behind.get(first, ()))


class TextNgrams:
    """Adds the n-grams of a text to a pool, as the text grows."""

    def __init__(self, pool: NgramPool, length: int) -> None:
        """`length`: of an n-gram, its first token included."""
        self.pool, self.length = pool, length
        self.last: list[int] = []

    def add(self, tokens: Iterable[int]) -> None:
        """The text goes on with these."""
        for token in tokens:
            self.last = [*self.last, token][-self.length :]
            if len(self.last) == self.length:
                self.pool.add(self.last[0], tuple(self.last[1:]))


class Lookahead:
    """Window and pool, for any model that scores trees. `rows`: of the window, the oldest first, which begins in the
    second column: in the first one is the newest token of the text. `newest`: the nodes of the last tree in the newest
    row; none where it had no window."""

    def __init__(self, columns: int, length: int, pool: NgramPool) -> None:
        """`length`: N, of an n-gram."""
        self.columns, self.length, self.pool = columns, length, pool
        self.rows: list[list[int]] = []
        self.newest: list[int] = []
        self._first = -1

    def begin(self, prompt_T: Sequence[int], generator: torch.Generator) -> None:
        """A new text: the first row, drawn from it. Later passes drop a column each until the window is full."""
        width = self.columns + self.length - 3
        drawn = torch.randint(len(prompt_T), (width,), generator=generator)
        self.rows, self.newest = [[prompt_T[place] for place in drawn.tolist()]], []

    @property
    def full(self) -> bool:
        """Whether the columns are n-grams but for their last token."""
        return len(self.rows) == self.length - 1

    def guesses(self, first: int) -> list[Ngram]:
        """What the pool has behind a token; nothing as long as the window is not full."""
        return self.pool.behind(first) if self.full else []

    def tree(self, text: Sequence[int], guesses: Iterable[Ngram], room: int) -> TokenTree:
        """Tokens that follow the model's cache, behind the last of them the guesses and, where there is room for all of
        it, the window, whose nodes are not judged. At most so many nodes behind the text."""
        trie, root = TokenTree.of(text[-1], guesses), len(text) - 1
        tokens = [*text, *trie.tokens[1:]][: len(text) + room]
        parents = [*range(-1, root), *(root + parent for parent in trie.parents[1:])][: len(tokens)]
        judged, self._first, self.newest = len(tokens), text[-1], []
        if judged + sum(map(len, self.rows)) <= len(text) + room:
            self._hang(root, tokens, parents)
        return TokenTree(tokens, parents, judged=judged)

    def _hang(self, root: int, tokens: list[int], parents: list[int]) -> None:
        """Add the window's nodes to a tree."""
        oldest, *others = self.rows
        above = [root, *range(len(tokens), len(tokens) + len(oldest))]
        tokens += oldest
        parents += above[:-1]
        for row in others:
            parents += above[: len(row)]
            above = list(range(len(tokens), len(tokens) + len(row)))
            tokens += row
        self.newest = above

    def learn(self, new: Sequence[int]) -> None:
        """The model has said what comes behind each node of the newest row. The window moves on by a row, whatever was
        kept of the guesses."""
        if not self.full:
            self.rows = [list(row[1:]) for row in (*self.rows, new)]
            return
        firsts = [self._first, *self.rows[0]]
        for first, *ngram in zip(firsts, *self.rows[1:], new, strict=True):
            self.pool.add(first, tuple(ngram))
        second, *others = *self.rows[1:], list(new)
        self.rows = [second[1:], *others]


def rows_of(logits_NV: Tensor, nodes: Sequence[int]) -> Tensor:
    """Of nodes in ascending order; without a copy where they lie side by side."""
    first, last = nodes[0], nodes[-1]
    return logits_NV[first : last + 1] if last - first + 1 == len(nodes) else logits_NV[list(nodes)]


class WindowSize(NamedTuple):
    """W, N and G."""

    columns: int
    ngram: int
    guesses: int


def fitting(rows: int, columns: int = 0, ngram: int = 0, guesses: int = 0) -> WindowSize:
    """The size by which a pass has so many rows, half of them the window's, half the guesses', or the next larger one.
    Sizes that are given stay as they are."""
    ngram = ngram or (5 if rows >= LONG else 3)
    places = (rows - 1) // (ngram - 1)  # columns and guesses take as many rows each
    columns = columns or max(places // 2, 1)
    return WindowSize(columns, ngram, guesses or max(places - columns, 1))


@dataclass(frozen=True)
class Window:
    """How large window and pool are, and what of it was `chosen` by itself."""

    size: WindowSize
    chosen: Mapping[str, int | str] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Models, **asked: int | str) -> Self:
        """`asked`: columns, ngram and guesses; what is "auto" is as fits into a pass that takes little longer than one
        of a single row. That is not measured, so that the same seed drafts the same: on a GPU it is what the paper has,
        on a CPU an eighth. No window is larger than the context: more would find no room, but take memory."""
        given = {name: size for name, size in asked.items() if isinstance(size, int)}
        columns, ngram, guesses = fitting(CHEAP_ROWS[models.devices[0].type], **given)
        context = models.rows_of(models.target_checkpoint.config)
        size = WindowSize(min(columns, context), min(ngram, context), guesses)
        return cls(size, {name: value for name, value in size._asdict().items() if name not in given})


class LookaheadDrafter(Drafter):
    """Window and pool begin anew with every prompt, so that no answer depends on the ones before."""

    def __init__(self, window: Window, from_text: bool) -> None:
        """`from_text`: the pool has the n-grams of the prompt and of the answer too."""
        self.window, self.from_text = window, from_text
        self.columns, self.length, self.held = window.size
        self.pending = -1

    def settled(self) -> dict[str, int | str]:
        return dict(self.window.chosen)

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        pool = NgramPool(self.held)
        self.lookahead = Lookahead(self.columns, self.length, pool)
        self.lookahead.begin(prompt_T, sampling.generator("window"))
        self.text = TextNgrams(pool, self.length)
        self.read(prompt_T)

    def read(self, tokens: Sequence[int]) -> None:
        """The text goes on with these."""
        if self.from_text:
            self.text.add(tokens)

    def propose(self, room: int) -> TokenTree:
        return self.lookahead.tree([self.pending], self.lookahead.guesses(self.pending), room)

    def settle(self, outcome: Outcome) -> None:
        if outcome.logits_NV is not None and self.lookahead.newest:
            self.lookahead.learn(most_likely(rows_of(outcome.logits_NV, self.lookahead.newest)))
            self.lookahead.newest = []  # the next tree may be another drafter's
        self.read(outcome.tokens)
        self.pending = outcome.tokens[-1]


def build(models: Models, columns: int | str, ngram: int | str, guesses: int | str, pool: str) -> LookaheadDrafter:
    """Lookahead decoding, which needs no weights."""
    return LookaheadDrafter(Window.of(models, columns=columns, ngram=ngram, guesses=guesses), pool != NOTHING)
