"""speed.py: the figures of two answer files by hand, and one clear sentence where a comparison would mean nothing."""

import json
import os
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.answers.files import header_path
from evaluation.answers.header import UNSET
from evaluation.answers.packing import packed as numbers
from evaluation.answers.record import Answer, read_answers
from evaluation.answers.run import Run
from evaluation.judge.categories import CONVERSATION
from evaluation.judge.wording import changed, shares_of_machine
from methods.errors import UserError
from tests.answer_files import (
    answer,
    choice,
    header,
    in_terminal,
    keys,
    summarize,
    summarize_by_category,
    write,
    write_spec_bench,
)
from tests.commands import run_script

Paths = tuple[Path, Path]


def timed(seconds: dict[int, float], tokens: int = 11, category: str = "qa") -> list[Answer]:
    """One turn of `tokens` tokens for each question, taking the given seconds, two tokens to a pass."""
    rows = {q: choice([range(tokens)], [s], per_pass=2) for q, s in seconds.items()}
    return [answer(q, category, choices=[row]) for q, row in rows.items()]


def files(folder: Path, method: list[Answer], base: list[Answer], **changes: Any) -> Paths:
    """A method's answer file and its baseline's; `changes` go into the header of the method."""
    pld = write(folder / "pld.jsonl", method, header("pld", **changes))
    return pld, write(folder / "autoregressive.jsonl", base, header("autoregressive"))


@pytest.fixture
def ten(tmp_path: Path) -> Paths:
    """Ten questions at half the time of the baseline, give or take."""
    seconds = {q: 1.0 + 0.02 * q for q in range(10)}
    return files(tmp_path, timed(seconds), timed(dict.fromkeys(range(10), 2.0)))


def error_of(method: Path, base: Path) -> str:
    with pytest.raises(UserError) as error:
        summarize(method, base)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_figures_by_hand(ten: Paths) -> None:
    s = summarize(*ten)
    assert (s.method, s.baseline, s.pair, s.benchmark) == ("pld", "autoregressive", "tiny", "mini_bench")
    assert s.questions == 10 and s.tokens_per_second == pytest.approx(110 / 10.9)
    assert s.baseline_tokens_per_second == pytest.approx(110 / 20)
    assert s.speedup == pytest.approx(20 / 10.9)
    assert s.low is not None and s.high is not None
    assert 1.6 < s.low < s.speedup < s.high < 2.1 and s.significant
    assert s.decode_speedup == pytest.approx(19 / 9.9)  # 0.1 s of prefill in each answer
    assert s.floor_tokens_per_second == pytest.approx(50)
    assert s.passes == 60 and s.mat == pytest.approx(11 / 6)
    assert s.drafted == 60 and s.drafted_per_token == pytest.approx(60 / 110)
    assert s.conditional_acceptance == s.joint_acceptance == pytest.approx([5 / 6]) and s.repetition == 0
    assert s.nodes_per_pass == 2
    assert (s.draft_seconds_per_pass, s.verify_seconds_per_pass) == pytest.approx((0.01, 0.05))
    assert s.interleaved and s.notes == []
    assert s.conditions == "tiny, mini_bench, float32, greedy, at most 64 new tokens, 2 threads"


def test_swapping_the_files_gives_the_reciprocal(tmp_path: Path) -> None:
    rows = [(q, "qa", ["Yes."], [20 + q], [0.5 + 0.1 * q]) for q in range(8)]
    base_rows = [(q, "qa", ["Yes, indeed."], [23 + q], [1.0 + 0.3 * q]) for q in range(8)]  # counted by another rule
    method = write_spec_bench(tmp_path / "eagle.jsonl", rows)
    base = write_spec_bench(tmp_path / "vanilla.jsonl", base_rows[::-1])
    there, back = summarize(method, base), summarize(base, method)
    for key, other in (("speedup", "speedup"), ("low", "high"), ("geometric_mean",) * 2, ("spec_bench_speedup",) * 2):
        assert getattr(there, key) * getattr(back, other) == pytest.approx(1, rel=1e-12)
    assert there.tokens_per_second == back.baseline_tokens_per_second == pytest.approx(188 / 6.8)


def test_spec_bench_files_are_compared_with_what_they_record(tmp_path: Path) -> None:
    rows = [(81, "writing", ["a", "b"], [10, 20], [1.0, 1.0]), (82, "math", ["c"], [30], [1.0])]
    base_rows = [(81, "writing", ["a", "b"], [10, 20], [2.0, 1.0]), (82, "math", ["c"], [30], [4.0])]
    method = write_spec_bench(tmp_path / "eagle.jsonl", [*rows, (83, "qa", ["ERROR"], [30], [1.0])])
    base = write_spec_bench(tmp_path / "vanilla.jsonl", [*base_rows, (83, "qa", ["d"], [5], [1.0])])
    s = summarize(method, base)
    assert s.method == "vicuna-7b-v1.3-eagle" and s.questions == 2 and s.mat == 2
    assert s.speedup == pytest.approx(7 / 3)
    assert s.spec_bench_speedup == pytest.approx(((15 + 30 + 30) / 3) / ((10 + 7.5 + 5) / 3))
    unknown = ("low", "decode_speedup", "floor_tokens_per_second", "joint_acceptance", "repetition", "drafted")
    assert [getattr(s, key) for key in unknown] == [None] * 6 and not s.significant
    assert [note.split(":")[0] for note in s.notes] == ["conditions not checked", "not interleaved", "left out"]
    assert s.notes[2] == f"left out: 1 of 3 questions, 1 failed in {method}"


def test_only_common_questions_count_and_the_rest_is_told(tmp_path: Path) -> None:
    method, base = timed({1: 1.0, 2: 1.0, 3: 50.0}), timed({1: 2.0, 2: 2.0, 4: 50.0, 5: 50.0})
    paths = files(tmp_path, method, base, failures=[{"question_id": 4, "error": "out of memory"}])
    s = summarize(*paths)
    assert s.questions == 2 and s.speedup == pytest.approx(2)
    assert s.notes == [
        f"left out: 2 of 5 questions, 1 missing and 1 failed in {paths[0]}",
        f"left out: 1 of 5 questions, 1 missing in {paths[1]}",
    ]
    one = summarize(*paths, question_ids=[2])
    assert one.questions == 1 and one.notes == []
    assert summarize(*paths, question_ids=[2, 4]).notes == [f"left out: 1 of 2 questions, 1 failed in {paths[0]}"]


def test_categories_are_grouped_as_spec_bench_does_with_overall_last(tmp_path: Path) -> None:
    kinds = {1: "summarization", 2: "coding", 3: "writing", 4: "translation", 5: "own kind"}
    method = [a for q, kind in kinds.items() for a in timed({q: 1.0}, category=kind)]
    base = [a for q, kind in kinds.items() for a in timed({q: q + 1.0}, category=kind)]
    rows = summarize_by_category(*files(tmp_path, method, base))
    assert [row.group for row in rows] == [CONVERSATION, "translation", "summarization", "own kind", "overall"]
    assert [row.questions for row in rows] == [2, 1, 1, 1, 5]
    assert [row.speedup for row in rows] == pytest.approx([3.5, 5, 2, 6, 4])
    assert [row.passes for row in rows] == [12, 6, 6, 6, 30]


def test_one_category_of_mt_bench_alone_keeps_its_name(tmp_path: Path) -> None:
    rows = timed({1: 1.0, 2: 1.0}, category="coding")  # HumanEval is no conversation
    assert [row.group for row in summarize_by_category(*files(tmp_path, rows, rows))] == ["coding", "overall"]


def test_loops_are_reported(tmp_path: Path) -> None:
    loop = answer(1, choices=[choice([[*range(8), *[8, 9] * 6]], [1.0])])
    assert summarize(*files(tmp_path, [loop], [loop])).repetition == pytest.approx(12 / 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype is bfloat16 in one, float32 in the other"),
        ({"max_new_tokens": 128}, "max_new_tokens is 128 in one, 64 in the other"),
        ({"benchmark_sha256": "abd"}, "benchmark_sha256 is abd in one, abc in the other"),
        ({"sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0}}, "sampling.temperature is 1 in one, 0 in"),
        ({"target": {"source": "tiny/model", "revision": "r2", "weight_bytes": 100}}, "target.revision is r2 in one"),
        ({"gpu": "Some GPU"}, "gpu is Some GPU in one, none in the other"),
    ],
)
def test_other_work_or_another_machine_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    method, base = files(tmp_path, timed({1: 1.0}), timed({1: 2.0}), **changes)
    assert message in error_of(method, base) and "cannot be compared" in error_of(base, method)


def test_another_launch_is_told_but_not_refused(tmp_path: Path) -> None:
    changes = {"created": "2025-02-02", "threads": 1, "draft": {"source": "d"}, "git_commit": "f00", "seed": 3}
    method, base = files(tmp_path, timed({1: 1.0}), timed({1: 2.0}), **changes)
    s = summarize(method, base)
    assert not s.interleaved and [note.split(":")[0] for note in s.notes] == [
        "not the same share of the machine",
        "not interleaved",
    ]
    assert s.notes[0].endswith(": the method ran with 1 thread, the baseline with 2 threads")
    more = files(tmp_path / "more", timed({1: 1.0}), timed({1: 2.0}), methods=["autoregressive", "pld", "sps"])
    assert not summarize(*more).interleaved


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (
            {"devices": ["cpu:0", "cpu:1"]},
            {"devices": ["cpu:0"]},
            "the method ran on 2 cores (cpu:0 and cpu:1), the baseline on 1 core (cpu:0)",
        ),
        (
            {"devices": ["cpu:0,1", "cuda:0"], "threads": 2},
            {"devices": ["cuda:0", "cuda:1"], "threads": 2},
            "the method ran on 2 cores and 1 device (cpu:0,1 and cuda:0), "
            "the baseline on 2 devices (cuda:0 and cuda:1)",
        ),
        ({"replicas": 3}, {"replicas": 1}, "the method ran in 3 replicas, the baseline in 1 replica"),
        (
            {"threads": 1},
            {"threads": None},
            "the method ran with 1 thread, the baseline with threads that its run header does not name",
        ),
        ({"devices": ["cpu:0"]}, {"devices": ["cpu:0"]}, None),
    ],
)
def test_shares_of_the_machine_are_told_in_words(
    ours: dict[str, Any], theirs: dict[str, Any], told: str | None
) -> None:
    assert shares_of_machine(header(**ours), header(**theirs)) == ([told] if told else [])


@pytest.mark.parametrize(
    ("key", "was", "now", "told"),
    [
        ("devices", ["cpu:0", "cpu:1"], ["cpu:0"], "the devices were cpu:0 and cpu:1, are now cpu:0"),
        ("gpu", None, "Some GPU", "the GPU was none, is now Some GPU"),
        ("versions.torch", "2.1", "2.2", "the version of torch was 2.1, is now 2.2"),
        ("options.max_ngram", 3, UNSET, "the option max ngram was 3, is now not recorded"),
        ("sampling.temperature", 1.0, 0.8, "the temperature was 1, is now 0.8"),
        ("row_invariant", True, False, "the row-invariance of passes was yes, is now no"),
    ],
)
def test_changes_of_conditions_are_told_in_words(key: str, was: object, now: object, told: str) -> None:
    assert changed(key, was, now) == told


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wall_time": [0.0], "prefill_time": [0.0]}, "question 1, turn 1 has 0 seconds"),
        ({"wall_time": [1e-300], "prefill_time": [0.0]}, "question 1, turn 1 has 1e-300 seconds"),
        ({"new_tokens": [0], "token_ids": None}, "question 1, turn 1 has 0 new tokens"),
    ],
)
def test_no_time_and_no_tokens_are_refused(tmp_path: Path, side: int, changes: dict[str, Any], message: str) -> None:
    paths = files(tmp_path, timed({1: 1.0}), timed({1: 2.0}))
    record = json.loads(paths[side].read_text())
    record["choices"][0] |= changes
    record["choices"][0] = {key: value for key, value in record["choices"][0].items() if value is not None}
    paths[side].write_text(json.dumps(record) + "\n")
    assert message in error_of(*paths) and str(paths[side]) in error_of(*paths)


def test_files_of_other_benchmarks_and_without_data_are_refused(tmp_path: Path, ten: Paths) -> None:
    other = write(tmp_path / "other" / "pld.jsonl", [answer("HumanEval/0")])
    assert "have no question in common (they begin with 'HumanEval/0' and 0)" in error_of(other, ten[1])
    assert "holds no answers" in error_of(empty(tmp_path / "empty.jsonl"), ten[1])
    failed = [replace(choice([[1]], [1.0]), turns=["ERROR"], token_ids=None)]
    nothing = write(tmp_path / "failed" / "pld.jsonl", [answer(3, choices=failed)])
    assert "no question was finished in both" in error_of(nothing, ten[1])
    header_path(ten[0]).write_text("{")
    assert "pld.run.json is not valid JSON" in error_of(*ten)


def empty(path: Path) -> Path:
    path.write_text("")
    return path


def test_command_line_prints_every_figure(tmp_path: Path, ten: Paths) -> None:
    done = run_script("speed.py", "--file-path", "pld.jsonl", "--base-path", ten[1], "--spec-bench", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    s = summarize(*ten)
    interval = f"{s.low:.2f} to {s.high:.2f}"
    for text in (
        "pld against autoregressive",
        s.conditions,
        "1.83x",
        interval,
        "50.0",
        "10.1",
        "5.5",
        "1.92x",
        "10.0+50.0",
        "83",
    ):
        assert text in done.stdout, text
    assert "Spec-Bench speedup" in done.stdout and "(mean of rates)" in done.stdout
    assert "not significant" not in done.stdout and "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_command_line_marks_what_is_not_significant(tmp_path: Path) -> None:
    uneven = {q: 1.0 + (q % 2) for q in range(10)}
    paths = files(tmp_path, timed(uneven), timed({q: 2.5 - (q % 2) for q in range(10)}), created="2025-02-02")
    arguments = ("--file-path", paths[0], "--base-path", paths[1])
    assert "not significant" in run_script("speed.py", *arguments, cwd=tmp_path).stdout
    few = files(tmp_path / "few", timed({1: 1.0}), timed({1: 2.0}), created="2025-02-02")
    shown = run_script("speed.py", "--file-path", few[0], "--base-path", few[1], cwd=tmp_path).stdout
    assert "too few questions" in shown and "note: not interleaved" in shown


def test_command_line_prints_one_json_document(tmp_path: Path, ten: Paths) -> None:
    arguments = ("--file-path", ten[0], "--base-path", ten[1], "--json")
    assert json.loads(run_script("speed.py", *arguments, cwd=tmp_path).stdout) == [asdict(summarize(*ten))]
    done = run_script("speed.py", *arguments, "--by", "category", cwd=tmp_path)
    assert json.loads(done.stdout) == [asdict(row) for row in summarize_by_category(*ten)]


@pytest.mark.parametrize(("columns", "left_out", "flags"), [(80, True, ["--by", "category"]), (100, False, [])])
def test_a_terminal_shows_names_whole_and_what_it_has_room_for(
    tmp_path: Path, columns: int, left_out: bool, flags: list[str]
) -> None:
    rows, base = (timed(dict.fromkeys(range(6), s), category="math_reasoning") for s in (1.0, 2.0))
    method = write(tmp_path / "autoregressive-all.jsonl", [waiting(row) for row in rows], header("autoregressive-all"))
    base_path = write(tmp_path / "autoregressive.jsonl", base)
    lines = in_terminal("speed.py", "--file-path", method, "--base-path", base_path, *flags, columns=columns)
    name = "math_reasoning" if flags else "autoregressive-all"
    assert sum(line.strip().startswith(f"{name} ") for line in lines) >= 2
    legend = next(number for number, line in enumerate(lines) if line.startswith("speedup:"))
    notes = [line for line in lines if "left out; widen the terminal to" in line]
    tables = [line for line in lines[:legend] if line not in notes]
    assert max(map(len, tables)) <= columns and all("…" not in line for line in lines)
    assert len(notes) == left_out and any("loops" in line for line in tables) != left_out


def waiting(one: Answer) -> Answer:
    """With waiting for a draft, which has a column of its own."""
    return replace(one, choices=[replace(c, wait_time=c.draft_time) for c in one.choices])


def many(folder: Path, lines: int) -> Paths:
    """Files of that many lines of 64 tokens with ids as they occur, which are soon written: the same answers again."""
    folder.mkdir()
    for name, per_pass in (("pld", 3), ("autoregressive", 1)):
        ids = [[(seed + 1) * 997 * token % 49152 for token in range(64)] for seed in range(8)]
        kinds = [answer(0, choices=[choice([row], [1 + row[1] / 49152], per_pass=per_pass)]).to_line() for row in ids]
        texts = [kinds[q % 8].replace(b'"question_id": 0', b'"question_id": %d' % q) for q in range(lines)]
        (folder / f"{name}.jsonl").write_bytes(b"".join(texts))
        header_path(folder / f"{name}.jsonl").write_text(json.dumps(keys(name)))
    return folder / "pld.jsonl", folder / "autoregressive.jsonl"


def test_many_lines_take_little_memory(tmp_path: Path) -> None:
    """The answers themselves, which stay, some 3 KB a line; beside them the file and what a line is parsed to."""
    paths = many(tmp_path / "many", 1000)
    size = sum(path.stat().st_size for path in paths)
    summarize(*paths)  # what is imported
    tracemalloc.start()
    summarize(*paths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size + 2 * 1000 * 3100


def test_what_is_packed_says_the_same(ten: Paths) -> None:
    run = Run.read(ten[0])
    for question, read in read_answers(ten[0]).items():
        (plain,), (packed,) = read.choices, run.answers[question].choices
        assert list(packed.accept_lengths) == plain.accept_lengths and packed.new_tokens == plain.new_tokens
        for key in ("token_ids", "drafted", "accepted"):
            assert [list(turn) for turn in getattr(packed, key)] == getattr(plain, key)
    assert [list(numbers([2**31 - 1, -1])), list(numbers([2**62])), list(numbers([0.5])), numbers([2**64])] == [
        [2**31 - 1, -1],
        [2**62],
        [0.5],
        [2**64],
    ]


def test_command_line_turns_a_mistake_into_one_sentence(tmp_path: Path, ten: Paths) -> None:
    done = run_script("speed.py", "--file-path", "pdl.jsonl", "--base-path", ten[1], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: pdl.jsonl does not exist; did you mean 'pld.jsonl'?{os.linesep}"
