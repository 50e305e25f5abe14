"""PEARL at temperature 1 has exactly the target's distribution: by enumeration of every random choice that both ranks
make, and by a test of many samples. Real ranks, drafter and acceptance on tables for models, whose probabilities depend
on the position too, so that a row that is off by one shows."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

import methods.engine.verify as verify_module
from evaluation.proof.enumeration import enumerated
from evaluation.proof.goodness import all_answers, next_token
from methods.base import Limits, generate
from methods.drafters.language_model import ModelDrafter
from methods.engine.decoder import Scores
from methods.engine.link import Link
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.pearl.draft import local_draft_rank
from methods.pearl.target import Pearl

VOCABULARY, TOKENS, PROMPT = 2, 3, [0, 1]
SAMPLES = int(os.environ.get("PEARL_BENCH_SAMPLES", "400"))  # of each mode
MODES: dict[str, dict[str, Any]] = {
    "window 1": {"window": 1},
    "window 2": {"window": 2},
    "window 3": {"window": 3},
    "free": {"window": "free"},
    "without pre-verify": {"window": 2, "pre_verify": False},
    "without post-verify": {"window": 2, "post_verify": False},
    "without both": {"window": 2, "pre_verify": False, "post_verify": False},
}


class Table:
    """A decoder of a model whose logits depend on the position and the token there."""

    def __init__(self, seed: int) -> None:
        self.logits_PVV = torch.randn(64, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        self.model = SimpleNamespace(tokens_R=None, config=SimpleNamespace(vocab_size=VOCABULARY))
        self.length, self.max_length, self.row_invariant = 0, 60, True

    @property
    def room(self) -> int:
        return self.max_length - self.length

    def prefill(self, tokens_T: Sequence[int], taps: Sequence[int] = ()) -> Scores:
        self.length = len(tokens_T)
        return Scores(self.logits_PVV[self.length - 1, tokens_T[-1]][None], None)

    def score(self, tree: TokenTree, taps: Sequence[int] = ()) -> Scores:
        return Scores(self.logits_PVV[self.length + tree.depth_N, tree.tokens_N], None)

    def commit(self, path_A: Sequence[int]) -> None:
        self.length += len(path_A)

    def extend(self, tokens_N: Sequence[int]) -> Tensor:
        scores = self.score(TokenTree.chain(list(tokens_N)))
        self.length += len(tokens_N)
        return scores.logits_NV[-1:]

    def truncate(self, length: int) -> None:
        self.length = length


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    """The target's end, the draft's rank behind it."""
    with local_draft_rank({"pearl": ModelDrafter(Table(seed=1), VOCABULARY)}) as (link, _):  # type: ignore[arg-type]
        yield link


def method(link: Link, mode: str) -> Pearl:
    options = {"pre_verify": True, "post_verify": True} | MODES[mode]
    return Pearl(Table(seed=0), link, "pearl", **options)  # type: ignore[arg-type]


def expected() -> dict[tuple[int, ...], float]:
    """The target's own distribution of answers."""
    return all_answers(next_token(Table(seed=0), PROMPT, Sampling(1.0)), TOKENS)  # type: ignore[arg-type]


def chances(link: Link, mode: str) -> Counter[tuple[int, ...]]:
    """The probability of each answer, over all random choices of both ranks."""
    limits = Limits(frozenset(), TOKENS)
    return enumerated(lambda: generate(method(link, mode), PROMPT, Sampling(1.0), limits).token_ids)[0]


@pytest.mark.parametrize("mode", MODES)
def test_every_answer_has_the_targets_probability(link: Link, mode: str) -> None:
    found = chances(link, mode)
    assert found.keys() == expected().keys()
    assert found == pytest.approx(expected(), abs=1e-12)


def accept_too_often(p_V: Tensor, q_V: Tensor, token: int) -> float:
    return min(1.0, 1.2 * float(p_V[token] / q_V[token]))


def not_renormalised_against_q(p_V: Tensor, q_V: Tensor, token: int) -> Tensor:
    return p_V


@pytest.mark.parametrize("mode", ["window 2", "without pre-verify", "without post-verify", "without both"])
@pytest.mark.parametrize("name, wrong", [("acceptance", accept_too_often), ("residual", not_renormalised_against_q)])
def test_a_wrong_rule_is_found(link: Link, mode: str, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, name, wrong)
    assert chances(link, mode) != pytest.approx(expected(), abs=1e-3)


def p_value(link: Link, mode: str, samples: int) -> float:
    """Of Pearson's test that the sampled answers come from the target's distribution."""
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(samples):
        answer = generate(method(link, mode), PROMPT, Sampling(1.0, seed=seed), Limits(frozenset(), TOKENS))
        counts[tuple(answer.token_ids)] += 1
    wanted = expected()
    return float(chisquare([counts[a] for a in wanted], [samples * p for p in wanted.values()]).pvalue)


@pytest.mark.timeout(3600)
def test_samples_fit_the_targets_distribution(link: Link) -> None:
    p_values = {mode: p_value(link, mode, SAMPLES) for mode in MODES}
    assert min(p_values.values()) * len(MODES) > 0.01, p_values  # Bonferroni


def test_samples_by_a_wrong_rule_do_not(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "acceptance", lambda p_V, q_V, token: 1.0)
    assert p_value(link, "window 2", SAMPLES) < 1e-6
