"""methods/README.md: its example of a drafter, put into a module and added to the table, is a method like any other."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from methods import BASELINE, get_method
from methods.base import Generation, Limits, generate
from methods.build import build_method
from methods.drafter_rows import DRAFTERS, DrafterSpec
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.paths import ROOT
from methods.table import METHODS, add_drafter

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
LIMITS = Limits(frozenset(), 60)


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "methods/README.md").read_text(), re.DOTALL)


@pytest.fixture
def bigram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example in a module of its own, with rows in the table while the test lasts."""
    (tmp_path / "bigram_of_readme.py").write_text(blocks()[0])
    monkeypatch.syspath_prepend(tmp_path)
    drafters, methods = dict(DRAFTERS), dict(METHODS)
    add_drafter(DrafterSpec("bigram", "bigram_of_readme:build", "the token that last followed the same one", gamma=4))
    yield "bigram"
    for table, before in ((DRAFTERS, drafters), (METHODS, methods)):  # rows of others name the new drafter, too
        table.clear()
        table.update(before)  # type: ignore[arg-type]
    sys.modules.pop("bigram_of_readme", None)


def answer(name: str, models: Models, sampling: Sampling) -> Generation:
    return generate(build_method(get_method(name), models, {}), PROMPT, sampling, LIMITS)


def test_the_example_is_short() -> None:
    assert len(blocks()) == 1 and len(blocks()[0].splitlines()) < 40


def test_the_examples_output_is_the_targets_own(bigram: str, tiny: Path) -> None:
    models = Models(str(tiny), None, "float32", [torch.device("cpu")], None)
    ours, alone = (answer(name, models, Sampling()) for name in (bigram, BASELINE))
    assert ours.token_ids == alone.token_ids
    assert sum(ours.drafted) > 10 and sum(ours.accepted) > 0 and len(ours.accept_lengths) < len(alone.accept_lengths)
    sampled = answer(bigram, models, Sampling(temperature=1.0))
    assert len(sampled.token_ids) == LIMITS.max_new_tokens and sum(sampled.drafted) > 10
    assert get_method(f"pearl-{bigram}").ranks == 2
