"""Drafters against the numbers of their published code (tests/goldens/README.md), and what finds a difference."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation.proof.golden.agreement import close
from evaluation.proof.golden.checks import check_golden
from methods.errors import UserError
from methods.paths import ROOT
from tests.goldens import GOLDENS

CHECKED = (
    *("medusa", "hydra_mlp", "hydra_prefix_mlp", "eagle1", "eagle2", "eagle3"),
    *("lookahead", "prompt_lookup", "sam_decoding", "rest"),
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", CHECKED)
def test_every_number_is_that_of_the_published_code(name: str) -> None:
    """Forward passes, trees, and whole generations: their tokens and their accept lengths."""
    found = check_golden(GOLDENS / name)
    assert [one for one in found if one.first] == []
    assert all(one.compared for one in found) and sum(one.what.startswith("trees") for one in found) > 1


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A golden to be changed, beside the target."""
    for name in ("target", "medusa"):
        shutil.copytree(GOLDENS / name, tmp_path / name)
    return tmp_path / "medusa"


def test_what_differs_is_told(copied: Path) -> None:
    trace, *others = (copied / "traces.jsonl").read_text().splitlines()
    wrong = json.loads(trace)
    wrong["accept_length"][1] += 1
    wrong["drafts"][0]["tokens"][2] += 1
    (copied / "traces.jsonl").write_text("\n".join([json.dumps(wrong), *others]))
    differing = {one.what: one.first for one in check_golden(copied) if one.first}
    assert differing.keys() == {"trees, mc_sim_7b_63", "accept lengths, mc_sim_7b_63"}
    assert all("line 1, pass" in first for first in differing.values())


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_script_says_it_by_its_status(copied: Path, status: int) -> None:
    if status == 1:
        (copied / "choices_small.json").write_text('{"choices": [[0], [1]], "parents": [-1, 0, 0]}')
    if status == 2:
        (copied / "README.md").write_text("# Something else\n")
    command = [sys.executable, str(ROOT / "scripts/check_golden.py"), str(copied)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status
    assert ("medusa_logits" in done.stdout) == (status < 2) and ("Something else" in done.stderr) == (status == 2)


def test_numbers_that_are_none_do_not_agree() -> None:
    assert close("x", torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0])).first.startswith("at (1,)")
    assert "shape (1,), not (2,)" in close("x", torch.zeros(1), torch.zeros(2)).first


def test_a_folder_that_is_no_golden_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name a folder of goldens"):
        check_golden(tmp_path)
