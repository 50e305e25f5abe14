"""Prompts that do not fit the context: left out of speed and equality with a note and a count, the rest is judged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.answers.header import read_header
from evaluation.answers.record import Answer, Choice, read_answers
from evaluation.judge.groups import read_groups
from evaluation.launch.config import parse
from evaluation.launch.worker import to_choice
from evaluation.report import main as report
from evaluation.run import run
from evaluation.show.change import compare_folders
from evaluation.show.figures.draw import draw
from methods.base import Generation
from methods.errors import UserError
from tests.answer_files import answer, choice, compare, header, summarize, summarize_by_category, write
from tests.simulated_runs import SPS, generation, write_runs
from tests.tiny import save_model

CONTEXT = 64
ONE_OF_FOUR = f"left out: 1 of 4 questions does not fit the context of {CONTEXT} tokens"
ONE_TURN = f"left out: 1 of 5 turns does not fit the context of {CONTEXT} tokens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with a short context, and questions of which one does not fit, and the second turn of another."""
    folder = tmp_path_factory.mktemp("short")
    save_model(folder / "target", layers=2, context=CONTEXT)
    turns = [["ab ab ab"], ["long " * 20], ["one two", "more " * 12], ["1+1"]]
    lines = [{"question_id": q, "category": "qa", "turns": t} for q, t in enumerate(turns)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(folder: Path, output: Path, *more: str) -> list[str]:
    task = ["--questions", str(folder / "questions.jsonl"), "--max-new-tokens", "8", "--template", "chat"]
    return ["pld", "--target", str(folder / "target"), *task, "--dtype", "float32", "--threads", "1",
            "--device", "cpu", "--output", str(output), *more]  # fmt: skip


def test_a_run_leaves_them_out_and_judges_the_rest(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> None:
    for _ in range(2):  # the same command comes to the same verdict
        assert run(parse(command(folder, tmp_path, "--json"))) == 0
        said = capsys.readouterr()
        assert "pld: 3/3 identical (by token ids)" in said.err
        assert f"note: {ONE_OF_FOUR}" in said.err and f"note: {ONE_TURN}" in said.err
        (row,) = json.loads(said.out)
        assert (row["identical"], row["questions"], row["too_long"]) == (3, 3, 1) and ONE_OF_FOUR in row["notes"]
    path = tmp_path / "questions/target/pld.jsonl"
    stored = read_header(path)
    assert stored is not None and stored["context_length"] == CONTEXT and stored["failures"] == []
    ends = {q: answer.choices[0].finish for q, answer in read_answers(path).items()}
    assert ends[1] == ["context"] and (ends[2] or [])[1] == "context"
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path), "--fail-on", "identical<1"])
    assert report() == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert "3/3 identical" in text and ONE_OF_FOUR in text and ONE_TURN in text and "failures: none" in text


def test_where_none_fits_one_sentence_says_so(folder: Path, tmp_path: Path, one_thread: None) -> None:
    (tmp_path / "questions.jsonl").write_text((folder / "questions.jsonl").read_text().splitlines()[1] + "\n")
    (tmp_path / "target").symlink_to(folder / "target")
    with pytest.raises(UserError, match=f"1 of 1 question does not fit the context of {CONTEXT} tokens; take shorter"):
        run(parse(command(tmp_path, tmp_path / "out")))
    assert draw(read_groups([tmp_path / "out"]))[0] == []


def overlong(turns: int = 1) -> Choice:
    return to_choice([Generation(finish="context")] * turns, [""] * turns, 0)


def two_turns(fits: bool) -> Choice:
    """Ten tokens, then one; or a second turn that does not fit."""
    whole = choice([range(10), [1]], [1.0, 0.5])
    if fits:
        return whole
    lists = {"turns": ["a", ""], "new_tokens": [10, 0], "wall_time": [1.0, 0.0], "accept_lengths": [1] * 10}
    parts = {"decoding_steps": [10, 0], "token_ids": [list(range(10)), []], "finish": ["length", "context"]}
    empty = {"prefill_time": [0.1, 0.0], "drafted": [[0] * 10, []], "accepted": [[0] * 10, []], "nodes": [[1] * 10, []]}
    return replace(whole, **lists, **parts, **empty)  # type: ignore[arg-type]


def test_only_where_neither_file_has_an_answer_nothing_is_compared(tmp_path: Path) -> None:
    rows = [answer(1, choices=[two_turns(False)]), answer(2, choices=[overlong()]), answer(3)]
    base = write(tmp_path / "autoregressive.jsonl", rows, header("autoregressive"))
    same = compare(write(tmp_path / "pld.jsonl", rows), base)
    assert same.equal and same.line == "2/2 identical (by token ids)" and same.too_long == [2] and same.identical == 2
    assert same.questions == {1: "identical", 3: "identical"}
    assert same.notes == [f"left out: 1 of {whole} does not fit the context" for whole in ("3 questions", "4 turns")]
    more = [answer(1, choices=[two_turns(True)]), answer(2), answer(3)]
    other = compare(write(tmp_path / "sps.jsonl", more, header("sps")), base)
    assert not other.equal and other.questions == {1: "different", 2: "different", 3: "identical"}
    assert other.notes == [] and other.too_long == []
    alone = compare(base, base, [2])
    assert not alone.equal and alone.too_long == [2] and alone.line == "0/0 identical"


def test_speed_leaves_out_what_does_not_fit_in_one_of_the_files(tmp_path: Path) -> None:
    fast = [answer(1, choices=[two_turns(False)]), answer(2, choices=[overlong()]), answer(3)]
    slow = [answer(1, choices=[two_turns(True)]), answer(2), answer(3, choices=[choice([range(10)], [3.0])])]
    method = write(tmp_path / "pld.jsonl", fast, header("pld", context_length=2048))
    base = write(tmp_path / "autoregressive.jsonl", slow, header("autoregressive"))
    s = summarize(method, base)
    assert s.questions == 2 and s.speedup == pytest.approx(4 / 2) and s.mat == 1 and s.too_long == 1
    assert s.notes == [
        "left out: 1 of 3 questions does not fit the context of 2,048 tokens",
        "left out: 1 of 4 turns does not fit the context of 2,048 tokens",
    ]
    with pytest.raises(UserError, match=r"no speed: 1 of 1 question does not fit the context of 2,048 tokens; take"):
        summarize(method, base, [2])


def test_figures_and_comparisons_of_folders_tell_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_runs(tmp_path / "runs", [SPS], questions=6)
    for path in (folder / "mini_bench/tiny").glob("*.jsonl"):
        run_of = replace(SPS, method=path.stem, options=SPS.options if path.stem == "sps" else {})
        later = to_choice([generation(run_of, "long", 40), Generation(finish="context")], ["a", ""], 0)
        more = [Answer(6, "qa", path.stem, [overlong(2)]), Answer(7, "qa", path.stem, [later])]
        path.write_bytes(path.read_bytes() + b"".join(one.to_line() for one in more))
    drawn, _ = draw(read_groups([folder]))
    assert drawn and int(drawn[0].data["questions"].iloc[0]) == 7
    place = folder / "mini_bench/tiny"
    by_category = summarize_by_category(place / "sps.jsonl", place / "autoregressive.jsonl")
    assert by_category[-1].questions == 7 and by_category[-1].too_long == 1
    assert compare_folders(folder, folder, True) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "left out: 1 of 8 questions does not fit the context" in row["notes"]["now"]
    assert compare_folders(folder, folder, False) == 0
    assert "note: left out: 1 of 8 questions does not fit the context" in capsys.readouterr().out
