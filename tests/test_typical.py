"""Typical acceptance: the rule by brute force, and that whoever uses it is told that it is lossy."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evaluation import lossless, report, run
from methods import get_method
from methods.engine.sampling import Sampling, probabilities
from methods.engine.tree import TokenTree
from methods.engine.verify import typically_accepted
from methods.errors import UserError
from tests.commands import in_process
from tests.weights import WEIGHTS

V = 6


def random_tree(seed: int, nodes: int = 14) -> tuple[TokenTree, Tensor]:
    """Siblings differ; logits are so uneven that some rows are sure and others are not."""
    generator = torch.Generator().manual_seed(seed)
    paths = [torch.randint(V, (4,), generator=generator).tolist() for _ in range(nodes)]
    tree = TokenTree.of(0, paths)
    scale = 4 * torch.rand(len(tree.tokens_N), 1, generator=generator)
    return tree, torch.randn(len(tree.tokens_N), V, generator=generator) * scale


def by_brute_force(tree: TokenTree, logits_NV: Tensor, sampling: Sampling) -> list[int]:
    """Of all nodes' paths the longest that is likely enough at every step, of equals the likeliest."""
    p_NV = probabilities(logits_NV, sampling)
    kept = {}
    for node in range(len(tree.tokens_N)):
        path, score = tree.path(node), 0.0
        for parent, child in pairwise(path):
            p_V = p_NV[parent].tolist()
            entropy = -sum(p * math.log(p) for p in p_V if p > 0)
            p = p_V[int(tree.tokens_N[child])]
            if p <= min(0.09, 0.3 * math.exp(-entropy)):
                break
            score += math.log(p)
        else:
            kept[len(path), score] = path
    return kept[max(kept)]


@pytest.mark.parametrize("seed", range(30))
def test_the_longest_likely_path_is_kept_and_the_best_token_follows(seed: int) -> None:
    tree, logits_NV = random_tree(seed)
    sampling = Sampling(temperature=0.7 + seed % 3 * 0.3)
    verdict = typically_accepted(tree, logits_NV, sampling)
    assert verdict.path_A == by_brute_force(tree, logits_NV, sampling)
    assert verdict.next_token == int(logits_NV[verdict.path_A[-1]].argmax())


def test_nodes_that_are_no_drafts_are_not_kept() -> None:
    tree = TokenTree([0, 1, 2], [-1, 0, 1], judged=2)
    verdict = typically_accepted(tree, torch.tensor([[0, 9, 0], [0, 0, 9], [9, 0, 0]]).float(), Sampling(1.0))
    assert (verdict.path_A, verdict.next_token) == ([0, 1], 2)


def test_a_run_by_it_is_called_lossy_wherever_it_is_shown(tiny: Path, tmp_path: Path) -> None:
    heads = WEIGHTS["medusa"](tmp_path / "heads", tiny)
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "category": "qa", "turns": ["hello there hello"]}\n')
    task = ["--target", tiny, "--draft", heads, "--questions", tmp_path / "q.jsonl", "--max-new-tokens", 12]
    task += ["--dtype", "fp32", "--threads", 1, "--nodes", 6, "--output", tmp_path / "out", "--acceptance", "typical"]
    greedy = in_process(run.main, "medusa", *task)
    assert greedy.returncode == 2 and "typical acceptance is a rule for sampling" in greedy.stderr
    done = in_process(run.main, "medusa", *task, "--temperature", 0.8)
    assert done.returncode == 0, done.stderr
    assert "medusa (lossy)" in done.stdout and "does not have the target's distribution" in done.stdout
    (header,) = (tmp_path / "out").rglob("medusa.run.json")
    assert json.loads(header.read_text())["lossless"] is False
    told = in_process(report.main, tmp_path / "out", "--output", tmp_path / "page")
    assert told.returncode == 0, told.stderr
    page = (tmp_path / "page/REPORT.md").read_text()
    assert "medusa (lossy)" in page and "is fastest" not in page


def test_there_is_nothing_to_prove_of_it(tiny: Path, tmp_path: Path) -> None:
    heads = WEIGHTS["medusa"](tmp_path / "heads", tiny)
    done = in_process(lossless.main, "medusa@acceptance=typical", "--target", tiny, "--draft", heads)
    assert done.returncode == 2 and "is lossy under these options" in done.stderr


@pytest.mark.parametrize("name", ["eagle", "pearl-medusa", "sps"])
def test_others_have_no_such_rule(name: str) -> None:
    assert "acceptance" not in get_method(name).options
    with pytest.raises(UserError, match="acceptance"):
        get_method(f"{name}@acceptance=typical")
