"""REST, retrieval-based speculative decoding (He et al., NAACL 2024): what followed the current suffix in a datastore.

The longest suffix that occurs there is taken, of at most SPAN tokens; what follows its occurrences is a trie, of which
the most frequent nodes are proposed. A child is never more frequent than its parent, so they are a tree.

Five faults of the paper's code are mended. Documents are separated, where theirs go on into the next one. Of equally
frequent nodes those nearer the root come first, then those of smaller tokens, where theirs come as a hash has it. The
tree has as many nodes as are wanted, where theirs counts the tokens of every prefix of a path, so that one path of ten
nodes costs 55. Where more occurrences than `matches` are found, these are spread over all, where theirs are the first
in the order of what follows. And where nothing is found nothing is drafted, where theirs drafts token 100.

Legend: T prompt tokens, F feature width, K nodes of a trie, N of the tree.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from methods.drafters.base import Drafter
from methods.drafters.datastore import Datastore, Trie, fingerprint, read_table, write
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.target import Outcome
from methods.tiny import config_of

SPAN = 16  # longest suffix that is looked up
LENGTH = 10  # tokens of a continuation


class RestDrafter(Drafter):
    """`recent`: the last decided tokens, the pending one last."""

    def __init__(self, store: Datastore, nodes: int, least: int, matches: int) -> None:
        """`least`: tokens of the shortest suffix that is looked up; `matches`: most occurrences that are looked at."""
        self.store, self.nodes, self.least, self.matches = store, nodes, least, matches
        self.recent: list[int] = []

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.recent = list(prompt_T[-SPAN:])

    def settle(self, outcome: Outcome) -> None:
        self.recent = [*self.recent, *outcome.tokens][-SPAN:]

    def propose(self, room: int) -> TokenTree:
        span, rows = self.store.longest(self.recent, self.least)
        if not rows:
            return TokenTree.chain(self.recent[-1:])
        trie = self.store.trie(rows, span, self.most_levels(LENGTH), self.matches)
        return tree_of(self.recent[-1], trie, min(room, self.nodes))


def tree_of(pending: int, trie: Trie, nodes: int) -> TokenTree:
    """The most frequent nodes of a trie behind the pending token."""
    best_N = np.argsort(-trie.counts_K, kind="stable")[:nodes]
    chosen_N = np.sort(best_N)
    above_N = trie.parents_K[chosen_N]
    parents_N = np.where(above_N < 0, 0, np.searchsorted(chosen_N, above_N) + 1)
    sizes_N = np.empty(len(best_N), np.int64)
    sizes_N[np.searchsorted(chosen_N, best_N)] = np.arange(1, len(best_N) + 1)
    return TokenTree(
        [pending, *trie.tokens_K[chosen_N].tolist()],
        [-1, *parents_N.tolist()],
        sizes_N=[0, *sizes_N.tolist()],
    )


def check(models: Models) -> None:
    """Refuse a datastore that is not whole, or of another target's tokens."""
    checkpoint = models.draft_checkpoint
    table = read_table(checkpoint.folder, checkpoint.source)
    if table["vocabulary"] != models.vocabulary:
        raise UserError(
            f"{checkpoint.source} has a vocabulary of {table['vocabulary']} tokens, the target one of "
            f"{models.vocabulary}; make a datastore for this target with scripts/make_datastore.py"
        )
    if table.get("tokenizer") and table["tokenizer"] != fingerprint(models.target_checkpoint.tokenizer.get_vocab()):
        raise UserError(
            f"{checkpoint.source} has the tokens of another tokenizer than the target's; make a datastore for this "
            "target with scripts/make_datastore.py"
        )


def build(models: Models, nodes: int, shortest: int, matches: int) -> RestDrafter:
    """The pair's datastore."""

    def load() -> Datastore:
        check(models)
        return Datastore(models.draft_checkpoint.folder, models.vocabulary)

    return RestDrafter(models.once("datastore", load), nodes, shortest, matches)


def write_tiny(folder: Path, target: Path) -> Path:
    """A datastore of a few documents in which tokens follow each other in several ways."""
    vocabulary = config_of(target)["vocab_size"]
    documents = [[(step * i + i // 3) % vocabulary for i in range(4 * vocabulary)] for step in (1, 2, 7)]
    write(folder, documents, vocabulary)
    return folder
