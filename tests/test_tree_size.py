"""How many nodes `--nodes auto` takes: against known acceptances and times, and in a real method."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from methods import METHODS, get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.options import MOST
from methods.speculative import Speculative
from methods.tree_size import (
    ASIDE,
    FEWEST,
    GAIN,
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
    better_size,
    between,
    draft_times,
    larger,
    measured_passes,
    smaller,
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
    tree = TokenTree(range(4), [-1, 0, 0, 1], sizes_N=[0, 2, 1, 3])
    assert Round.of(LARGEST, 0.1, tree, [0, 1, 3]).nodes == [(1, False), (1, True), (2, True)]


def test_between_measured_counts_lies_a_straight_line() -> None:
    times = {1: 1.0, 4: 4.0, 8: 6.0}
    assert [between(times, count) for count in (1, 2, 4, 6, 8, 20, 0)] == [1, 2, 4, 5, 6, 6, 1]


def test_nothing_is_taken_before_enough_is_known() -> None:
    auto = AutoNodes()
    auto.pass_seconds = FLAT
    assert auto.answered() is None and auto.answered() is None
    tree = TokenTree(range(4), [-1, 0, 0, 1], sizes_N=[0, 2, 1, 3])
    asked = []
    for _ in range(ROUNDS):
        asked.append(auto.size)
        auto.judged(tree, [0, 1, 3], 0.1, 1.0)
    assert set(asked) == set(TRIED)
    assert auto.answered() == (3, 2)  # the second and the third best node were kept


def test_the_rounds_own_passes_count_where_there_are_enough() -> None:
    """A pass of four rows was timed to be as fast as one of one row, and takes ten times as long behind real drafts."""
    small = TokenTree(range(2), [-1, 0])
    large = TokenTree(range(4), [-1, 0, 1, 0])
    for slow, expected in ((1.0, (2, 2)), (10.0, (1, 1))):
        auto = AutoNodes()
        auto.pass_seconds = FLAT
        for _ in range(ROUNDS):
            auto.judged(small, [0, 1], 0.1, 1.0)
            auto.judged(large, [0, 1, 2], 0.1, slow)
        assert auto.answered() is None and auto.answered() == expected


def answers(auto: AutoNodes, count: int, seconds: Callable[[int], float], kept: Sequence[int]) -> None:
    """Answers of 40 rounds by stars: `seconds` of a pass by its rows; `kept`: children of which one is kept, each as
    often."""
    for _ in range(count):
        for child in np.random.default_rng(len(kept)).permutation([*kept] * 40)[:40]:
            nodes = auto.size.nodes
            tree = TokenTree(range(nodes + 1), [-1, *[0] * nodes])
            auto.judged(tree, [0, child] if child <= nodes else [0], 0.1, seconds(nodes + 1))
        auto.answered()


OFTEN_THE_FIRST = 1, 1, 1, 2, 2, 3, 4, 6


def dear(rows: int) -> float:
    return 1.0 + 0.5 * max(rows - 2, 0)


def cheap(rows: int) -> float:
    return 1.0 + 0.02 * rows


def settled_auto(seconds: Callable[[int], float]) -> AutoNodes:
    auto = AutoNodes()
    auto.pass_seconds = {rows: seconds(rows) for rows in (1, 2, 4, 8, 16, 32, 64)}
    answers(auto, 2, seconds, OFTEN_THE_FIRST)
    return auto


def test_a_size_is_chosen_anew_where_rows_come_to_cost_less_or_more() -> None:
    auto = settled_auto(dear)
    assert auto.chosen == (1, 1)
    answers(auto, 30, cheap, OFTEN_THE_FIRST)
    assert auto.chosen is not None and auto.chosen == settled_auto(cheap).chosen and auto.chosen.nodes > 3
    answers(auto, 30, dear, OFTEN_THE_FIRST)
    assert auto.chosen == (1, 1)


def test_a_size_is_chosen_anew_where_texts_keep_other_nodes() -> None:
    auto = settled_auto(lambda rows: 1.0 + 0.04 * rows)
    before = auto.chosen
    answers(auto, 30, lambda rows: 1.0 + 0.04 * rows, [1])
    assert before is not None and auto.chosen is not None and auto.chosen.nodes == 1 < before.nodes


def test_a_machine_that_slows_down_as_a_whole_leaves_the_size_as_it_is() -> None:
    auto = settled_auto(cheap)
    before = auto.chosen
    for _ in range(20):
        answers(auto, 1, lambda rows: 1.7 * cheap(rows), OFTEN_THE_FIRST)
        assert auto.chosen == before


def test_few_rounds_are_given_to_other_sizes() -> None:
    auto = settled_auto(cheap)
    assert auto.chosen is not None
    tree, asked = TokenTree(range(2), [-1, 0]), []
    for _ in range(4 * ASIDE):
        asked.append(auto.size)
        auto.judged(tree, [0, 1], 0.1, 1.0)
    assert sorted(set(asked)) == sorted({smaller(auto.chosen), auto.chosen, larger(auto.chosen)})
    assert asked.count(smaller(auto.chosen)) == asked.count(larger(auto.chosen)) == 2


def test_another_size_is_taken_only_for_much_and_by_enough_rounds() -> None:
    """The second node is kept in every round: two are faster than one where the second costs little."""
    found = [drafted(Size(2, 1), STAR, [1, 2], 0.0)] * FEWEST
    tokens = 3 / 2  # what two yield over one

    def taken(rounds: list[Round], cost: float) -> Size:
        return better_size(Size(1, 1), rounds, lambda levels, nodes: 0.0, {1: 1.0, 2: 1.0, 3: cost})

    assert taken(found, tokens / GAIN * 0.999) == (2, 1)
    assert taken(found, tokens / GAIN * 1.001) == (1, 1) == taken(found[1:], 1.0)


def test_sizes_are_compared_by_the_same_rounds() -> None:
    """Rounds with large trees had easier texts: what they keep by their first node does not speak for the others."""
    hard, easy = [drafted(Size(1, 1), STAR, [], 0.0)] * 40, [drafted(Size(2, 1), STAR, [1], 0.0)] * FEWEST
    passes = {1: 1.0, 2: 1.0, 3: 1.1}
    assert better_size(Size(1, 1), [*hard, *easy], lambda levels, nodes: 0.0, passes) == (1, 1)


@pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if row.loop == "turns" and "nodes" in row.options]
)
def test_every_method_of_trees_settles_on_a_size(tiny: Path, weights: dict[str, Path], name: str) -> None:
    spec = get_method(name)
    draft = str(weights[spec.weights]) if spec.weights else None
    models = Models(str(tiny), draft, "float32", [torch.device("cpu")])
    options = {"nodes": "auto", "depth": 3, "matched": MOST}  # nothing is copied before them
    method = build_method(spec, models, options)
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
    most = larger(Size(**settled))
    assert answer.token_ids == expected
    assert max(answer.nodes) <= most.nodes + 1 and max(answer.accept_lengths) <= most.levels + 1


def test_passes_are_timed_as_far_as_there_is_room(tiny: Path) -> None:
    target = Models(str(tiny), None, "float32", [torch.device("cpu")], 30).target
    target.prefill([1, 2, 3, 4, 5])
    times = measured_passes(target, 7)
    assert list(times) == [1, 2, 4, 8, 16] and all(seconds > 0 for seconds in times.values())
    assert target.length == 5
