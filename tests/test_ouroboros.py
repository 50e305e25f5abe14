"""Ouroboros: its draft's own lookahead, the phrases behind it, and what the target makes of them."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evaluation.proof.audit import auditing
from evaluation.proof.tiny_pair import enumerate_method
from methods import get_method
from methods.base import Generation, Limits, generate
from methods.build import build_drafter, build_method
from methods.drafters import language_model
from methods.drafters.language_model import SelfDrafter
from methods.drafters.lookahead import Ngram, Window, WindowSize
from methods.drafters.ouroboros import OuroborosDrafter, followed, walked
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.speculative import Speculative
from methods.target import Outcome, Target
from tests.host_time import HOST_LIMIT, usual
from tests.test_lookahead import proposals

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [3, 1, 4, 1, 5, 9, 2]
SMALL = "ouroboros@gamma=4@columns=3@ngram=3@guesses=4@phrases=2"
WHOLE, KEPT = 4 + 3, 4 + 1  # tokens of a pass: gamma and all of N, and gamma and one


@pytest.fixture(params=["model", "target", "first-2", "int8"])
def pair(request: pytest.FixtureRequest, tiny: Path, tiny_draft: Path) -> Models:
    """With drafts of all kinds: another model, padded to a larger vocabulary; the target; parts of it, in its cache."""
    draft = {"model": str(tiny_draft), "target": str(tiny)}.get(request.param, request.param)
    return Models(str(tiny), draft, "float32", [torch.device("cpu")])


def answered(models: Models, name: str, tokens: int = 120) -> Generation:
    return generate(build_method(get_method(name), models, {}), PROMPT, Sampling(), Limits(frozenset(), tokens))


def test_drafts_are_the_drafts_own_greedy_tokens(pair: Models) -> None:
    """However many of them came of a pass of its own lookahead."""
    other = Models(pair.target_source, pair.draft_source, "float32", pair.devices)
    drafter, plain = build_drafter(get_method(SMALL), pair, {}), language_model.build(other)
    targets = [Target(models.target) for models in (pair, other)]
    assert isinstance(drafter, OuroborosDrafter)
    for each, target in zip((drafter, plain), targets, strict=True):
        first, _ = target.start(PROMPT, Sampling())
        each.begin(PROMPT, Sampling(), None)
        each.settle(first)
    for _ in range(30):
        tree = drafter.propose(40)
        assert tree.tokens_N.tolist()[1:5] == plain.draft(4).tokens_G == drafter.model.drafted
        for each, target in zip((drafter, plain), targets, strict=True):
            each.settle(target.judge(tree))


def test_whole_phrases_are_kept_and_the_output_is_exact(pair: Models) -> None:
    """Also where the draft works in the target's cache, which holds what the draft has not read then."""
    expected, got = answered(pair, "autoregressive"), answered(pair, SMALL)
    assert got.token_ids == expected.token_ids
    if pair.draft_source == "int8":
        assert max(got.accept_lengths) > KEPT, "else no phrase was kept in the target's cache"


def test_a_perfect_draft_needs_fewer_passes_of_its_own_and_of_the_target(tiny: Path) -> None:
    models = Models(str(tiny), str(tiny), "float32", [torch.device("cpu")])
    method = build_method(get_method(SMALL), models, {})
    assert isinstance(method, Speculative) and isinstance(method.drafter, OuroborosDrafter)
    passes, score = [], method.drafter.decoder.score
    method.drafter.decoder.score = lambda *given, **more: passes.append(1) or score(*given, **more)  # type: ignore
    got = generate(method, PROMPT, Sampling(), Limits(frozenset(), 120))
    assert got.token_ids == answered(models, "autoregressive").token_ids
    assert WHOLE in got.accept_lengths and max(got.accept_lengths) == WHOLE
    assert min(got.accept_lengths[1:-1]) >= KEPT
    assert len(passes) < sum(min(4, drafted) for drafted in got.drafted)


def by_definition(
    drafted: list[int], kept: int, hung: list[Ngram], length: int, said: dict[tuple[int, ...], int]
) -> list[tuple[int, Ngram]]:
    """What the pool learns, by the text behind which the target has said each token."""
    found = []
    for place in range(kept, len(drafted)):
        phrase: list[int] = []
        while len(phrase) < length - 1 and place + len(phrase) < len(drafted):
            at = place + len(phrase)
            if phrase and drafted[at] != phrase[-1]:
                break
            phrase.append(said[tuple(drafted[: at + 1])])
        found += [(drafted[place], tuple(phrase))] if len(phrase) == length - 1 else []
    for old in hung:
        new = tuple(said[(*drafted, *old[:end])] for end in range(length - 1))
        found.append((drafted[-1], new))
    return found


def test_the_pool_learns_what_the_target_says(tiny: Path) -> None:
    models = Models(str(tiny), str(tiny), "float32", [torch.device("cpu")])
    numbers, seeded, learned = random.Random(0), torch.Generator().manual_seed(0), 0
    for _ in range(200):
        drafter = OuroborosDrafter(language_model.build(models), 5, Window(WindowSize(2, 3, 10**6)), 2)
        drafter.begin(PROMPT, Sampling(), None)
        drafter.settle(Outcome([1], [0]))
        drafted = numbers.choices(range(3), k=5)
        hung: list[Ngram] = list({(numbers.randrange(3), numbers.randrange(3)) for _ in range(2)})
        for phrase in hung:
            drafter.pool.add(drafted[-1], phrase)
        drafter.model.drafted = list(drafted)
        tree = drafter.propose(100)
        logits_NV = torch.randn(len(tree.tokens_N), 3, generator=seeded)
        best = logits_NV.argmax(-1).tolist()
        said = {tuple(tree.tokens_N[tree.path(node)[1:]].tolist()): best[node] for node in range(len(best))}
        kept = next((i for i in range(5) if drafted[i] != said[tuple(drafted[:i])]), 5)
        drafter.settle(Outcome([*drafted[:kept], said[tuple(drafted[:kept])]], list(range(kept + 1)), None, logits_NV))
        expected = by_definition(drafted, kept, hung, 3, said)
        pool = {(first, ngram) for first in range(3) for ngram in drafter.pool.behind(first)}
        assert pool == set(expected)
        learned += len(expected) > len(hung)
    assert learned > 20, "else no rejected draft was a phrase"


def test_walks_along_a_tree() -> None:
    tree = TokenTree([9, 5, 6, 7, 5], [-1, 0, 1, 1, 2], judged=4)
    assert walked(tree, 0, [5, 7, 0, 1]) == [0, 1, 3]
    assert walked(tree, 1, [8, 6, 5, 1]) == [0, 1, 2], "the last node is not judged"
    assert walked(tree, 0, [6, 7, 0, 1]) == [0]
    assert followed(tree, 1, (6, 5)) == [1, 2] and followed(tree, 0, (5, 7)) == [0, 1, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_repeat_with_the_seed_whatever_was_answered_before(pair: Models, temperature: float) -> None:
    prompts = [PROMPT, [7, 7, 8], [(5 * i) % 90 + 1 for i in range(50)]]
    in_order = proposals(pair, SMALL, prompts, Sampling(temperature, seed=4))
    torch.manual_seed(5)
    assert proposals(pair, SMALL, prompts[::-1], Sampling(temperature, seed=4)) == in_order[::-1]


def test_phrases_leave_the_targets_distribution() -> None:
    found = enumerate_method(get_method("ouroboros"), {}, Sampling(1.0, top_p=0.95))
    assert found.difference < 1e-12 and found.answers == 22
    assert found.runs > enumerate_method(get_method("sps"), {}, Sampling(1.0, top_p=0.95)).answers


def test_decisions_follow_the_rule(tiny: Path) -> None:
    models = Models(str(tiny), "first-2", "float32", [torch.device("cpu")])
    method = build_method(get_method(SMALL), models, {})
    with auditing() as found:
        for seed in range(10):
            generate(method, PROMPT, Sampling(1.0, seed=seed), Limits(frozenset(), 40))
    assert found.passes > 100 and found.tried > 100 and found.broken == []


def test_a_draft_with_a_shorter_context_stops_drafting(tiny: Path, tmp_path: Path) -> None:
    from tests.tiny import save_model

    models = Models(str(tiny), str(save_model(tmp_path, layers=3, context=32)), "float32", [torch.device("cpu")])
    got = answered(models, SMALL, 60)
    assert got.token_ids == answered(models, "autoregressive", 60).token_ids
    assert max(got.accept_lengths) >= KEPT


def host_seconds(drafter: OuroborosDrafter, logits_NV: torch.Tensor) -> Iterator[float]:
    """Of rounds whose window is drafted already, the draft's passes being no host's work."""
    for number in range(60):
        drafter.model.drafted = [(number + i) % 9 for i in range(6)]
        begin = time.thread_time()
        tree = drafter.propose(1000)
        proposed = time.thread_time()
        scored_NV, outcome = logits_NV[: len(tree.tokens_N)], [*drafter.model.drafted, 7][number % 2 :]
        settle = time.thread_time()
        drafter.settle(Outcome(outcome, [0], logits_NV=scored_NV))
        yield time.thread_time() - settle + proposed - begin


def test_a_round_takes_the_host_little_time(tiny: Path, tmp_path: Path) -> None:
    """Below 3% of a pass of 10 ms, behind a context of 4096 tokens and with a vocabulary of 49152."""
    from tests.tiny import save_model

    wide = save_model(tmp_path, layers=1, context=4200)
    models = Models(str(wide), str(wide), "float32", [torch.device("cpu")])
    drafter = build_drafter(get_method("ouroboros"), models, {})
    assert isinstance(drafter, OuroborosDrafter) and not isinstance(drafter.model, SelfDrafter)
    drafter.begin([(7 * i * i) % 90 for i in range(4096)], Sampling(), None)
    drafter.settle(Outcome([9], [0]))
    for first in range(9):
        for number in range(3):
            drafter.pool.add(first, (number, number, number, number))
    logits_NV = torch.randn(64, 49152, generator=torch.Generator().manual_seed(0))
    assert usual(lambda: host_seconds(drafter, logits_NV)) < HOST_LIMIT
