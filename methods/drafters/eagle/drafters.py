"""EAGLE's drafters: a chain, the static tree of EAGLE-1 and the dynamic tree of EAGLE-2 and 3.

After every verdict the decided tokens are read with the target's true features, in one pass of the head; what it had
computed from its own predictions is dropped.

Legend: T prompt tokens, F feature width, D width, R rows of the head, V target vocabulary, K nodes, B children of each.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from methods.drafters.base import Draft, Drafter
from methods.drafters.choosing import ChoosingDrafter
from methods.drafters.eagle.head import EagleHead
from methods.drafters.growing import GrowingTree
from methods.drafters.static_tree import Path, StaticShape
from methods.engine.backends.best import likeliest
from methods.engine.sampling import Sampling, draw, probabilities
from methods.engine.tree import TokenTree
from methods.target import Outcome


class Reader:
    """Pairs of features and tokens that are decided, and those of them that the head has not read yet."""

    def __init__(self, head: EagleHead) -> None:
        self.head = head
        self._features: list[Tensor] = []
        self._tokens: list[int] = []

    def begin(self, prompt_T: Sequence[int], features_TF: Tensor | None) -> None:
        """The prompt's pairs; the last row's comes with the first outcome."""
        if features_TF is None:
            raise ValueError("expected the target's features of the prompt, got none")
        self.head.forget()
        self._features, self._tokens = [features_TF[:-1]], list(prompt_T[1:])

    def add(self, outcome: Outcome) -> None:
        if outcome.features_AF is None:
            raise ValueError("expected the target's features of the decided tokens, got none")
        self._features.append(outcome.features_AF)
        self._tokens += outcome.tokens

    @property
    def unread(self) -> int:
        return len(self._tokens)

    def read(self) -> Tensor:
        """The head reads what it has not; the predicted state behind the last decided token, [1, D]."""
        features_NF = torch.cat(self._features).to(self.head.parts.embedding_VE.device)
        state_1D = self.head.read(features_NF, self._tokens)[-1:]
        self._features, self._tokens = [], []
        return state_1D


class EagleChain(ChoosingDrafter):
    """Goes on from the states that the head predicts."""

    def __init__(self, head: EagleHead, taps: Sequence[int], vocabulary: int) -> None:
        """`vocabulary`: the target's size V."""
        super().__init__(head.parts.lm_head.tokens_R, vocabulary)
        self.head, self.reader, self.taps = head, Reader(head), tuple(taps)
        self.states: list[Tensor] = []  # states[i]: predicted, before drafted[i]; as far as they were needed
        self._states_behind: list[Tensor] = []  # of each node of the loop's tree but the last draft, [1, D]

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.restart(sampling)
        self.reader.begin(prompt_T, features_TF)
        self.states = []

    def draft(self, n: int) -> Draft:
        tokens: list[int] = []
        rows: list[Tensor] = []
        while len(tokens) < n:
            if self.head.room < self.reader.unread + len(self.drafted):
                break
            tokens.append(self.add(self.head.logits(self._next_state()), rows))
        return Draft(tokens, torch.cat(rows) if rows else None)

    def _next_state(self) -> Tensor:
        """The state that chooses the next token. Drafted tokens that are not decided are read again behind new true
        features, all at once: each with the state that was before it then. What another drafter has drafted is read
        token by token, each with the state predicted before it."""
        if self.reader.unread:
            first_1D = self.reader.read()
            before = [first_1D, *self.states[1 : len(self.drafted)]] if self.drafted else []
            read = self.drafted[: len(before)]
            self.states = [first_1D, *(self.head.go_on(torch.cat(before), read).split(1) if read else [])]
        while len(self.states) <= len(self.drafted):
            newest = len(self.states) - 1
            self.states.append(self.head.go_on(self.states[newest], self.drafted[newest : newest + 1]))
        return self.states[-1]

    @property
    def spare(self) -> int:
        return self.head.spare

    def logits_behind(self, tree: TokenTree, known: int) -> Tensor:
        if known == len(self.drafted):  # the chain's
            self._states_behind = self.states[:known]
        parents = tree.parents[known:]
        states_KD = self.head.branch(tree, known, torch.cat([self._states_behind[parent] for parent in parents]))
        self._states_behind += states_KD.split(1)
        return self.head.logits(states_KD)

    def adopt(self, nodes: Sequence[int], tokens: Sequence[int]) -> None:
        super().adopt(nodes, tokens)
        self.states = [self._states_behind[node] for node in nodes]

    def settle(self, outcome: Outcome) -> None:
        self.reader.add(outcome)
        self.states = []
        super().settle(outcome)

    def confirm(self, outcome: Outcome) -> None:
        self.reader.add(outcome)
        del self.states[: len(outcome.tokens)]
        super().confirm(outcome)


class EagleTree(Drafter):
    """What the trees have in common. `pending`: the last decided token."""

    def __init__(self, head: EagleHead, taps: Sequence[int]) -> None:
        self.head, self.reader, self.taps = head, Reader(head), tuple(taps)
        self.sampling = Sampling()
        self.pending = -1

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.sampling = sampling
        self.reader.begin(prompt_T, features_TF)

    def settle(self, outcome: Outcome) -> None:
        self.reader.add(outcome)
        self.pending = outcome.tokens[-1]


class DynamicTree(EagleTree):
    """Level by level the `branches` most confident nodes get their `branches` most likely children each, `depth` levels
    deep; the `nodes` most confident of all are proposed. The same at any temperature (EAGLE-2, section 4)."""

    def __init__(self, head: EagleHead, taps: Sequence[int], branches: int, depth: int, nodes: int) -> None:
        super().__init__(head, taps)
        self.branches, self.depth, self.nodes = branches, depth, nodes

    def propose(self, room: int) -> TokenTree:
        tree = GrowingTree(self.pending, min(room, self.nodes))
        if room and self.head.room >= self.reader.unread:
            states_KD = self.reader.read()
            self._grow(tree, states_KD)
            for _ in range(self.most_levels(self.depth) - 1):
                if not tree.level or self.head.room < len(tree.expanded) - 1:
                    break
                places = {candidate: row for row, candidate in enumerate(self._last)}
                chose_KD = states_KD[[places[tree.candidates[node].parent] for node in tree.level]]
                states_KD = self.head.branch(tree.scored, tree.known, chose_KD)
                self._grow(tree, states_KD)
        return tree.proposed

    def _grow(self, tree: GrowingTree, states_KD: Tensor) -> None:
        """Add the children of the level whose states are these."""
        self._last = tree.level
        branches = min(self.branches, tree.nodes)
        places_KB, log_p_KB = likeliest(self.head.logits(states_KD), branches)
        tree.grow(self.head.parts.lm_head.tokens(places_KB), log_p_KB, self.branches)


class StaticTree(EagleTree):
    """The tree of `paths`, whose children are the most likely ones; at a temperature they are drawn from the head's
    distribution, without replacement (EAGLE-1, section 3 and appendix A)."""

    def __init__(self, head: EagleHead, taps: Sequence[int], vocabulary: int, paths: Sequence[Path]) -> None:
        """`paths`: the best first; a path comes behind its parent's and its earlier siblings'. `vocabulary`: the
        target's size V."""
        super().__init__(head, taps)
        self.shape, self.vocabulary = StaticShape(paths), vocabulary
        self.generator = self.sampling.generator("draft")

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        super().begin(prompt_T, sampling, features_TF)
        self.generator = sampling.generator("draft")

    def propose(self, room: int) -> TokenTree:
        tree = _Growing(self.pending)
        if room and self.head.room >= self.reader.unread:
            children = Counter(path[:-1] for path in self.shape.tree(room, self.levels))
            states_KD = self.reader.read()
            level: list[Path] = [()]
            while True:
                for path, logits_R in zip(level, self.head.logits(states_KD), strict=True):
                    tree.add(path, *self._children(logits_R, children[path]))
                rows = {path: row for row, path in enumerate(level)}
                level = [path for path in tree.nodes if len(path) == len(level[0]) + 1 and children[path]]
                if not level or self.head.room < len(tree.expanded) + len(level) - 1:
                    break
                chose_KD = states_KD[[rows[path[:-1]] for path in level]]
                states_KD = self.head.branch(tree.expand(level), len(tree.expanded) - len(level), chose_KD)
        self.shape.proposed(list(tree.nodes))
        return replace(tree.proposed, sizes_N=[self.shape.sizes[path] for path in tree.nodes])

    def settle(self, outcome: Outcome) -> None:
        self.shape.judged(outcome.path_A)
        super().settle(outcome)

    def fit(self) -> None:
        self.shape.fit()

    def _children(self, logits_R: Tensor, count: int) -> tuple[list[int], list[Tensor]]:
        """Tokens, and where they are drawn what each was drawn from: q without its earlier siblings, [V]."""
        if self.sampling.greedy:
            return self.head.parts.lm_head.tokens(likeliest(logits_R[None], count)[0])[0], []
        tokens_R = self.head.parts.lm_head.tokens_R
        q_R = probabilities(logits_R[None], self.sampling)[0].cpu()
        tokens, rows = list[int](), list[Tensor]()
        while len(tokens) < count and float(q_R.sum()) > 0:
            q_R = q_R / q_R.sum()
            row = draw(q_R, self.generator)
            tokens.append(int(tokens_R[row]))
            rows.append(q_R.new_zeros(self.vocabulary).index_copy(0, tokens_R, q_R))
            q_R[row] = 0
        return tokens, rows


class _Growing:
    """A static tree, as far as it has grown. `nodes`: of every path its node; `expanded`: paths whose children are
    known or asked for next."""

    def __init__(self, pending: int) -> None:
        self.nodes: dict[Path, int] = {(): 0}
        self.expanded: list[Path] = [()]
        self.tokens, self.rows = [pending], list[Tensor]()

    def add(self, path: Path, tokens: Sequence[int], rows: Sequence[Tensor]) -> None:
        """Children of a node, and what each was drawn from."""
        for rank, token in enumerate(tokens):
            self.nodes[*path, rank] = len(self.tokens)
            self.tokens.append(token)
        self.rows += rows

    def expand(self, level: Sequence[Path]) -> TokenTree:
        """The tree of all that is expanded, this level behind the others."""
        self.expanded += level
        return self._tree(self.expanded, None)

    @property
    def proposed(self) -> TokenTree:
        q_NV = torch.stack([torch.zeros_like(self.rows[0]), *self.rows]) if self.rows else None
        return self._tree(list(self.nodes), q_NV)

    def _tree(self, paths: list[Path], q_NV: Tensor | None) -> TokenTree:
        place = {path: i for i, path in enumerate(paths)}
        tokens = [self.tokens[self.nodes[path]] for path in paths]
        return TokenTree(tokens, [-1, *(place[path[:-1]] for path in paths[1:])], q_NV)
