"""Distilling: the command line on a small random target, against Transformers' own greedy answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distill import main, read_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.launch.benchmarks import load_questions
from evaluation.launch.config import parse
from evaluation.launch.ranks import join_ranks, take_share
from evaluation.launch.worker import Session
from methods.errors import UserError
from tests.commands import in_process

ROOT = Path(__file__).resolve().parents[1]


def distill(*options: object, start: bool = False) -> str:
    """`start`: as a process, as a user does."""
    if start:
        command = list(map(str, [sys.executable, ROOT / "scripts/distill.py", *options]))
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    else:
        done = in_process(main, *options)
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
    assert "10 answers to make, 0 there" in distill(*fixed, "--temperatures", 0, 1, start=True)
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
    assert said == [("mixed", ["a"]), ("mixed", ["b"])]
    with pytest.raises(UserError, match="expected prompt, turns or conversations"):
        read_prompts(write(tmp_path / "wrong.jsonl", {"question": "a"}))
    (tmp_path / "torn.jsonl").write_text('{"prompt": ')
    with pytest.raises(UserError, match=r"torn\.jsonl"):
        read_prompts(tmp_path / "torn.jsonl")
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_prompts(tmp_path / "none.jsonl")


@pytest.fixture
def vicuna_like(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a pair in one of FastChat's templates, whose tokenizer has a chat template too."""
    pair = {"target": str(tiny), "template": "fschat:vicuna_v1.1"}
    monkeypatch.setattr("methods.pairs.read_sections", lambda path, what: {"vicuna-like": pair})
    return "vicuna-like"


def run_main(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["distill.py", *map(str, options)])
    assert main() == 0


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("template", [None, "raw"])
def test_prompts_are_the_tokens_that_a_run_decodes_with(
    vicuna_like: str, template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"question_id": i, "category": "qa", "turns": [text]} for i, text in enumerate(["hi", "1+1? "])]
    questions = write(tmp_path / "questions.jsonl", *asked)
    chosen = ["--template", template] if template else []
    fixed = ["--target", vicuna_like, "--prompts", questions, "--out", tmp_path / "answers.jsonl"]
    run_main(monkeypatch, *fixed, "--max-new-tokens", 2, *chosen)
    config = parse(["autoregressive", vicuna_like, "--questions", str(questions), *chosen])
    benchmark = load_questions(config.benchmark, config.questions, None)
    ranks = join_ranks(1)
    prompter = Session(config, benchmark, ranks, take_share(ranks, "cpu", 1)).prompter
    expected = {q.turns[0]: prompter.encode(q.turns, []) for q in benchmark.questions}
    assert {row["prompt"]: row["prompt_ids"] for row in rows(tmp_path / "answers.jsonl")} == expected
    with pytest.raises(UserError, match="another --template"):
        run_main(monkeypatch, *fixed, "--temperatures", 1, "--template", "chat")
    written = prompter.tokenizer.decode(expected["hi"])
    assert written == "hi" if template else written.endswith("USER: hi ASSISTANT:")


def test_kept_conversations_are_in_the_pairs_template_as_far_as_both_take_turns(
    vicuna_like: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [{"from": who, "value": who + "!"} for who in ("system", "human", "gpt", "human", "human", "gpt")]
    prompts = write(tmp_path / "talks.jsonl", {"conversations": parts}, {"conversations": parts[:2], "source": "alone"})
    options = ["--target", vicuna_like, "--prompts", prompts, "--out", tmp_path / "out.jsonl", "--keep-answers"]
    run_main(monkeypatch, *options)
    (row,) = rows(tmp_path / "out.jsonl")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    assert tokenizer.decode(row["prompt_ids"]).endswith(" USER: human! ASSISTANT:")
    assert tokenizer.decode(row["output_ids"]) == " gpt!</s>"
    assert "1 left out" in capsys.readouterr().err
