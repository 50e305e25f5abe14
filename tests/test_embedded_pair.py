"""The embedded pair as users get it: the real target and the draft that lies in data/drafts."""

from pathlib import Path

import pytest
import torch

from evaluation.launch.benchmarks import load_questions
from evaluation.launch.prompts import Prompter
from methods import BASELINE, get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.drafters.sd2.chain import exits_here
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.pairs import get_pair
from methods.paths import ROOT

PAIR = get_pair("smollm2-135m")
MOST_BYTES = 60_000_000
LIMITS = Limits(frozenset(), 48)


@pytest.fixture(scope="module")
def models() -> Models:
    models = Models(PAIR.target, PAIR.drafts["sorted"], "bfloat16", [torch.device("cpu")])
    models.max_length = 512
    return models


@pytest.fixture(scope="module")
def prompt(models: Models) -> list[int]:
    prompter = Prompter(models.target_checkpoint.tokenizer, PAIR.template, "humaneval")
    return prompter.encode(load_questions("humaneval", None, 1).questions[0].turns, [])


@pytest.fixture(scope="module")
def expected(models: Models, prompt: list[int]) -> list[int]:
    """What the target alone says."""
    return generate(build_method(get_method(BASELINE), models, {}), prompt, Sampling(), LIMITS).token_ids


def test_the_draft_is_small_and_says_where_it_comes_from() -> None:
    folder = ROOT / str(PAIR.drafts["sorted"])
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    card = (folder / "README.md").read_text()
    assert all(f"## {part}" in card for part in ("Agreement", "Data", "Recipe", "Licence"))


def test_the_draft_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert exits_here(Models(PAIR.target, PAIR.drafts["sorted"], "bfloat16", [])) == (4, 8, 12)


@pytest.mark.parametrize(
    "name, options",
    [("sps", {}), *(("sd2", {"exit": depth}) for depth in (0, 4, 8, 12)), ("sd2-tree", {"branches": 3, "nodes": 8})],
)
def test_it_drafts_what_the_target_says_and_changes_nothing(
    models: Models, prompt: list[int], expected: list[int], name: str, options: dict[str, int]
) -> None:
    got = generate(build_method(get_method(name), models, options), prompt, Sampling(), LIMITS)
    assert got.token_ids == expected
    assert len(got.accept_lengths) < LIMITS.max_new_tokens / 1.2  # untrained, one draft in thousands


@pytest.mark.parametrize("source, least", [("int4", 0.9), ("int4-16384", 0.6)])
def test_the_target_in_4_bits_says_what_it_says_itself(source: str, least: float) -> None:
    """Its weights came in 4 bits. Questions whose answers end are among them."""
    models = Models(PAIR.target, source, "bfloat16", [torch.device("cpu")], 512)
    prompter = Prompter(models.target_checkpoint.tokenizer, PAIR.template, "humaneval")
    sps, own = (build_method(get_method(name), models, {}) for name in ("sps", BASELINE))
    limits = Limits(frozenset(models.target_checkpoint.eos_token_ids), 48)
    answers = []
    for question in load_questions("humaneval", None, 3).questions:
        text = prompter.encode(question.turns, [])
        answers.append(generate(sps, text, Sampling(), limits))
        assert answers[-1].token_ids == generate(own, text, Sampling(), limits).token_ids
    assert sum(sum(got.accepted) for got in answers) > least * sum(sum(got.drafted) for got in answers)
