"""Decoder: one model and its cache. Scores provisional rows; only `commit` makes them count.

Legend: N nodes of a tree, T prompt tokens, V vocabulary, F feature width, A accepted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from methods.engine.backends.base import Best, KeyValueCache
from methods.engine.schema import enough_memory
from methods.engine.transformer import Layers, Transformer
from methods.engine.tree import TokenTree, tensor_of
from methods.errors import UserError

PROBE_TOKENS = 24  # of a prompt whose logits must be numbers
PROBED = 9  # positions that are computed alone, in a chain and in a tree
PROBE_LENGTHS = (15, 60, 1020)  # tokens before these: behind the last two, they end in another block of the cache


def new_cache(model: Layers, rows: int) -> KeyValueCache:
    """An empty cache for the layers of `model`."""
    with enough_memory(f"for the keys and values of {rows} tokens"):
        return model.new_cache(rows)


def cache_rows(model: Layers, max_length: int) -> int:
    """Rows of a cache of so many tokens: a pass may be padded."""
    return max_length + max(model.stack.min_rows, *(model.stack.row_counts or (0,)))


class Scores(NamedTuple):
    """logits_NV: fp32. features_NF: the taps that were asked for, side by side; of a prompt all T rows. None: none
    were. best_N2: what `best_of` of sampling.py gives of the logits, where a recorded pass found it."""

    logits_NV: Tensor
    features_NF: Tensor | None = None
    best_N2: Best | None = None

    def of(self, taps: Sequence[int], known: Sequence[int]) -> "Scores":
        """The same with these of the `known` taps, whose features there are."""
        if not taps or self.features_NF is None:
            return Scores(self.logits_NV)
        parts = self.features_NF.chunk(len(known), 1)
        return Scores(self.logits_NV, torch.cat([parts[known.index(tap)] for tap in taps], 1))

    def wait(self) -> None:
        """Until they are computed: a GPU is only told to, and whoever reads a clock wants to know when it has."""
        if self.logits_NV.is_cuda:
            torch.cuda.synchronize(self.logits_NV.device)


class Decoder:
    """Positions 0 .. length - 1 are committed. All rows of a pass go through the same row-invariant operations."""

    def __init__(
        self, model: Transformer, max_length: int | None = None, host: "Decoder | None" = None, exact: bool = True
    ) -> None:
        """`max_length`: most tokens that can be committed, at most (and by default) the model's context length.
        `host`: a decoder of a model with the same layers, or more, whose cache and length limit this one shares. Not
        `exact`: of a draft, whose rows need not have the same bits in every pass."""
        longest = model.config.max_length if host is None else host.max_length
        self.model, self.exact = model, exact
        self.max_length: int = longest if max_length is None else min(max_length, longest)
        self.length = 0
        self.row_invariant: bool | None = None  # unknown until probed
        rows = cache_rows(model, self.max_length)
        self._cache: KeyValueCache = new_cache(model, rows) if host is None else host._cache
        self._recorder = model.stack.recorder(model, self._cache)
        self._keeps: tuple[int, ...] | None = None  # all taps that were asked for; None: no prompt is kept
        self._prompt: tuple[list[int], Scores] | None = None  # that is still in the cache

    def keep_prompts(self) -> None:
        """From now on keep what was read of the last prompt: the same prompt is not read again, nor for other taps once
        they have been asked for."""
        self._keeps = ()

    @property
    def room(self) -> int:
        """Rows that can still be committed."""
        return self.max_length - self.length

    def prefill(self, tokens_T: Sequence[int], taps: Sequence[int] = ()) -> Scores:
        """Start anew with a prompt, 1 <= T <= max_length. The logits are those of its last position, N == 1. `taps` as
        `Transformer` has them."""
        count = len(tokens_T)
        if not 0 < count <= self.max_length:
            raise ValueError(f"expected a prompt of 1 to {self.max_length} tokens, got {count}")
        if self._keeps is None:
            return self._prefilled(tokens_T, taps)
        if new := [tap for tap in taps if tap not in self._keeps]:
            self._keeps, self._prompt = (*self._keeps, *new), None
        if self._prompt is None or self._prompt[0] != list(tokens_T):
            self._prompt = list(tokens_T), self._prefilled(tokens_T, self._keeps)
        self.length = count
        return self._prompt[1].of(taps, self._keeps)

    def _prefilled(self, tokens_T: Sequence[int], taps: Sequence[int]) -> Scores:
        count = len(tokens_T)
        padded = list(tokens_T) + [tokens_T[-1]] * (self._min_rows - count)
        hidden, features = self._read_prompt(padded, taps)
        self.length = count
        last = hidden[count - 1 : count].expand(self._min_rows, -1).contiguous()
        return Scores(self.model.logits(last)[:1], None if features is None else features[:count])

    def score(self, tree: TokenTree, taps: Sequence[int] = (), known: int = 0) -> Scores:
        """One pass over a tree whose root follows the committed tokens; N <= room. Its rows are provisional.

        The first `known` nodes are those of the pass before, whose rows are still there: they are not computed again,
        and the scores are of the nodes behind them. So a tree grows."""
        nodes = tree.nodes
        if nodes > self.room:
            raise ValueError(f"expected at most {self.room} nodes, got {nodes}: the context is full")
        new = nodes - known
        if new < 1:
            raise ValueError(f"expected nodes behind the {known} known ones, got {nodes} in all")
        if self._most_rows and new > self._most_rows:
            return self._score_in_parts(tree, taps, known, self._most_rows)
        replayed = self._replayed(tree, taps, known)
        if replayed is not None:
            return replayed
        tree = self._padded(tree, new)
        hidden, features = self._read(tree, known, taps)
        logits_NV = self.model.logits(hidden)
        if tree.nodes == nodes:
            return Scores(logits_NV, features)
        return Scores(logits_NV[:new], None if features is None else features[:new])

    def _read_prompt(self, tokens_T: list[int], taps: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What the model gives of a whole prompt, as `Transformer` has it."""
        return self.model(torch.tensor(tokens_T), torch.arange(len(tokens_T)), self._cache.prompt(), taps)

    def _read(self, tree: TokenTree, known: int, taps: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The same of the nodes of a tree behind its first `known`."""
        view = self._cache.view(self.length, tree, known, self.exact)
        positions_N = tensor_of(tree.positions(self.length, known))
        return self.model(tree.tokens_N[known:] if known else tree.tokens_N, positions_N, view, taps)

    def _replayed(self, tree: TokenTree, taps: Sequence[int], known: int = 0) -> Scores | None:
        """The same by a recorded pass. None: where none can be, or none has so many rows."""
        if self._recorder is None:
            return None
        counts, nodes = self.model.stack.row_counts, tree.nodes - known
        rows = nodes if counts is None else next((count for count in counts if count >= nodes), None)
        if rows is None:
            return None
        found = self._recorder(tree, known, self.length, rows, taps)
        return None if found is None else Scores(*found)

    def record(self, taps: Sequence[int] = ()) -> None:
        """Record the passes of every number of rows where they can be, lest it be done while an answer takes its time.
        What they write is provisional."""
        for rows in self.model.stack.row_counts or ():
            self._replayed(TokenTree.chain([0] * rows), taps)

    def _score_in_parts(self, tree: TokenTree, taps: Sequence[int], known: int, most: int) -> Scores:
        """The same in passes of at most so many rows. A node's ancestors come before it, so they have their rows."""
        parts: list[Scores] = []
        for stop in (*range(known + most, tree.nodes, most), tree.nodes):
            parts.append(self.score(tree.first(stop), taps, known))
            known = stop
        features = [part.features_NF for part in parts if part.features_NF is not None]
        logits_NV = torch.cat([part.logits_NV for part in parts])
        return Scores(logits_NV, torch.cat(features) if features else None)

    def extend(self, tokens_N: Sequence[int]) -> Scores:
        """Commit tokens, N <= room. Returns the scores of the last one, without features."""
        scores = self.score(TokenTree.chain(list(tokens_N)))
        self.commit(range(len(tokens_N)))
        if len(tokens_N) == 1:
            return scores
        return Scores(scores.logits_NV[-1:], best_N2=None if scores.best_N2 is None else scores.best_N2[-1:])

    def branch(self, tree: TokenTree, known: int, committed: int) -> Tensor:
        """Score the nodes of a tree behind its first `known` and leave what is committed as it is, [N - known, V]. Its
        first `committed` nodes are the last committed tokens; the other known ones are those of the calls before."""
        self.length -= committed
        try:
            return self.score(tree, known=known).logits_NV
        finally:
            self.length += committed

    @property
    def _min_rows(self) -> int:
        return self.model.stack.min_rows

    @property
    def _most_rows(self) -> int | None:
        """Of a pass."""
        return self._row_counts[-1] if self._row_counts else None

    @property
    def _row_counts(self) -> tuple[int, ...] | None:
        """The numbers of rows that a pass may have."""
        return self.model.stack.row_counts if self.exact else None

    def _padded(self, tree: TokenTree, new: int) -> TokenTree:
        """The tree continued after its last node, until its `new` last nodes are a row count that keeps the bits."""
        counts = self._row_counts
        more = next(count for count in counts if count >= new) - new if counts else self._min_rows - new
        if more <= 0:
            return tree
        nodes = tree.nodes
        tokens = [*tree.tokens, *[tree.tokens[0]] * more]
        return TokenTree(tokens, [*tree.parents, *range(nodes - 1, nodes - 1 + more)], is_chain=tree.is_chain)

    def commit(self, path_A: Sequence[int]) -> None:
        """Keep the rows of a path of the last tree, root first; they follow the committed ones. length += A."""
        path = list(path_A)
        if path != list(range(len(path))):
            self._pack(path)
        self.length += len(path)

    def _pack(self, path_A: list[int]) -> None:
        """Let the rows of a path follow the committed ones."""
        self._cache.pack(self.length, torch.tensor(path_A))

    def truncate(self, length: int) -> None:
        """Forget the committed tokens from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"expected a length of 0 to {self.length}, got {length}")
        self.length = length
        if self._prompt is not None and length < len(self._prompt[0]):
            self._prompt = None  # its rows may be written over

    def probe(self, source: str) -> bool:
        """Find out whether this decoder is row-invariant, and leave it empty. To be called once, before its use.

        Raises UserError where the logits are no numbers; `source`: what its user calls the model."""
        self.probe_numbers(source)
        self._measure_rows()
        self.row_invariant = probe_row_invariance(self)
        if not self.row_invariant and self.model.stack.fewer_rows():  # attention, too, may depend on how many there are
            self.row_invariant = probe_row_invariance(self)
        return self.row_invariant

    def _measure_rows(self) -> None:
        """Find out at which numbers of rows a row has the same bits."""
        self.model.measure_rows()

    def probe_numbers(self, source: str) -> None:
        """Raises UserError where the logits of a short prompt are not finite; leaves the decoder empty."""
        with enough_memory(f"to run {source} with a context of {self.max_length} tokens"):
            logits_1V = self.prefill(probe_tokens(self)).logits_NV
        self.truncate(0)
        if not bool(logits_1V.isfinite().all()):
            raise UserError(
                f"expected {source} to give finite logits, got NaN or infinite ones: look for such values in its "
                "weights, or try --dtype float32"
            )


def probe_tokens(decoder: Decoder, count: int = PROBE_TOKENS) -> list[int]:
    """So many tokens, or as many as the context has room for."""
    return [(7 * i * i + 3 * i + 1) % decoder.model.config.vocab_size for i in range(min(count, decoder.max_length))]


def probe_row_invariance(decoder: Decoder) -> bool:
    """Score a few positions alone, in one chain and in a tree with siblings between them, and compare bit by bit.
    Where kernels are chosen by numbers of rows: behind prompts of several lengths, and in passes of every number.

    Leaves the decoder empty."""
    fitting = [length for length in PROBE_LENGTHS if length + PROBED <= decoder.max_length]
    fitting = fitting or [decoder.max_length - PROBED]
    counts = decoder.model.stack.row_counts
    lengths = fitting if counts else [length for length in fitting if length <= PROBE_LENGTHS[1]][-1:]
    widths = (PROBED, *counts, counts[-1] + 1) if counts else (PROBED,)
    return lengths[0] > 0 and all(_probed(decoder, length, widths) for length in lengths)


def _probed(decoder: Decoder, length: int, widths: Sequence[int]) -> bool:
    """The same behind a prompt of that length; chains of these widths."""
    vocabulary, tokens = decoder.model.config.vocab_size, probe_tokens(decoder, length + max(widths))
    prompt, longest = tokens[:length], tokens[length:]
    chain = longest[:PROBED]
    decoder.prefill(prompt)
    alone = []
    for token in chain:
        alone.append(decoder.score(TokenTree.chain([token])).logits_NV[0])
        decoder.commit([0])
    expected = torch.stack(alone)
    decoder.truncate(length)
    for width in widths:
        together = decoder.score(TokenTree.chain(longest[:width])).logits_NV[:PROBED]
        if not torch.equal(together, expected[:width]):
            return False
    decoder.prefill(prompt)
    # Every chain node gets a sibling before it, so that in the tree its ancestors lie two rows apart.
    nodes = [chain[0]] + [t for token in chain[1:] for t in ((token + 1) % vocabulary, token)]
    parents = [-1] + [max(0, 2 * i) for i in range(len(chain) - 1) for _ in range(2)]
    tree = TokenTree(nodes, parents)
    forked = decoder.score(tree).logits_NV[::2] if len(nodes) <= decoder.room else expected
    decoder.truncate(0)
    return torch.equal(expected, forked)
