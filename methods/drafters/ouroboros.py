"""Ouroboros (Zhao et al., EMNLP 2024): a draft model drafts by lookahead decoding of its own, phrases from the same
pool are hung behind what it has drafted, and what the target says of all this goes back into the pool.

So a pass of the draft gives several tokens, and where the target keeps the whole window, a phrase may follow it. The
pool has the n-grams of the draft's Jacobi window, and the target's own: in its pass it says what it would have put
behind each node. Behind a rejected draft these are tokens of another text, yet a phrase of it where they agree with the
drafts that follow. And a phrase that was hung is replaced by what the target says along it.

The published code commits one token less where a phrase is right as a whole; here it is kept whole, and the target's
own token comes behind it. A phrase that is replaced may be twice in the published pool; here it is not. That code is
for greedy decoding alone; as drafts and phrases depend on nothing but the past, they are verified at a temperature too.

Legend: T prompt tokens, N nodes of a tree, R rows of the draft's head, F feature width, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters import language_model
from methods.drafters.base import Drafter
from methods.drafters.language_model import ModelDrafter
from methods.drafters.lookahead import Lookahead, Ngram, NgramPool, Window, rows_of
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.engine.verify import most_likely
from methods.models import Models
from methods.target import Outcome


class OuroborosDrafter(Drafter):
    """Window and pool begin anew with every prompt, so that no answer depends on the ones before."""

    def __init__(self, model: ModelDrafter, gamma: int, window: Window, phrases: int) -> None:
        """`model` keeps what its decoder has read and drafted; the tokens are not chosen by it. `phrases`: most that
        are hung behind `gamma` drafts."""
        if not isinstance(model.decoder, Decoder):
            raise ValueError(f"expected a draft that scores trees, got {type(model.decoder).__name__}")
        self.model, self.decoder = model, model.decoder
        self.gamma, self.phrases, self.window = gamma, phrases, window
        self.columns, self.length, self.held = window.size

    def settled(self) -> dict[str, int | str]:
        return dict(self.window.chosen)

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.model.begin(prompt_T, sampling, None)
        self.pool = NgramPool(self.held)
        self.lookahead = Lookahead(self.columns, self.length, self.pool)
        self.lookahead.begin(prompt_T, sampling.generator("window"))
        self.tree: TokenTree | None = None
        self.hung: list[Ngram] = []

    def propose(self, room: int) -> TokenTree:
        window = min(self.gamma, room)
        while (left := window - len(self.model.drafted)) and self._draft(left):
            pass
        drafted = self.model.drafted
        self.hung = self.pool.behind(self._last)[-self.phrases :]
        tree = TokenTree.of(self.model.pending, [drafted, *([*drafted, *phrase] for phrase in self.hung)])
        self.tree = tree.first(room + 1)
        return self.tree

    @property
    def _last(self) -> int:
        """The token behind which phrases are hung."""
        return [self.model.pending, *self.model.drafted][-1]

    def _draft(self, most: int) -> bool:
        """A pass of the draft, which drafts at most so many tokens. Whether there was room for it."""
        unread = self.model.unread
        room = self.decoder.room - len(unread)
        if room < 0:
            return False
        guesses = [guess[: most - 1] for guess in self.lookahead.guesses(unread[-1])]
        tree = self.lookahead.tree(unread, guesses, room)
        logits_NR = self.decoder.score(tree).logits_NV
        if newest := self.lookahead.newest:
            self.lookahead.learn(self._said(rows_of(logits_NR, newest)))
        path = walked(tree, len(unread) - 1, said := self._said(logits_NR[: tree.judged]))
        self.decoder.commit(path)
        self.model.drafted += [*(tree.tokens[node] for node in path[len(unread) :]), said[path[-1]]]
        return True

    def _said(self, logits_NR: Tensor) -> list[int]:
        """The draft's most likely token behind each node. Its rows behind the target's vocabulary are padding."""
        tokens_R = self.model.tokens_R
        return tokens_R[most_likely(logits_NR[:, : len(tokens_R)])].tolist()

    def settle(self, outcome: Outcome) -> None:
        if self.tree is not None and outcome.logits_NV is not None:
            self._correct(self.tree, self.model.kept(outcome), outcome.logits_NV)
        self.tree = None
        self.model.settle(outcome)

    def _correct(self, tree: TokenTree, kept: int, logits_NV: Tensor) -> None:
        """The target has scored the tree and kept so many of the drafts, which are the nodes from 1 on."""
        end = len(self.model.drafted)
        first = min(kept + 1, end)
        said = dict(enumerate(most_likely(logits_NV[first:]), first))
        hung = {phrase: followed(tree, end, phrase[:-1]) for phrase in self.hung}
        hung = {phrase: nodes for phrase, nodes in hung.items() if len(nodes) == len(phrase)}  # else there was no room
        self.pool.replace(self._last, hung, [tuple(said[node] for node in nodes) for nodes in hung.values()])
        self._learn(kept + 1, said)

    def _learn(self, first: int, said: dict[int, int]) -> None:
        """Phrases of the drafts from node `first` on, which were rejected: as far as the target goes on as they do."""
        drafted = self.model.drafted
        for begin in range(first, len(drafted) - self.length + 3):
            phrase = tuple(said[node] for node in range(begin, begin + self.length - 1))
            if list(phrase[:-1]) == drafted[begin : begin + self.length - 2]:
                self.pool.add(drafted[begin - 1], phrase)


def walked(tree: TokenTree, node: int, said: Sequence[int]) -> list[int]:
    """The nodes from the root to `node` and on, as far as a judged child has the token that was said behind its parent,
    said[i] behind node i."""
    path = tree.path(node)
    while True:
        child = next((child for child in _judged(tree, path[-1]) if tree.tokens[child] == said[path[-1]]), None)
        if child is None:
            return path
        path.append(child)


def followed(tree: TokenTree, node: int, tokens: Sequence[int]) -> list[int]:
    """`node` and the nodes of these tokens behind it, as far as the tree has them."""
    nodes = [node]
    for token in tokens:
        child = next((child for child in _judged(tree, nodes[-1]) if tree.tokens[child] == token), None)
        if child is None:
            break
        nodes.append(child)
    return nodes


def _judged(tree: TokenTree, node: int) -> list[int]:
    return [child for child in tree.children[node] if child <= tree.drafted]


def build(
    models: Models, gamma: int, columns: int | str, ngram: int | str, guesses: int | str, phrases: int
) -> OuroborosDrafter:
    """Over the pair's draft model."""
    window = Window.of(models, columns=columns, ngram=ngram, guesses=guesses)
    return OuroborosDrafter(language_model.build(models), gamma, window, phrases)
