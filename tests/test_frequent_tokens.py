"""Which tokens a reduced head of a draft knows: by the pair's file of frequent ones, which a script counts, or by their
numbers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.launch.config import parse
from methods.drafters.draft_model import check, draft_model, ranked_tokens
from methods.drafters.language_model import build
from methods.engine.low_bits import frequent_tokens
from methods.engine.weights import TOKENS
from methods.errors import UserError
from methods.models import Models
from methods.pairs import get_pair
from methods.paths import ROOT
from scripts import frequent_tokens as script
from tests.tiny import VOCABULARY

CPU = [torch.device("cpu")]


def test_frequent_tokens_are_the_first_ones_and_those_that_must_be_there() -> None:
    assert frequent_tokens(20, 3, [17, 1, 25]).tolist() == [0, 1, 2, 17]
    assert frequent_tokens(4, 9, []).tolist() == [0, 1, 2, 3]
    assert frequent_tokens(20, 3, [17], ranked=[9, 5, 8, 3]).tolist() == [5, 8, 9, 17]
    assert frequent_tokens(20, 5, [9], ranked=[9, 5, 1]).tolist() == [0, 1, 2, 5, 9]


def counted(path: Path, tokens: list[int], name: str = TOKENS) -> str:
    save_file({name: torch.tensor(tokens, dtype=torch.int32)}, path)
    return str(path)


def test_a_head_knows_the_tokens_that_the_pairs_file_counts_first(tiny: Path, tmp_path: Path) -> None:
    pair = Models(str(tiny), "int4-3", "float32", CPU, frequent=counted(tmp_path / "f.safetensors", [40, 70, 50, 60]))
    ends = {token for token in pair.target_checkpoint.eos_token_ids if token < VOCABULARY}
    assert set(build(pair).tokens_R.tolist()) == {40, 70, 50} | ends
    whole = Models(str(tiny), "int4", "float32", CPU, frequent=pair.frequent)
    assert len(build(whole).tokens_R) == VOCABULARY


@pytest.mark.parametrize(
    "tokens, name, told",
    [
        ([1, 1], TOKENS, "expected different tokens"),
        ([1, 96], TOKENS, "expected tokens below 96"),
        ([1], "tokens", f"expected {TOKENS} in"),
    ],
)
def test_a_file_of_frequent_tokens_that_is_none_is_refused(
    tiny: Path, tmp_path: Path, tokens: list[int], name: str, told: str
) -> None:
    pair = Models(str(tiny), "int4-3", "float32", CPU, frequent=counted(tmp_path / "f.safetensors", tokens, name))
    with pytest.raises(UserError, match=told):
        check(pair)
    with pytest.raises(UserError, match="expected the most frequent tokens in the file 'nowhere', found none"):
        check(Models(str(tiny), "int4-3", "float32", CPU, frequent="nowhere"))
    whole = Models(str(tiny), "int4", "float32", CPU, frequent="nowhere")  # whose head knows all tokens
    assert draft_model(whole).tokens_R is None


def test_the_script_counts_answers_before_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [([1, 7, 7, 7, 7], [5, 9, 9]), ([1, 8], [9, 5, 2])]
    answers, out = tmp_path / "answers.jsonl", tmp_path / "new" / "tokens.safetensors"
    answers.write_text("".join(json.dumps({"prompt": "", "prompt_ids": p, "output_ids": o}) + "\n" for p, o in rows))
    monkeypatch.setattr(sys, "argv", ["frequent_tokens.py", str(answers), "--out", str(out), "--tokens", "5"])
    assert script.main() == 0
    assert load_file(out)[TOKENS].tolist() == [9, 5, 2, 7, 1]  # 9 three times, 5 twice; 7 in prompts alone
    monkeypatch.setattr(sys, "argv", ["frequent_tokens.py", str(answers), "--out", str(answers / "tokens")])
    with pytest.raises(UserError, match=r"cannot write .*answers.jsonl/tokens.* choose another --out"):
        script.main()


def test_the_embedded_pair_has_such_a_file_and_another_target_does_not() -> None:
    pair = get_pair("smollm2-135m")
    assert pair.frequent is not None and (ROOT / pair.frequent).stat().st_size < 100_000
    ranked = ranked_tokens(Models(pair.target, "int4-16384", pair.dtype, CPU, frequent=pair.frequent))
    assert len(ranked) == 24_000
    assert parse(["sps", "smollm2-135m"]).pair.frequent == pair.frequent
    assert parse(["sps", "smollm2-135m", "--draft", "int4-99"]).pair.frequent == pair.frequent
    assert parse(["sps", "smollm2-135m", "--target", "/models/other"]).pair.frequent is None
