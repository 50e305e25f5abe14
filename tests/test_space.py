"""SPACE: what its masks say, and where its candidates come from."""

from pathlib import Path

import pytest
import torch

from evaluation.proof.audit import auditing
from methods import get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.drafters.space import SpaceDrafter
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.target import Target

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, MASK, MASKS = [3, 1, 4, 1, 5, 9, 2], 95, 3


@pytest.fixture
def models(tiny: Path) -> Models:
    return Models(str(tiny), None, "float32", [torch.device("cpu")])


def behind_masks(decoder: Decoder, text: list[int], count: int) -> list[int]:
    """What the model says behind each of so many masks that follow a text, all in one chain of its own."""
    *prompt, last = text
    decoder.prefill(prompt)
    return decoder.score(TokenTree.chain([last] + [MASK] * count)).logits_NV[1:].argmax(-1).tolist()


@pytest.mark.parametrize("right", range(MASKS + 1))
def test_candidates_are_what_the_masks_behind_the_last_kept_one_say(models: Models, tiny: Path, right: int) -> None:
    """`right`: how many of the candidates are made to be the target's own tokens, for this target never saw a mask."""
    other = Models(str(tiny), None, "float32", [torch.device("cpu")]).target
    alone = build_method(get_method("autoregressive"), models, {})
    greedy = generate(alone, PROMPT, Sampling(), Limits(frozenset(), 20))
    target, drafter = Target(models.target), SpaceDrafter(MASK, MASKS)
    first, _ = target.start(PROMPT, Sampling())
    drafter.begin(PROMPT, Sampling(), None)
    drafter.settle(first)
    assert drafter.candidates == [], "nothing is said before the first pass"
    tokens = [target.pending]
    for _ in range(4):
        own = greedy.token_ids[len(tokens) :][:right]
        drafter.candidates[:right] = own[: len(drafter.candidates)]
        tree = drafter.propose(100)
        assert len(tree.tokens_N) == (tree.drafted + 1) * (1 + MASKS) and (tree.tokens_N[tree.judged :] == MASK).all()
        outcome = target.judge(tree)
        drafter.settle(outcome)
        tokens += outcome.tokens
        assert outcome.accepted >= min(right, tree.drafted)
        assert drafter.candidates == behind_masks(other, PROMPT + tokens[:-1], MASKS)
    assert tokens == greedy.token_ids[: len(tokens)]


@pytest.mark.parametrize("room", range(20))
def test_candidates_come_before_masks_where_there_is_little_room(room: int) -> None:
    drafter = SpaceDrafter(MASK, MASKS)
    drafter.begin(PROMPT, Sampling(), None)
    drafter.pending, drafter.candidates = 7, [8, 9, 10]
    tree = drafter.propose(room)
    kept = min(room, 3)
    assert tree.tokens_N[: tree.judged].tolist() == [7, 8, 9, 10][: kept + 1]
    group = min(MASKS, (room - kept) // (kept + 1))
    assert len(tree.tokens_N) == (1 + group) * (kept + 1) <= room + 1
    depths = [node + i for node in range(kept + 1) for i in range(1, group + 1)]
    assert tree.depth_N[tree.judged :].tolist() == depths


def test_drawn_candidates_follow_the_rule(models: Models) -> None:
    method = build_method(get_method("space@masks=3"), models, {})
    with auditing() as found:
        for seed in range(20):
            generate(method, PROMPT, Sampling(3.0, seed=seed), Limits(frozenset(), 30))
    assert found.passes > 100 and found.tried > 100 and found.broken == []
    assert len(found.positions) > 300, "as many candidates have a q"
