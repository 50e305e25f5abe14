"""Token Recycling against the numbers of its published code (tests/goldens/README.md)."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from evaluation.launch.config import parse
from methods import get_method
from methods.build import build_drafter
from methods.drafters.recycling import PATHS, SHAPE, RecyclingDrafter
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.target import Outcome, Target
from tests.goldens import GOLDENS

TRACES = [json.loads(line) for line in (GOLDENS / "token_recycling/traces.jsonl").read_text().splitlines()]


def steps(target: Target, drafter: RecyclingDrafter, trace: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of each tree, and those that were decided, as the published loop goes: its first tree is rooted at the
    prompt's last token, where ours waits for the first of the answer; and it learns nothing from its last pass."""
    *prompt, root = trace["prompt"]
    target.start(prompt, Sampling())
    target.pending, decided = root, 0
    drafter.settle(Outcome([root], [0]))
    while True:
        tree = drafter.propose(len(PATHS))
        outcome = target.judge(tree)
        yield tree.tokens_N.tolist(), outcome.tokens
        decided += len(outcome.tokens)
        if decided >= len(trace["output"]):
            return
        drafter.settle(outcome)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(str(GOLDENS / "target"), None, "float32", [torch.device("cpu")])


def test_the_tree_is_the_published_one() -> None:
    template = json.loads((GOLDENS / "token_recycling/tree_template.json").read_text())
    assert [list(path) for path in PATHS] == template["choices"]


@pytest.mark.parametrize("mode", ["cold", "cold_eos", "warm_sequence"])
def test_trees_and_accept_lengths_are_the_published_ones(models: Models, mode: str) -> None:
    drafter = RecyclingDrafter(len(PATHS), hot=mode == "warm_sequence")  # one matrix for all prompts
    for trace in (trace for trace in TRACES if trace["mode"] == mode):
        drafter.begin(trace["prompt"][:-1], Sampling(), None)
        trees, decided = zip(*steps(Target(models.target), drafter, trace), strict=True)
        assert [token for tokens in decided for token in tokens][: len(trace["output"])] == trace["output"]
        assert [len(tokens) for tokens in decided] == trace["accept_length"]
        assert list(trees[:10]) == trace["draft_tokens"]


def test_the_matrix_begins_anew_with_every_prompt(models: Models) -> None:
    """So the order of questions does not matter."""
    drafter = RecyclingDrafter(20)
    for _ in range(2):
        trees = []
        for trace in TRACES[:2]:
            drafter.begin(trace["prompt"][:-1], Sampling(), None)
            trees.append(list(steps(Target(models.target), drafter, trace)))
    drafter = RecyclingDrafter(20)
    drafter.begin(TRACES[1]["prompt"][:-1], Sampling(), None)
    assert list(steps(Target(models.target), drafter, TRACES[1])) == trees[1]


@pytest.mark.parametrize("nodes", [1, 7, 20, 80])
def test_a_smaller_tree_is_a_tree(nodes: int) -> None:
    paths = SHAPE.paths[:nodes]
    assert len(paths) == nodes and all(path[:-1] in [(), *paths[:i]] for i, path in enumerate(paths))
    assert all(rank == 0 or (*parent, rank - 1) in paths[:i] for i, (*parent, rank) in enumerate(paths))
    assert set(paths) <= set(PATHS)


def test_a_hot_start_is_an_option_that_the_header_tells(models: Models) -> None:
    for name, hot in (("recycling", False), ("recycling@start=hot", True)):
        drafter = build_drafter(get_method(name), models, {})
        assert isinstance(drafter, RecyclingDrafter) and drafter.hot == hot
    config = parse(["recycling,recycling@start=hot", "smollm2-135m"])
    assert [config.options_of(spec).get("start") for spec in config.specs] == [None, "cold", "hot"]


def test_only_a_hot_start_knows_what_was_seen_before(models: Models) -> None:
    for hot in (False, True):
        drafter = RecyclingDrafter(20, hot)
        for trace in TRACES[:2]:
            drafter.begin(trace["prompt"][:-1], Sampling(), None)
            known = bool(drafter.rows)
            list(steps(Target(models.target), drafter, trace))
        assert known == hot
