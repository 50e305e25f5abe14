"""How many nodes `--nodes auto` takes: against known acceptances and times, and in a real method."""

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
from methods.tree_size import MOST_NODES, ROUNDS, AutoNodes, Round, best_size, between, measured_passes

FLAT = {1: 1.0, 64: 1.0}  # pass times: all alike
STEEP = {1: 1.0, 64: 64.0}  # every row costs as much as the first


def rounds(kept: list[int], seconds: float = 0.1) -> list[Round]:
    """Rounds of a drafter that spends the same on every tree."""
    return [Round(size, seconds, [k for k in kept if k <= size]) for size in (63, 7, 63, 15, 31, 3)]


def test_where_rows_cost_nothing_the_tree_takes_all_that_are_kept() -> None:
    assert best_size(rounds([1, 5, 9, 30]), FLAT) == 30


def test_where_each_row_costs_a_pass_the_tree_has_one_node() -> None:
    assert best_size(rounds([1, 30]), STEEP) == 1


def test_a_drafter_that_takes_longer_for_more_gets_a_smaller_tree() -> None:
    kept = [1, 2, 40]
    cheap = [Round(size, 0.1, [k for k in kept if k <= size]) for size in (63, 3)]
    dear = [Round(size, size / 3, [k for k in kept if k <= size]) for size in (63, 3)]
    assert (best_size(cheap, FLAT), best_size(dear, FLAT)) == (40, 2)


def test_a_size_is_judged_by_trees_that_are_as_large() -> None:
    """Small trees cannot keep what they lack: they say nothing against the large one."""
    assert best_size([Round(63, 0.1, [1, 20]), *[Round(3, 0.1, [1])] * 50], FLAT) == 20


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
        asked.append(auto.nodes)
        auto.judged(tree, [0, 1, 3], 0.1)
    assert set(asked) == {3, 7, 15, 31, MOST_NODES}
    assert auto.answered() == 3  # kept in trees of at least 2, and of at least 3 nodes


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
    nodes = method.settled()["nodes"]
    assert 1 <= nodes <= MOST_NODES
    answer = generate(method, prompt, Sampling(), limits)
    assert answer.token_ids == expected and max(answer.nodes) <= nodes + 1 and method.settled() == {"nodes": nodes}


def test_passes_are_timed_as_far_as_there_is_room(tiny: Path) -> None:
    target = Models(str(tiny), None, "float32", [torch.device("cpu")], 30).target
    target.prefill([1, 2, 3, 4, 5])
    times = measured_passes(target, 7)
    assert list(times) == [1, 2, 4, 8, 16] and all(seconds > 0 for seconds in times.values())
    assert target.length == 5
