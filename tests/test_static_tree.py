"""Static trees: the published one, the best ones of an acceptance table against all there are, and how they are
filled."""

from itertools import islice, pairwise
from pathlib import Path as Path_

import pytest
import torch

from methods import BASELINE, DRAFTERS, get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.drafters.static_tree import (
    MEDUSA_7B,
    PRIOR,
    PUBLISHED,
    Path,
    StaticShape,
    grow,
    level_order,
    levels,
    static_tree,
)
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.speculative import Speculative
from tests.weights import WEIGHTS

TABLE = [[0.6, 0.2, 0.1], [0.5, 0.3], [0.4]]


def promise(path: Path) -> float:
    product = 1.0
    for depth, rank in enumerate(path):
        product *= TABLE[depth][rank]
    return product


def all_paths() -> list[Path]:
    found: list[Path] = [()]
    for row in TABLE:
        found += [(*path, rank) for path in found if len(path) == TABLE.index(row) for rank in range(len(row))]
    return found[1:]


def test_the_best_trees_have_the_most_promising_paths() -> None:
    """Of every size."""
    ranked = sorted(all_paths(), key=promise, reverse=True)
    grown = list(grow(TABLE))
    assert len(grown) == len(ranked) == 3 + 6 + 6
    for nodes in range(len(ranked) + 1):
        assert sum(map(promise, grown[:nodes])) == pytest.approx(sum(map(promise, ranked[:nodes])))


@pytest.mark.parametrize("nodes", [0, 1, 7, 20, 62])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_smaller_tree_is_a_tree(nodes: int, depth: int) -> None:
    paths = static_tree(nodes, depth)
    assert len(paths) == min(nodes, 10 if depth == 1 else nodes) and max(map(len, paths), default=0) <= depth
    assert all(path[:-1] in [(), *paths[:i]] for i, path in enumerate(paths))
    ordered = StaticShape(paths).tree(nodes)
    assert all((len(one), one) < (len(other), other) for one, other in pairwise(ordered)) and set(ordered) == set(paths)


def test_the_papers_tree_wants_four_levels() -> None:
    assert level_order(static_tree(63, 5)) == PUBLISHED == level_order(static_tree(80, 4)) and len(PUBLISHED) == 63
    assert level_order(static_tree(63, 3)) != PUBLISHED and len(static_tree(63, 3)) == 63
    assert len(MEDUSA_7B) == 5 and all(
        sum(row[:5]) == pytest.approx(five)
        for row, five in zip(MEDUSA_7B, (0.780, 0.563, 0.417, 0.340, 0.300), strict=True)
    )


def test_levels_know_whom_to_expand() -> None:
    first, second = levels(((0,), (2,), (0, 0), (0, 1)))
    assert (first.paths, first.inner, first.ranks) == ([(0,), (2,)], [(0,)], 3)
    assert (second.paths, second.inner, second.ranks) == ([(0, 0), (0, 1)], [], 2)
    assert levels(()) == []


@pytest.mark.parametrize(("nodes", "parents"), [(9, [-1, 0, 0, 1]), (2, [-1, 0, 1]), (0, [-1])])
def test_a_smaller_tree_has_the_best_paths(nodes: int, parents: list[int]) -> None:
    shape = StaticShape([(0,), (0, 0), (1,)])
    tokens = {(0,): 5, (1,): 6, (0, 0): 8}
    paths = shape.tree(nodes)
    tree = shape.filled(7, {path: tokens[path] for path in paths})
    assert tree.parents_N.tolist() == parents and tree.tokens_N.tolist() == [7, *(tokens[path] for path in paths)]
    assert tree.sizes_N == {9: [0, 1, 3, 2], 2: [0, 1, 2], 0: [0]}[nodes]


def seen(shape: StaticShape, kept: list[Path], rounds: int) -> None:
    """Rounds in which the target kept these paths of the whole tree."""
    paths = shape.tree(len(shape.paths))
    for _ in range(rounds):
        tree = shape.filled(7, dict.fromkeys(paths, 1))
        assert len(tree.tokens_N) == len(paths) + 1
        shape.judged([0, *(1 + paths.index(path) for path in kept)])


def test_a_shape_learns_which_ranks_are_kept_given_their_parent() -> None:
    shape = StaticShape(static_tree(30, 3))
    seen(shape, [(1,), (1, 0)], 92)
    seen(shape, [], 8)
    first, second, third = shape.rates
    assert first[0] == pytest.approx((PRIOR * MEDUSA_7B[0][1] + 92) / (PRIOR + 100)), "the better rank comes first"
    assert first[1] == pytest.approx(PRIOR * MEDUSA_7B[0][0] / (PRIOR + 100))
    assert second[0] == pytest.approx((PRIOR * MEDUSA_7B[1][0] + 92) / (PRIOR + 92)), "only where its parent was kept"
    assert third[5] == pytest.approx(MEDUSA_7B[2][5]), "never tried"


def test_fit_takes_the_best_paths_by_the_rates_and_as_many() -> None:
    shape = StaticShape(static_tree(30, 4))
    before = shape.paths
    seen(shape, [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)], 200)
    shape.fit()
    assert shape.paths == list(islice(grow(shape.rates), 30)) != before
    assert shape.paths[:4] == [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)] != before[:4]
    assert shape.tree(4) == ((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0))


def test_behind_a_prompt_there_is_nothing_to_learn() -> None:
    shape = StaticShape(static_tree(5, 2))
    before = shape.rates
    shape.judged([0])
    assert shape.rates == before


@pytest.mark.parametrize("name", ["medusa", "hydra", "eagle"])
def test_after_the_warm_up_a_method_has_another_tree_and_the_same_output(
    name: str, tiny: Path_, tmp_path: Path_
) -> None:
    weights = WEIGHTS[DRAFTERS[name].weights](tmp_path, tiny)
    models = Models(str(tiny), str(weights), "float32", [torch.device("cpu")])
    plain, method = (build_method(get_method(row), models, {}) for row in (BASELINE, name))
    assert isinstance(method, Speculative)
    limits = Limits(frozenset(), 40)
    before = method.drafter.shape.paths  # type: ignore[attr-defined]
    for first in range(1, 6):
        prompt = [first, 2, 3, 4]
        got = generate(method, prompt, Sampling(), limits)
        assert got.token_ids == generate(plain, prompt, Sampling(), limits).token_ids
    assert method.settled() and method.drafter.shape.paths != before  # type: ignore[attr-defined]
