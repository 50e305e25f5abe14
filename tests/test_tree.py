"""Token trees against their definition, by brute force."""

import random

import pytest
import torch

from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.engine.verify import verify


def ancestors(parents: list[int], node: int) -> list[int]:
    path = []
    while node != -1:
        path.append(node)
        node = parents[node]
    return path[::-1]


@pytest.mark.parametrize("seed", range(20))
def test_random_trees_see_their_ancestors_only(seed: int) -> None:
    rng = random.Random(seed)
    nodes = rng.randint(1, 40)
    parents = [-1] + [rng.randrange(i) for i in range(1, nodes)]
    tree = TokenTree(range(nodes), parents)
    for node in range(nodes):
        path = ancestors(parents, node)
        assert tree.visible_NN[node].nonzero().flatten().tolist() == sorted(path)
        assert tree.path(node) == path
        assert tree.depth_N[node] == len(path) - 1
        assert tree.children[node] == [i for i in range(nodes) if parents[i] == node]


def test_a_chain_is_the_tree_of_its_parents() -> None:
    chain = TokenTree.chain([5, 6, 7])
    assert chain.is_chain
    assert chain.parents_N.tolist() == [-1, 0, 1]
    assert torch.equal(chain.visible_NN, torch.ones(3, 3).tril().bool())
    assert not TokenTree(range(3), [-1, 0, 0]).is_chain


def test_chain_rows_of_q_follow_the_root() -> None:
    q_GV = torch.rand(2, 4)
    chain = TokenTree.chain([5, 1, 2], q_GV)
    assert chain.q_NV is not None
    assert isinstance(chain.q_NV, torch.Tensor) and torch.equal(chain.q_NV[1:], q_GV)
    assert chain.q_NV[0].sum() == 0


@pytest.mark.parametrize("parents", [[], [0], [-1, 1], [-1, -1], [-1, 0, 5]])
def test_impossible_parents_are_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="parent"):
        TokenTree([0] * len(parents), parents)


def test_paths_become_a_trie_whose_siblings_differ() -> None:
    tree = TokenTree.of(9, [[1, 2, 3], [1, 2, 4], [5], [1, 2]])
    assert tree.tokens_N.tolist() == [9, 1, 2, 3, 4, 5]
    assert tree.parents_N.tolist() == [-1, 0, 1, 2, 2, 0]
    assert TokenTree.of(9, []).tokens_N.tolist() == [9]


def test_nodes_behind_the_judged_ones_are_scored_and_never_kept() -> None:
    """The target wants 1, then 2, then 3; the node of the 2 is one that is scored only."""
    tokens, parents = [9, 1, 2], [-1, 0, 1]
    logits_NV = torch.eye(4)[[1, 2, 3]] * 9
    for sampling in (Sampling(), Sampling(1e-3)):
        whole, part = (
            verify(TokenTree(tokens, parents, judged=judged), logits_NV, sampling, sampling.generator("verify"))
            for judged in (None, 2)
        )
        assert (whole.path_A, whole.next_token) == ([0, 1, 2], 3)
        assert (part.path_A, part.next_token) == ([0, 1], 2)
    assert TokenTree(tokens, parents, judged=2).drafted == 1
