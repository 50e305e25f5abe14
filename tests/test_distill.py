"""Distilling: the command line on a small random target, against Transformers' own greedy answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distill import read_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

from methods.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def distill(*options: object) -> str:
    command = [sys.executable, ROOT / "scripts/distill.py", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_answers_are_the_targets_and_a_torn_file_is_gone_on_with(tiny: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", *({"prompt": "tell " + "more " * i, "source": "x"} for i in range(5)))
    out = tmp_path / "answers.jsonl"
    fixed = ["--target", tiny, "--prompts", prompts, "--out", out, "--max-new-tokens", 12, "--batch", 2]
    assert "10 answers to make, 0 there" in distill(*fixed, "--temperatures", 0, 1)
    whole = rows(out)
    assert len(whole) == 10 and {row["temperature"] for row in whole} == {0.0, 1.0}
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16),
        AutoTokenizer.from_pretrained(tiny),
    )
    row = max((row for row in whole if row["temperature"] == 0), key=lambda row: len(row["prompt"]))
    assert tokenizer.decode(row["prompt_ids"]) == f"u:{row['prompt']}<eos>a:"  # it has no newline
    best = model(torch.tensor([row["prompt_ids"] + row["output_ids"]])).logits[0, len(row["prompt_ids"]) - 1 : -1]
    chosen = best.gather(-1, torch.tensor(row["output_ids"])[:, None])[:, 0]
    assert (best.amax(-1) - chosen).max() < 0.5  # bf16 in other batch shapes
    eos = model.generation_config.eos_token_id
    assert all(len(r["output_ids"]) == 12 or r["output_ids"][-1] == eos for r in whole)
    assert all(eos not in r["output_ids"][:-1] for r in whole)

    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:7]) + lines[7][:20])
    assert "3 answers to make, 7 there" in distill(*fixed, "--temperatures", 0, 1)
    again = rows(out)
    assert again[:7] == whole[:7]
    assert sorted((r["prompt"], r["temperature"]) for r in again) == sorted(
        (r["prompt"], r["temperature"]) for r in whole
    )


def test_conversations_are_kept_as_they_are(tiny: Path, tmp_path: Path) -> None:
    parts = [("gpt", "before"), ("human", "hi"), ("gpt", "yes?"), ("human", "go"), ("gpt", "gone")]
    talk = {"conversations": [{"from": who, "value": text} for who, text in parts]}
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([talk, {"conversations": [{"from": "human", "value": "alone"}]}]))
    distill("--target", tiny, "--prompts", path, "--out", tmp_path / "out.jsonl", "--keep-answers")
    (row,) = rows(tmp_path / "out.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert row["prompt"] == "hi" and tokenizer.decode(row["prompt_ids"]) == "u:hi<eos>a:"
    assert tokenizer.decode(row["prompt_ids"] + row["output_ids"]) == "u:hi<eos>a:yes?<eos>u:go<eos>a:gone<eos>"


def test_prompt_formats(tmp_path: Path) -> None:
    entries = [{"prompt": "a"}, {"turns": ["b", "c"], "category": "qa"}, {"conversations": []}]
    said = read_prompts(write(tmp_path / "mixed.jsonl", *entries))
    assert said == [("mixed", [{"role": "user", "content": text}]) for text in "ab"]
    with pytest.raises(UserError, match="expected prompt, turns or conversations"):
        read_prompts(write(tmp_path / "wrong.jsonl", {"question": "a"}))
    (tmp_path / "torn.jsonl").write_text('{"prompt": ')
    with pytest.raises(UserError, match=r"torn\.jsonl"):
        read_prompts(tmp_path / "torn.jsonl")
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_prompts(tmp_path / "none.jsonl")
