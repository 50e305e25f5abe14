"""PEARL at temperature 1 has exactly the target's distribution: by enumeration of every random choice that both ranks
make, and by a test of many samples. Real ranks, drafter and acceptance on tables for models, whose probabilities depend
on the position too, so that a row that is off by one shows."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

import methods.drafters.model as drafter_module
import methods.engine.verify as verify_module
from methods.base import Limits, generate
from methods.drafters.model import ModelDrafter
from methods.engine.decoder import Scores
from methods.engine.link import Close, Link, Message
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.pearl import Pearl, serve

VOCABULARY, TOKENS, PROMPT = 2, 3, [0, 1]
SAMPLES = int(os.environ.get("PEARL_BENCH_SAMPLES", "1000"))  # of each mode
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

    def prefill(self, tokens_T: Sequence[int]) -> Scores:
        self.length = len(tokens_T)
        return Scores(self.logits_PVV[self.length - 1, tokens_T[-1]][None], torch.empty(0), None)

    def score(self, tree: TokenTree) -> Scores:
        return Scores(self.logits_PVV[self.length + tree.depth_N, tree.tokens_N], torch.empty(0), None)

    def commit(self, path_A: Sequence[int]) -> None:
        self.length += len(path_A)

    def extend(self, tokens_N: Sequence[int]) -> Tensor:
        scores = self.score(TokenTree.chain(list(tokens_N)))
        self.length += len(tokens_N)
        return scores.logits_NV[-1:]

    def truncate(self, length: int) -> None:
        self.length = length


class Wire(Link):
    """A link within a process on which one end runs at a time: it hands over where it would wait."""

    def __post_init__(self) -> None:
        self.turn = threading.Semaphore(0)
        self.other: Wire = self

    def send(self, message: Message) -> None:
        self.other._received.put(message)

    def hand_over(self) -> None:
        self.other.turn.release()
        self.turn.acquire()

    def receive(self, what: str, patience: float | None = 0.0) -> Any:
        while self._received.empty():
            self.hand_over()
        return super().receive(what, patience)

    def poll(self) -> Any:
        if self.names[0] == "draft":  # it looks for a ruling after every token: let the target rule first
            self.hand_over()
        return super().poll()


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Wire, Wire]]:
    here, there = Wire(None, ("target", "draft"), 60), Wire(None, ("draft", "target"), 60)  # type: ignore[arg-type]
    here.other, there.other = there, here
    drafter = ModelDrafter(Table(seed=1), VOCABULARY)  # type: ignore[arg-type]

    def run() -> None:
        there.turn.acquire()
        serve(there, {"pearl": drafter})
        here.turn.release()

    rank = threading.Thread(target=run)
    rank.start()
    here.receive("the drafters")
    yield here, there
    here.send(Close())
    here.receive("its farewell")
    there.turn.release()
    rank.join()


def method(link: Link, mode: str) -> Pearl:
    options = {"pre_verify": True, "post_verify": True} | MODES[mode]
    return Pearl(Table(seed=0), link, "pearl", **options)  # type: ignore[arg-type]


def expected() -> dict[tuple[int, ...], float]:
    """The target's own distribution of answers."""
    p_PVV = torch.softmax(Table(seed=0).logits_PVV.double(), -1)
    chances = {}
    for answer in product(range(VOCABULARY), repeat=TOKENS):
        before = [PROMPT[-1], *answer]
        steps = [p_PVV[len(PROMPT) - 1 + i, before[i], token] for i, token in enumerate(answer)]
        chances[answer] = float(torch.stack(steps).prod())
    return chances


@dataclass
class Choices:
    """One run's random choices, replayed up to `path` and then the first possible ones; `probability` of the run."""

    path: list[int]
    taken: list[tuple[int, list[int]]] = field(default_factory=list)  # what was chosen, and what could have been
    probability: float = 1.0

    def choose(self, weights: Sequence[float]) -> int:
        total = sum(weights)
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        chosen = self.path[len(self.taken)] if len(self.taken) < len(self.path) else possible[0]
        self.taken.append((chosen, possible))
        self.probability *= weights[chosen] / total
        return chosen

    def next_path(self) -> list[int] | None:
        """The choices of the run that comes next, None behind the last."""
        for depth in reversed(range(len(self.taken))):
            chosen, possible = self.taken[depth]
            later = possible[possible.index(chosen) + 1 :]
            if later:
                return [*(choice for choice, _ in self.taken[:depth]), later[0]]
        return None


def enumerated(link: Link, mode: str, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, ...]]:
    """The probability of each answer, over all random choices of both ranks."""
    run = Choices([])
    acceptance: Callable[..., float] = verify_module.acceptance

    def accept(*args: Any) -> float:
        rate = acceptance(*args)
        return float(run.choose([1 - rate, rate]))

    def draw(p_V: Tensor, generator: torch.Generator) -> int:
        return run.choose(p_V.tolist())

    monkeypatch.setattr(verify_module, "acceptance", accept)
    monkeypatch.setattr(verify_module, "uniform", lambda generator: 0.5)
    monkeypatch.setattr(verify_module, "draw", draw)
    monkeypatch.setattr(drafter_module, "draw", draw)
    found: Counter[tuple[int, ...]] = Counter()
    path: list[int] | None = []
    while path is not None:
        run = Choices(path)
        answer = generate(method(link, mode), PROMPT, Sampling(1.0), Limits(frozenset(), TOKENS))
        found[tuple(answer.token_ids)] += run.probability  # type: ignore[assignment]
        path = run.next_path()
    return found


@pytest.mark.parametrize("mode", MODES)
def test_every_answer_has_the_targets_probability(
    ends: tuple[Wire, Wire], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = enumerated(ends[0], mode, monkeypatch)
    assert found.keys() == expected().keys()
    assert found == pytest.approx(expected(), abs=1e-12)


def accept_too_often(p_V: Tensor, q_V: Tensor, token: int) -> float:
    return min(1.0, 1.2 * float(p_V[token] / q_V[token]))


def not_renormalised_against_q(p_V: Tensor, q_V: Tensor, token: int) -> Tensor:
    return p_V


@pytest.mark.parametrize("mode", ["window 2", "without pre-verify", "without post-verify", "without both"])
@pytest.mark.parametrize("name, wrong", [("acceptance", accept_too_often), ("residual", not_renormalised_against_q)])
def test_a_wrong_rule_is_found(
    ends: tuple[Wire, Wire], mode: str, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, name, wrong)
    assert enumerated(ends[0], mode, monkeypatch) != pytest.approx(expected(), abs=1e-3)


def p_value(link: Link, mode: str, samples: int) -> float:
    """Of Pearson's test that the sampled answers come from the target's distribution."""
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(samples):
        answer = generate(method(link, mode), PROMPT, Sampling(1.0, seed=seed), Limits(frozenset(), TOKENS))
        counts[tuple(answer.token_ids)] += 1
    chances = expected()
    return float(chisquare([counts[a] for a in chances], [samples * p for p in chances.values()]).pvalue)


@pytest.mark.timeout(3600)
def test_samples_fit_the_targets_distribution(ends: tuple[Wire, Wire]) -> None:
    p_values = {mode: p_value(ends[0], mode, SAMPLES) for mode in MODES}
    assert min(p_values.values()) * len(MODES) > 0.01, p_values  # Bonferroni


def test_samples_by_a_wrong_rule_do_not(ends: tuple[Wire, Wire], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "acceptance", lambda p_V, q_V, token: 1.0)
    assert p_value(ends[0], "window 2", SAMPLES) < 1e-6
