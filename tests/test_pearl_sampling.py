"""PEARL at temperature 1 has exactly the target's distribution: by enumeration of every random choice that both ranks
make, and by a test of many samples. Real ranks, drafter and acceptance on tables for models, whose probabilities depend
on the position too, so that a row that is off by one shows."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
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
from methods.drafters.base import Draft
from methods.drafters.language_model import ModelDrafter
from methods.engine.decoder import Scores
from methods.engine.link import Link
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.pearl.branches import Preparation, Prospect
from methods.pearl.draft import local_draft_rank
from methods.pearl.messages import Branch, Prepared
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

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        self.vocabulary = vocabulary
        self.logits_PVV = torch.randn(64, vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))
        self.model = SimpleNamespace(tokens_R=None, config=SimpleNamespace(vocab_size=vocabulary))
        self.length, self.max_length, self.row_invariant = 0, 60, True

    @property
    def room(self) -> int:
        return self.max_length - self.length

    def record(self, taps: Sequence[int] = ()) -> None:
        """Nothing is."""

    def prefill(self, tokens_T: Sequence[int], taps: Sequence[int] = ()) -> Scores:
        self.length = len(tokens_T)
        return Scores(self.logits_PVV[self.length - 1, tokens_T[-1]][None], None)

    def score(self, tree: TokenTree, taps: Sequence[int] = ()) -> Scores:
        return Scores(self.logits_PVV[self.length + tree.depth_N, tree.tokens_N], None)

    def commit(self, path_A: Sequence[int]) -> None:
        self.length += len(path_A)

    def extend(self, tokens_N: Sequence[int]) -> Scores:
        scores = self.score(TokenTree.chain(list(tokens_N)))
        self.length += len(tokens_N)
        return Scores(scores.logits_NV[-1:])

    def branch(self, tree: TokenTree, known: int, committed: int) -> Tensor:
        return self.logits_PVV[self.length - committed + tree.depth_N, tree.tokens_N][known:]

    def truncate(self, length: int) -> None:
        self.length = length


@contextmanager
def draft_rank(table: Table, passes: int = 1) -> Iterator[Link]:
    """The target's end of a link, the draft's rank behind it."""
    with local_draft_rank({"pearl": ModelDrafter(table, table.vocabulary)}, passes) as (link, _):  # type: ignore[arg-type]
        yield link


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with draft_rank(Table(seed=1)) as link:
        yield link


def method(link: Link, mode: str) -> Pearl:
    options = {"pre_verify": True, "post_verify": True} | MODES[mode]
    return Pearl(Table(seed=0), link, "pearl", **options)  # type: ignore[arg-type]


def expected(vocabulary: int = VOCABULARY, tokens: int = TOKENS) -> dict[tuple[int, ...], float]:
    """The target's own distribution of answers."""
    return all_answers(next_token(Table(0, vocabulary), PROMPT, Sampling(1.0)), tokens)  # type: ignore[arg-type]


def chances(link: Link, mode: str) -> Counter[tuple[int, ...]]:
    """The probability of each answer, over all random choices of both ranks."""
    limits = Limits(frozenset(), TOKENS)
    return enumerated(lambda: generate(method(link, mode), PROMPT, Sampling(1.0), limits).token_ids)[0]


@pytest.mark.parametrize("mode", MODES)
def test_every_answer_has_the_targets_probability(link: Link, mode: str) -> None:
    found = chances(link, mode)
    assert found.keys() == expected().keys()
    assert found == pytest.approx(expected(), abs=1e-12)


@dataclass(frozen=True)
class Branching:
    """An enumeration with branches: what can be drafted behind the answer's end is certain, so that it is short."""

    options: dict[str, Any]
    passes: int
    vocabulary: int = 2
    tokens: int = 4  # of an answer: a window of a hit that follows an accepted draft is verified

    def chances(self, hit: Callable[[int], None] = lambda tokens: None) -> Counter[tuple[int, ...]]:
        """The probability of each answer. `hit` learns of each pass that began with prepared tokens."""
        table = Table(1, self.vocabulary)
        table.logits_PVV[len(PROMPT) + self.tokens - 1 :, :, 1:] = -torch.inf
        options = {"pre_verify": True, "post_verify": True} | self.options

        def answer() -> list[int]:
            pearl = Pearl(Table(0, self.vocabulary), link, "pearl", **options)  # type: ignore[arg-type]
            found = generate(pearl, PROMPT, Sampling(1.0), Limits(frozenset(), self.tokens))
            for nodes, one in zip(found.nodes[1:], found.branches, strict=True):
                if one.hidden:
                    hit(nodes - 1)
            return found.token_ids

        with draft_rank(table, self.passes) as link:
            return enumerated(answer)[0]


BRANCHES = {
    "window 1, one other token": Branching({"window": 1, "branches": 1}, passes=1),
    "window 1, three tokens": Branching({"window": 1, "branches": 3}, passes=1, vocabulary=3, tokens=3),
    "window 3, one other token": Branching({"window": 3, "branches": 1}, passes=3),
    "window 3, cut short": Branching({"window": 3, "branches": 1}, passes=1),
    "window 3, three tokens": Branching({"window": 3, "branches": 3}, passes=1, vocabulary=3, tokens=3),
    "without pre-verify": Branching({"window": 2, "branches": 1, "pre_verify": False}, passes=2),
    "without post-verify": Branching({"window": 2, "branches": 1, "post_verify": False}, passes=2),
    "without both": Branching({"window": 2, "branches": 3, "pre_verify": False, "post_verify": False}, passes=2),
}


@pytest.mark.parametrize("case", BRANCHES)
def test_every_answer_has_the_targets_probability_with_branches(case: str) -> None:
    branching, hits = BRANCHES[case], Counter[int]()
    found = branching.chances(lambda tokens: hits.update([tokens]))
    wanted = expected(branching.vocabulary, branching.tokens)
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, abs=1e-12)
    longest = min(branching.options["window"], branching.passes)
    assert sum(hits.values()) > 50 and max(hits) == longest, "else nothing is tested"


def chooses_by_content(self: Pearl, message: Any, spans: list[Any]) -> None:
    """It takes a window that was prepared only where it likes what it says."""
    if isinstance(message, Prepared):
        liked = [branch for branch in message.branches if branch.tokens_G[0] == 0]
        message = message._replace(branches=liked)
    note(self, message, spans)


def ends_by_content(self: Preparation) -> list[Branch]:
    """It ends a window in front of a token that it does not like."""
    liked = [b._replace(tokens_G=list(takewhile(lambda token: token == 0, b.tokens_G))) for b in grow(self)]
    return [branch for branch in liked if branch.tokens_G]


def takes_the_wrong_q(self: Prospect, count: int) -> Draft:
    draft = draft_of(self, count)
    assert draft.q_GV is not None
    return draft._replace(q_GV=draft.q_GV.flip(-1))


note, grow, draft_of = Pearl._note, Preparation.grow, Prospect.draft
WRONG = {
    "hit chosen by content": (Pearl, "_note", chooses_by_content),
    "window ended by content": (Preparation, "grow", ends_by_content),
    "another q": (Prospect, "draft", takes_the_wrong_q),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_hit_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*WRONG[wrong])
    assert BRANCHES["window 3, one other token"].chances() != pytest.approx(expected(tokens=4), abs=1e-3)


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
