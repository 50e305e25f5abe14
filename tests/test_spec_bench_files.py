"""Spec-Bench's files with the defects that its own scripts leave in them, judged as a user judges them: real processes.

Its own figure is worked out by hand by the rule of its evaluation/speed.py: the first choice of every line of a file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluation.show.tables import show
from tests.answer_files import answer, choice, compare, header, summarize, summarize_by_category, write
from tests.commands import run_script
from tests.tiny import save_tokenizer

NOT_CHECKED = "conditions not checked"


def said(
    turns: Sequence[str], tokens: Sequence[int], seconds: Sequence[float], lengths: list[int] | None = None
) -> dict[str, Any]:
    """One choice; accept lengths of 2 unless they are given."""
    counts = {"decoding_steps": [count - 1 for count in tokens], "new_tokens": tokens, "wall_time": seconds}
    return {"index": 0, "turns": turns, **counts, "accept_lengths": lengths or [2] * (sum(tokens) // 2)}


def line(question: int, *choices: dict[str, Any], category: str = "qa") -> dict[str, Any]:
    numbered = [one | {"index": index} for index, one in enumerate(choices)]
    return {"question_id": question, "category": category, "answer_id": f"id{question}", "choices": numbered}


def save(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"model_id": path.stem, "tstamp": 1.5} | one) + "\n" for one in lines))
    return path


def speed(folder: Path, *options: object) -> str:
    """What speed.py says of eagle.jsonl and vanilla.jsonl in the folder."""
    files = "--file-path", "eagle.jsonl", "--base-path", "vanilla.jsonl"
    done = run_script("speed.py", *files, *options, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def figures(folder: Path, *options: object) -> list[dict[str, Any]]:
    return json.loads(speed(folder, "--json", "--spec-bench", *options))


def notes(shown: str) -> list[str]:
    """What was told, but for what every pair of files without run headers is told."""
    told = [line.removeprefix("note: ") for line in shown.splitlines() if line.startswith("note: ")]
    return [note for note in told if not note.startswith((NOT_CHECKED, "not interleaved"))]


def equal(folder: Path) -> tuple[int, str]:
    names = "--jsonfile1", "vanilla.jsonl", "--jsonfile2", "eagle.jsonl"
    done = run_script("equal.py", "--file-path", folder, *names, cwd=folder)
    assert done.stderr == ""
    return done.returncode, done.stdout


RECORDED = (
    "Spec-Bench's figure counts the baseline's tokens as recorded; --spec-bench TOKENIZER counts as its script does"
)


def test_missing_questions_and_failed_turns_are_left_out_and_change_spec_benchs_figure(tmp_path: Path) -> None:
    fast, slow = said(["Yes."], [20], [1.0]), said(["Yes."], [20], [2.0])
    failed = said(["ERROR"], [20], [1.0])  # the counts that the turn before it left behind
    lines = [line(q, failed if q == 5 else fast) for q in range(1, 6)]
    save(tmp_path / "eagle.jsonl", [*lines, line(6, said(["No."], [90], [1.0]))])
    save(tmp_path / "vanilla.jsonl", [*(line(q, slow) for q in range(1, 6)), line(7, said(["No."], [20], [4.0]))])
    shown = speed(tmp_path, "--spec-bench")
    theirs = ((5 * 20 + 90) / 6) / ((5 * 10 + 5) / 6)
    assert f"2.00x  too few questions  2.00      {theirs:.2f}x (+{theirs / 2 - 1:.1%})" in shown
    left_out = [
        "2 of 7 questions, 1 missing and 1 failed in eagle.jsonl",
        "1 of 7 questions, 1 missing in vanilla.jsonl",
    ]
    assert notes(shown) == [*(f"left out: {what}" for what in left_out), RECORDED]
    assert notes(speed(tmp_path)) == [f"left out: {what}" for what in left_out]
    status, verdict = equal(tmp_path)
    assert status == 1 and "NOT equal: 4/7 identical, 2 missing, 1 failed (by text)\n" in verdict
    assert "question 5, turn 1: failed in eagle.jsonl\n" in verdict
    assert "question 6, turn 1: missing in vanilla.jsonl\n" in verdict


def test_the_baselines_tokens_can_be_counted_anew_as_spec_bench_does(tmp_path: Path) -> None:
    save(tmp_path / "eagle.jsonl", [line(1, said(["Yes, of.", "No."], [12, 8], [0.5, 0.5]))])
    save(tmp_path / "vanilla.jsonl", [line(1, said(["Yes, of.", "No."], [12, 8], [1.5, 0.5]))])
    save_tokenizer(tmp_path / "tokenizer")  # one token per character, and none in front: one is taken off all the same
    shown = speed(tmp_path, "--spec-bench", "tokenizer")
    theirs = 20 / ((7 + 2) / 2)
    assert f"{theirs:.2f}x (+{theirs / 2 - 1:.1%})" in shown and "2.00x" in shown
    assert RECORDED not in notes(shown)


def test_a_failed_repeat_and_a_turn_that_one_file_lacks_are_told(tmp_path: Path) -> None:
    two = said(["Once", "upon"], [10, 10], [1.0, 1.0])
    slow = said(["Once", "upon"], [10, 10], [2.0, 2.0])
    torn = said(["Once", "ERROR"], [10, 10], [1.0, 1.0], lengths=[1] * 5 + [5] * 3)
    save(tmp_path / "eagle.jsonl", [line(1, torn, two), line(2, two), line(3, said(["Once"], [10], [1.0]))])
    save(tmp_path / "vanilla.jsonl", [line(1, slow, slow), line(2, slow), line(3, slow)])
    (ours,) = figures(tmp_path)
    assert (ours["questions"], ours["speedup"], ours["mat"]) == (3, pytest.approx(2), 2)
    assert ours["spec_bench_speedup"] == pytest.approx(2)
    told = [note for note in ours["notes"] if note.startswith("left out")]
    assert told == [
        "left out: 2 of 7 turns in eagle.jsonl, whose repeat failed or which the other file lacks",
        "left out: 3 of 8 turns in vanilla.jsonl, whose repeat failed or which the other file lacks",
    ]
    assert equal(tmp_path)[1].endswith("NOT equal: 1/3 identical, 1 missing, 1 failed (6 turns by text)\n")


def test_repeats_count_for_ours_and_the_first_choice_alone_for_spec_benchs(tmp_path: Path) -> None:
    fast, slow = said(["Yes."], [20], [1.0]), said(["Yes."], [20], [2.0])
    save(tmp_path / "eagle.jsonl", [line(1, fast, slow), line(2, fast, slow)])
    save(tmp_path / "vanilla.jsonl", [line(1, slow, slow), line(2, slow, slow)])
    (ours,) = figures(tmp_path)
    assert (ours["speedup"], ours["spec_bench_speedup"]) == pytest.approx((4 / 3, 2))


def test_prefill_that_is_counted_in_another_way_is_told(tmp_path: Path) -> None:
    """As some scripts do: the clock starts behind the prefill, and its token is in no accept length."""
    save(tmp_path / "eagle.jsonl", [line(1, said(["Yes."], [21], [1.0], lengths=[4] * 5))])
    save(tmp_path / "vanilla.jsonl", [line(1, said(["Yes."], [21], [2.0], lengths=[1] * 21))])
    shown = speed(tmp_path, "--spec-bench")
    files = "eagle.jsonl and vanilla.jsonl"
    assert f"{NOT_CHECKED}: no run header beside {files}, so whether times include prefill is unknown\n" in shown
    assert "decode" not in shown.split("speedup:")[0]
    assert notes(shown)[0] == "MAT is as recorded: in eagle.jsonl accept lengths sum to 20, new tokens to 21"
    assert "4.00" in shown


def test_a_line_without_time_leaves_spec_benchs_figure_undefined(tmp_path: Path) -> None:
    fast, slow = said(["Yes."], [20], [1.0]), said(["Yes."], [20], [2.0])
    save(tmp_path / "eagle.jsonl", [line(1, fast), line(2, said(["ERROR"], [0], [0.0]))])
    save(tmp_path / "vanilla.jsonl", [line(1, slow), line(2, slow)])
    shown = speed(tmp_path, "--spec-bench")
    assert "2.00x" in shown and "(+" not in shown
    assert "Spec-Bench's figure is undefined where a line has no time, by which its script divides" in notes(shown)
    assert figures(tmp_path)[0]["spec_bench_speedup"] is None


def test_spec_benchs_figure_of_each_of_its_tasks(tmp_path: Path) -> None:
    kinds = {1: "writing", 2: "math", 3: "translation", 4: "rag"}
    rates = {1: 10, 2: 30, 3: 20, 4: 50}
    save(tmp_path / "eagle.jsonl", [line(q, said(["a"], [n], [1.0]), category=kinds[q]) for q, n in rates.items()])
    slow = [line(q, said(["a"], [10], [1.0]), category=kind) for q, kind in kinds.items()]
    save(tmp_path / "vanilla.jsonl", [*slow, line(5, said(["a"], [40], [1.0]), category="math")])
    found = {row["group"]: row["spec_bench_speedup"] for row in figures(tmp_path, "--by", "category")}
    overall = (110 / 4) / (80 / 5)
    assert found == pytest.approx(
        {"multi-turn conversation": 20 / (60 / 3), "translation": 2, "rag": 5, "overall": overall}
    )


def test_our_text_is_equal_to_spec_benchs_which_is_stripped(tmp_path: Path) -> None:
    write(tmp_path / "vanilla.jsonl", [answer(q, choices=[choice([range(q, q + 9)], [1.0])]) for q in (1, 2)], header())
    path = tmp_path / "vanilla.jsonl"
    ours = [json.loads(row) for row in path.read_text().splitlines()]
    for row in ours:
        row["choices"][0]["turns"] = [" Yes.\n"]
    save(path, ours)
    save(tmp_path / "eagle.jsonl", [line(1, said(["Yes."], [9], [1.0])), line(2, said(["No."], [9], [1.0]))])
    status, verdict = equal(tmp_path)
    assert status == 1 and "NOT equal: 1/2 identical, 1 different (by text)\n" in verdict
    assert "question 2, turn 1: different from character 1 on\n" in verdict


def test_an_unusable_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    for name in ("eagle", "vanilla"):
        save(tmp_path / f"{name}.jsonl", [line(1, said(["Yes."], [9], [1.0]))])
    files = "--file-path", "eagle.jsonl", "--base-path", "vanilla.jsonl"
    done = run_script("speed.py", *files, "--spec-bench", "./nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "error: cannot read a tokenizer from ./nowhere" in done.stderr


def test_rests_and_medusas_files_are_read_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As their scripts write them: no categories; a colon in REST's key; no accept lengths of Medusa's."""
    kinds = {1: "writing", 2: "qa"}
    slow = [line(q, said(["Yes."], [20], [2.0]), category=kind) for q, kind in kinds.items()]
    save(tmp_path / "vanilla.jsonl", slow)
    rest = {"index": 0, "turns": ["Yes."], "idxs": [9], "new_tokens": [20], "wall_time": [1.0]}
    lines = [{"question_id": q, "answer_id": "a", "choices": [rest | {"accept_lengths:": [4] * 5}]} for q in kinds]
    save(tmp_path / "eagle.jsonl", lines)
    files = tmp_path / "eagle.jsonl", tmp_path / "vanilla.jsonl"
    rows = summarize_by_category(*files)
    assert [(row.group, row.mat) for row in rows] == [("qa", 4), ("writing", 4), ("overall", 4)]
    assert [row.speedup for row in rows] == pytest.approx([2, 2, 2])
    assert compare(*files).equal
    save(files[0], [one | {"choices": [rest]} for one in lines])
    save(files[1], [{key: one[key] for key in one if key != "category"} for one in slow])
    row = summarize(*files)
    assert row.speedup == pytest.approx(2) and row.mat is None and row.passes is None
    assert row.notes[-3:] == [
        f"no categories in {files[0]}, nor in the other file",
        f"no categories in {files[1]}, nor in the other file",
        f"no MAT: {files[0]} does not record accept lengths",
    ]
    show([row], False, True)
    shown = capsys.readouterr().out.split("speedup:")[0]
    assert "2.00x" in shown and "MAT" not in shown and "passes" not in shown
    assert compare(*files).line == "2/2 identical (by text)"
