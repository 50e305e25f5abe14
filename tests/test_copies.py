"""A draft that copies from the text and checks the copies itself: the same drafts from the same distributions, by fewer
passes of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.proof.tiny_pair import enumerate_method
from methods import get_method
from methods.base import Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.drafters.language_model import ModelDrafter
from methods.drafters.suffix_automaton import SuffixAutomaton
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.pearl.target import Pearl
from methods.target import Outcome, Target

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 1, 4, 1, 5, 9, 2]
SAMPLINGS = [Sampling(), Sampling(0.3, seed=5), Sampling(1.0, seed=2)]


@pytest.fixture(params=["model", "target", "first-2", "int8"])
def models(request: pytest.FixtureRequest, tiny: Path, tiny_draft: Path) -> Models:
    """With drafts of all kinds: another model, the target, and parts of it, which work in its cache."""
    draft = {"model": str(tiny_draft), "target": str(tiny)}.get(request.param, request.param)
    return Models(str(tiny), draft, "float32", [torch.device("cpu")])


def another(models: Models) -> Models:
    """The same models, with caches of their own."""
    return Models(models.target_source, models.draft_source, models.dtype, models.devices, models.max_length)


def started(models: Models, name: str, sampling: Sampling) -> tuple[ModelDrafter, Target]:
    """A drafter that knows the prompt and the first token, and the target that has decided it."""
    own = another(models)
    drafter, target = build_chain_drafter(get_method(name), own, {}), Target(own.target)
    assert isinstance(drafter, ModelDrafter)
    first, _ = target.start(PROMPT, sampling)
    drafter.begin(PROMPT, sampling, None)
    drafter.settle(first)
    return drafter, target


def passes_of(drafter: ModelDrafter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of its passes from now on."""
    assert isinstance(drafter.decoder, Decoder)
    rows: list[int] = []
    score = drafter.decoder.score

    def counted(tree: TokenTree, *args: Any, **options: Any) -> Any:
        rows.append(len(tree.tokens_N))
        return score(tree, *args, **options)

    monkeypatch.setattr(drafter.decoder, "score", counted)
    return rows


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: f"{sampling.temperature:g}")
def test_drafts_and_their_distributions_are_the_same(
    models: Models, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain, plain_target), (copying, target) = (started(models, name, sampling) for name in ("sps", "sps@copies=3"))
    rows, plain_rows = passes_of(copying, monkeypatch), passes_of(plain, monkeypatch)
    for round in range(24):
        window = 1 + round % 6
        expected, got = plain.draft(window), copying.draft(window)
        assert got.tokens_G == expected.tokens_G and copying.drafted == plain.drafted
        assert (got.q_GV is None) == (expected.q_GV is None) == sampling.greedy
        if got.q_GV is not None and expected.q_GV is not None:
            assert torch.equal(got.q_GV, expected.q_GV)
        assert all(map(torch.equal, copying.chose, plain.chose))
        for drafter, judge, draft in ((plain, plain_target, expected), (copying, target, got)):
            drafter.settle(judge.judge(TokenTree.chain([drafter.pending, *draft.tokens_G], draft.q_GV)))
    assert max(rows) > max(plain_rows) and len(rows) <= len(plain_rows)


def test_right_copies_are_kept_in_one_pass(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain, _), (copying, _) = (started(models, name, Sampling()) for name in ("sps", "sps@copies=3"))
    expected = plain.draft(7).tokens_G
    copying.text = SuffixAutomaton(latest=False)
    copying.text.extend([copying.pending, *expected, copying.pending])
    rows = passes_of(copying, monkeypatch)
    assert copying.draft(7).tokens_G == expected
    # One token has matched, so two are copied; then four have, and three are copied.
    assert rows == [3, 4]


def test_behind_drafts_that_hold_it_goes_on_alike(models: Models) -> None:
    """As PEARL has it: parts of what is drafted are decided while more is drafted."""
    (plain, _), (copying, _) = (started(models, name, Sampling()) for name in ("sps", "sps@copies=3"))
    for window in (5, 3, 4, 6, 2, 5):
        assert copying.draft(window).tokens_G == plain.draft(window).tokens_G
        kept = plain.drafted[:3]
        for drafter in (plain, copying):
            drafter.confirm(Outcome(kept, [0], leaf_kept=True))
        assert copying.drafted == plain.drafted


def test_nothing_is_read_beyond_the_context(tiny: Path) -> None:
    models = Models(str(tiny), str(tiny), "float32", [torch.device("cpu")], max_length=len(PROMPT) + 12)
    copying, _ = started(models, "sps@copies=9", Sampling())
    plain, _ = started(models, "sps", Sampling())
    assert copying.draft(40).tokens_G == plain.draft(40).tokens_G
    assert len(copying.drafted) == 12


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: f"{sampling.temperature:g}")
def test_pearl_answers_the_same(models: Models, sampling: Sampling) -> None:
    answers = []
    for name in ("pearl@gamma=4", "pearl@gamma=4@copies=3"):
        own, spec = another(models), get_method(name)
        drafter = build_chain_drafter(spec, another(models), {})
        with local_draft_rank({name: drafter}) as (own.link, ready):
            method = build_method(spec, own, {})
            assert isinstance(method, Pearl)
            method.meet(ready[name])
            answers.append(generate(method, PROMPT, sampling, Limits(frozenset(), 60)))
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].accept_lengths == answers[1].accept_lengths


def test_every_answer_has_the_targets_probability() -> None:
    """Gone through without regard to what a pass of the draft is."""
    found = enumerate_method(get_method("sps@gamma=3@copies=2"), {}, Sampling(1.0))
    assert found.difference < 1e-12 < found.answers
