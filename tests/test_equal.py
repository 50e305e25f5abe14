"""equal.py: equal means the same questions with the same tokens, and nothing else does."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.answers.record import Answer
from evaluation.equal import main
from evaluation.judge.equality import Comparison
from methods.errors import UserError
from tests.answer_files import answer, choice, compare, header, write, write_spec_bench
from tests.commands import run_script, start_script


def two_turns(question: int, second: list[int] | None = None, **changes: Any) -> Answer:
    """A question of two turns, 8 and 3 tokens unless the second turn is given."""
    first = choice([range(question, question + 8), second or [1, 2, 3]], [1.0, 0.5])
    return answer(question, choices=[replace(first, **changes)])


def compared(folder: Path, one: list[Answer], other: list[Answer], **changes: Any) -> Comparison:
    """The comparison of these answers; `changes` go into the header of the second file."""
    pld = write(folder / "pld.jsonl", other, header("pld", **changes))
    return compare(write(folder / "autoregressive.jsonl", one), pld)


def test_same_answers_are_equal_in_any_order(tmp_path: Path) -> None:
    answers = [two_turns(q) for q in range(4)]
    result = compared(tmp_path, answers, answers[::-1])
    assert result.equal and result.identical == 4 and result.notes == []
    assert result.line == "4/4 identical (8 turns by token ids)"
    single = compared(tmp_path / "single", [answer(1), answer(2)], [answer(1), answer(2)])
    assert single.line == "2/2 identical (by token ids)"


def test_a_different_token_is_found_and_shown(tmp_path: Path) -> None:
    margins = [[0.5] * 8, [0.4, 0.001, 0.3]]
    result = compared(tmp_path, [two_turns(1), two_turns(2)], [two_turns(1), two_turns(2, [1, 9, 3], margins=margins)])
    assert not result.equal and result.identical == 1
    assert result.line == "1/2 identical, 1 different (4 turns by token ids)"
    (odd,) = [turn for turn in result.turns if turn.status != "identical"]
    assert (odd.question_id, odd.turn, odd.repeat, odd.status, odd.by) == (2, 1, 0, "different", "token ids")
    assert odd.difference is not None
    assert odd.difference.position == 1 and odd.difference.tokens == ([1, 2, 3], [1, 9, 3])
    assert odd.difference.margins == (None, 0.001)


def test_a_shorter_answer_is_different_where_it_ends(tmp_path: Path) -> None:
    result = compared(tmp_path, [two_turns(1)], [two_turns(1, [1, 2])])
    difference = result.turns[1].difference
    assert not result.equal and difference is not None and difference.position == 2


def test_tokens_decide_where_both_have_them_else_the_text(tmp_path: Path) -> None:
    same_text = [two_turns(1, token_ids=[[7] * 8, [1, 2, 3]])]
    assert not compared(tmp_path / "tokens", [two_turns(1)], same_text).equal
    no_tokens = [two_turns(1, token_ids=None)]
    by_text = compared(tmp_path / "text", [two_turns(1)], no_tokens)
    assert by_text.equal and by_text.line == "1/1 identical (2 turns by text)"


def test_missing_questions_turns_and_repeats(tmp_path: Path) -> None:
    repeats = [choice([[1, 2]], [1.0]), choice([[3, 4]], [1.0], index=1)]
    one = [two_turns(1), two_turns(2), answer(3, choices=repeats)]
    other = [answer(2, choices=[choice([range(2, 10)], [1.0])]), answer(3, choices=repeats[:1]), two_turns(4)]
    result = compared(tmp_path, one, other)
    assert result.questions == dict.fromkeys([1, 2, 3, 4], "missing")
    odd = {(t.question_id, t.turn, t.repeat): t.where for t in result.turns if t.status == "missing"}
    assert odd == {
        (1, 0, 0): "pld.jsonl",
        (1, 1, 0): "pld.jsonl",
        (2, 1, 0): "pld.jsonl",
        (3, 0, 1): "pld.jsonl",
        (4, 0, 0): "autoregressive.jsonl",
        (4, 1, 0): "autoregressive.jsonl",
    }
    assert not result.equal and result.identical == 0


def test_failed_questions_are_not_equal_even_if_both_failed(tmp_path: Path) -> None:
    failures = [{"question_id": 2, "error": "out of memory"}]
    base = write(tmp_path / "autoregressive.jsonl", [two_turns(1)], header("autoregressive", failures=failures))
    other = write(tmp_path / "pld.jsonl", [two_turns(1)], header("pld", failures=failures))
    result = compare(base, other)
    assert result.line == "1/2 identical, 1 failed (2 turns by token ids)" and not result.equal
    assert result.turns[-1].where == "autoregressive.jsonl and pld.jsonl"


def test_failed_turns_of_spec_bench_are_failed_even_if_both_say_error(tmp_path: Path) -> None:
    rows = [(81, "qa", ["Yes.", "ERROR"], [3, 3], [1.0, 1.0]), (82, "qa", ["No."], [3], [1.0])]
    result = compare(write_spec_bench(tmp_path / "a.jsonl", rows), write_spec_bench(tmp_path / "b.jsonl", rows))
    assert [turn.status for turn in result.turns] == ["identical", "failed", "identical"]
    assert result.questions == {81: "failed", 82: "identical"} and not result.equal


def test_chosen_questions_alone_count_and_must_be_there(tmp_path: Path) -> None:
    one, other = [two_turns(1), two_turns(2)], [two_turns(1), two_turns(2, [9, 9, 9])]
    compared(tmp_path, one, other)
    files = tmp_path / "autoregressive.jsonl", tmp_path / "pld.jsonl"
    assert compare(*files, question_ids=[1]).equal
    absent = compare(*files, question_ids=[1, 5])
    assert not absent.equal and absent.questions == {1: "identical", 5: "missing"}
    assert absent.turns[-1].where == "autoregressive.jsonl and pld.jsonl"
    assert not compare(*files, question_ids=[]).equal


def test_notes_tell_why_a_difference_may_be_expected(tmp_path: Path) -> None:
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    changes = {"sampling": sampling, "row_invariant": False, "lossless": False}
    notes = compared(tmp_path, [two_turns(1)], [two_turns(1)], **changes).notes
    assert [note.split(":")[0] for note in notes] == [
        "temperature 1",
        "made under different conditions",
        "pld.jsonl",
        "not row-invariant here",
    ]
    assert "sampling.temperature is 0.0 in one, 1.0 in the other" in notes[1]


def test_an_empty_file_is_never_equal(tmp_path: Path) -> None:
    empty = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in empty:
        path.write_text("")
    with pytest.raises(UserError, match=r"a\.jsonl holds no answers"):
        compare(empty[0], empty[1])


def test_command_line_with_both_interfaces_and_its_three_exit_statuses(tmp_path: Path) -> None:
    one, other = [two_turns(q) for q in range(20)], [two_turns(q) for q in range(20)]
    other[7] = two_turns(7, [1, 9, 3])
    folder = tmp_path / "answers"
    write(folder / "autoregressive.jsonl", one)
    write(folder / "sps.jsonl", one, header("sps"))
    write(folder / "pld.jsonl", other)
    same = start_script("equal.py", "answers/autoregressive.jsonl", folder / "sps.jsonl", cwd=tmp_path)
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout == "equal: 20/20 identical (40 turns by token ids)\n"
    names = "--jsonfile1", "autoregressive.jsonl", "--jsonfile2", "pld.jsonl"
    differs = run_script("equal.py", "--file-path", "answers/", *names, cwd=tmp_path)
    assert differs.returncode == 1
    assert "question 7, turn 2: different from token 2 on\n" in differs.stdout
    assert "    autoregressive.jsonl  1 [2] 3\n" in differs.stdout
    assert "    pld.jsonl             1 [9] 3\n                          '1 9 3'\n" in differs.stdout
    assert "NOT equal: 19/20 identical, 1 different (40 turns by token ids)\n" in differs.stdout
    for arguments in (["answers/autoregressive.jsonl"], ["answers/autoregressive.jsonl", "answers/plb.jsonl"]):
        unusable = run_script("equal.py", *arguments, cwd=tmp_path)
        assert unusable.returncode == 2 and unusable.stdout == "" and "Traceback" not in unusable.stderr


def test_only_the_first_differences_are_shown_unless_all_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [two_turns(q) for q in range(8)])
    write(tmp_path / "b.jsonl", [two_turns(q, [9]) for q in range(8)])
    few = run_script("equal.py", "a.jsonl", "b.jsonl", cwd=tmp_path).stdout
    every = run_script("equal.py", "--all", "a.jsonl", "b.jsonl", cwd=tmp_path).stdout
    assert few.count("different from") == 5 and "... and 3 more turns; --all shows them" in few
    assert every.count("different from") == 8 and "more turns" not in every


def test_command_line_prints_one_json_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "autoregressive.jsonl", [two_turns(1), two_turns(2)])
    other = write(tmp_path / "pld.jsonl", [two_turns(1), two_turns(2, [1, 9, 3])])
    for second, status, told in ((one, 0, []), (other, 1, [(2, 1, "different")])):
        monkeypatch.setattr(sys, "argv", ["equal.py", str(one), str(second), "--json"])
        assert main() == status
        found = json.loads(capsys.readouterr().out)
        assert (found["equal"], found["questions"], found["identical"]) == (not status, 2, 2 - status)
        assert [(turn["question_id"], turn["turn"], turn["status"]) for turn in found["turns"]] == told
        assert all(turn["difference"]["position"] == 1 for turn in found["turns"])
