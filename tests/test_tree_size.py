"""How many nodes `--nodes auto` takes: against known acceptances and times, and in a real method."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from methods import METHODS, get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.speculative import Speculative
from methods.tree_size import (
    LARGEST,
    MOST_LEVELS,
    MOST_NODES,
    ROUNDS,
    TRIED,
    AutoNodes,
    Node,
    Round,
    Size,
    best_size,
    between,
    draft_times,
    measured_passes,
)

FLAT = {1: 1.0, 64: 1.0}  # pass times: all alike
STEEP = {1: 1.0, 64: 64.0}  # every row costs as much as the first


def drafted(asked: Size, levels: list[int], kept: list[int], seconds: float) -> Round:
    """`levels` of all nodes that the drafter would draft, the best first; `kept`: of these, counted from 1."""
    shallow = [Node(level, i in kept) for i, level in enumerate(levels, 1) if level <= asked.levels]
    return Round(asked, seconds, shallow[: asked.nodes])


def rounds(
    kept: list[int], levels: list[int], seconds: Callable[[int, int], float] = lambda levels, nodes: 0.1
) -> list[Round]:
    """One of each size. `seconds` by levels and nodes."""
    found = []
    for asked in TRIED:
        tree = drafted(asked, levels, kept, 0.0)
        deepest = max(node.level for node in tree.nodes)
        found.append(replace(tree, seconds=seconds(deepest, len(tree.nodes))))
    return found


STAR = [1] * 63
LADDER = [1, 2, 3, 4, 5, 6, 7, 8] + [1, 2, 3, 4, 5] * 11  # the best eight are a chain


def test_where_rows_cost_nothing_the_tree_takes_all_that_are_kept() -> None:
    assert best_size(rounds([30], STAR), FLAT) == (30, 1)
    assert best_size(rounds([1, 2, 3, 4, 5, 6], LADDER), FLAT) == (6, 6)


def test_where_each_row_costs_a_pass_the_tree_has_one_node() -> None:
    assert best_size(rounds([1, 30], STAR), STEEP) == (1, 1)


def test_a_drafter_that_takes_longer_for_more_nodes_gets_a_smaller_tree() -> None:
    kept = [1, 2, 40]
    deep = [1, 2] + [1] * 37 + [3] + [1] * 23
    assert best_size(rounds(kept, deep), FLAT) == (40, 3)
    assert best_size(rounds(kept, deep, lambda levels, nodes: nodes / 10), FLAT) == (2, 2)


def test_a_drafter_that_takes_longer_for_more_levels_gets_a_shallower_tree() -> None:
    kept = [1, 2, 3, 4]
    assert best_size(rounds(kept, LADDER, lambda levels, nodes: 0.01 * levels), FLAT) == (4, 4)
    assert best_size(rounds(kept, LADDER, lambda levels, nodes: 1.5 * levels), FLAT).levels == 1


def test_a_shallow_tree_of_few_nodes_has_the_best_of_its_levels() -> None:
    """Deeper nodes that are better leave their places to others."""
    kept = [1, 9]  # of the ladder: the first node, and the next one of level 1
    assert best_size(rounds(kept, LADDER, lambda levels, nodes: 0.5 * levels + 0.01 * nodes), FLAT) == (2, 1)


def test_a_size_is_judged_by_trees_that_are_as_large() -> None:
    """Small trees cannot keep what they lack: they say nothing against the large one."""
    small = [drafted(Size(3, 1), STAR, [], 0.1)] * 50
    assert best_size([drafted(LARGEST, STAR, [20], 0.1), *small], FLAT) == (20, 1)


def test_drafting_times_are_told_apart_by_levels_and_nodes() -> None:
    seconds = draft_times(rounds([], LADDER, lambda levels, nodes: 0.5 + 0.9 * levels + 0.02 * nodes))
    assert seconds(3, 7) == pytest.approx(0.5 + 2.7 + 0.14)


def test_a_round_has_its_nodes_the_best_first() -> None:
    tree = TokenTree(torch.arange(4), torch.tensor([-1, 0, 0, 1]), sizes_N=[0, 2, 1, 3])
    assert Round.of(LARGEST, 0.1, tree, [0, 1, 3]).nodes == [(1, False), (1, True), (2, True)]


def test_between_measured_counts_lies_a_straight_line() -> None:
    times = {1: 1.0, 4: 4.0, 8: 6.0}
    assert [between(times, count) for count in (1, 2, 4, 6, 8, 20, 0)] == [1, 2, 4, 5, 6, 6, 1]


def test_nothing_is_taken_before_enough_is_known() -> None:
    auto = AutoNodes()
    auto.pass_seconds = FLAT
    assert auto.answered() is None and auto.answered() is None
    tree = TokenTree(torch.arange(4), torch.tensor([-1, 0, 0, 1]), sizes_N=[0, 2, 1, 3])
    asked = []
    for _ in range(ROUNDS):
        asked.append(auto.size)
        auto.judged(tree, [0, 1, 3], 0.1, 1.0)
    assert set(asked) == set(TRIED)
    assert auto.answered() == (3, 2)  # the second and the third best node were kept


def test_the_rounds_own_passes_count_where_there_are_enough() -> None:
    """A pass of four rows was timed to be as fast as one of one row, and takes ten times as long behind real drafts."""
    small = TokenTree(torch.arange(2), torch.tensor([-1, 0]))
    large = TokenTree(torch.arange(4), torch.tensor([-1, 0, 1, 0]))
    for slow, expected in ((1.0, (2, 2)), (10.0, (1, 1))):
        auto = AutoNodes()
        auto.pass_seconds = FLAT
        for _ in range(ROUNDS):
            auto.judged(small, [0, 1], 0.1, 1.0)
            auto.judged(large, [0, 1, 2], 0.1, slow)
        assert auto.answered() is None and auto.answered() == expected


@pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if row.loop == "turns" and "nodes" in row.options]
)
def test_every_method_of_trees_settles_on_a_size(tiny: Path, weights: dict[str, Path], name: str) -> None:
    spec = get_method(name)
    draft = str(weights[spec.weights]) if spec.weights else None
    models = Models(str(tiny), draft, "float32", [torch.device("cpu")])
    method = build_method(spec, models, {"nodes": "auto", "depth": 3})
    assert isinstance(method, Speculative)
    prompt, limits = [(7 * i) % 90 + 1 for i in range(40)], Limits(frozenset(), 60)
    expected = generate(build_method(get_method("autoregressive"), models, {}), prompt, Sampling(), limits).token_ids
    answers = 0
    while not method.settled():
        assert (answers := answers + 1) < 10
        assert generate(method, prompt, Sampling(), limits).token_ids == expected
    settled = {name: int(value) for name, value in method.settled().items()}
    assert 1 <= settled["nodes"] <= MOST_NODES and 1 <= settled["levels"] <= (
        3 if "depth" in spec.options else MOST_LEVELS
    )
    answer = generate(method, prompt, Sampling(), limits)
    assert answer.token_ids == expected and method.settled() == settled
    assert max(answer.nodes) <= settled["nodes"] + 1 and max(answer.accept_lengths) <= settled["levels"] + 1


def test_passes_are_timed_as_far_as_there_is_room(tiny: Path) -> None:
    target = Models(str(tiny), None, "float32", [torch.device("cpu")], 30).target
    target.prefill([1, 2, 3, 4, 5])
    times = measured_passes(target, 7)
    assert list(times) == [1, 2, 4, 8, 16] and all(seconds > 0 for seconds in times.values())
    assert target.length == 5
