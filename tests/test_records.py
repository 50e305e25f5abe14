"""Answer files: what is written can be read back, and no crash, full disk or second run can spoil what is there."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.answers.files import header_path
from evaluation.answers.header import read_header
from evaluation.answers.record import Choice, read_answers
from evaluation.answers.writer import AnswerFile
from evaluation.launch.worker import to_choice
from methods.base import Generation
from methods.errors import UserError
from tests.answer_files import ROOT, answer, choice, header, keys, write, write_spec_bench


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "mini_bench" / "tiny" / "pld.jsonl"


def test_what_is_written_is_read_back(path: Path) -> None:
    two_turns = choice([[5, 6, 7], [8]], [0.5, 0.25], per_pass=2)
    again = choice([[5, 6, 7], [9]], [0.5, 0.25], index=1)
    answers = [answer(81, choices=[two_turns, again]), answer("HumanEval/0", "coding")]
    write(path, answers)
    assert list(read_answers(path).values()) == answers
    assert read_header(path) == header("pld")


def test_line_has_the_keys_spec_bench_reads(path: Path) -> None:
    write(path, [answer(choices=[choice([[5, 6, 7], [8]], [0.5, 0.25], per_pass=2)])])
    record = json.loads(path.read_text())
    assert list(record) == ["question_id", "category", "answer_id", "model_id", "choices", "tstamp"]
    first = record["choices"][0]
    assert first["index"] == 0 and first["decoding_steps"] == [2, 1] and first["accept_lengths"] == [2, 1, 1]
    assert first["new_tokens"] == [3, 1] and first["wall_time"] == [0.5, 0.25] and "margins" not in first


def test_the_time_of_each_pass_is_read_back_and_older_lines_lack_it(path: Path) -> None:
    turns = [Generation([1, 2, 3], [1, 2], [0, 1], [0, 1], [1, 2], finish="length", ends=[0.123456, 0.654321])]
    turns[0].wall_time, turns[0].prefill_time = 0.654321, 0.123456
    timed = to_choice(turns, ["abc"], 0)
    assert timed.pass_time == [[0.12346, 0.53086]]  # rounded ends, so that sums do not drift
    write(path, [answer(1, choices=[timed]), answer(2)])
    found = read_answers(path)
    assert found[1].choices[0] == timed and found[2].choices[0].pass_time is None
    turns[0].ends.pop()  # a loop that does not tell
    assert to_choice(turns, ["abc"], 0).pass_time is None


def test_spec_bench_file_is_read_and_its_failed_turns_are_seen(tmp_path: Path) -> None:
    rows = [
        (81, "writing", ["Once", "ERROR"], [10, 10], [1.0, 1.0]),
        (121, "qa", ["ERROR"], [], []),
        (122, "qa", ["Yes."], [4], [0.5]),
    ]
    path = write_spec_bench(tmp_path / "eagle.jsonl", rows)
    answers = read_answers(path)
    assert [[c.failed(t) for t in range(len(c.turns))] for a in answers.values() for c in a.choices] == [
        [False, True],
        [True],
        [False],
    ]
    assert answers[122].choices[0].new_tokens == [4] and answers[122].choices[0].token_ids is None
    assert read_header(path) is None


def test_older_spec_bench_files_without_decoding_steps_are_read(tmp_path: Path) -> None:
    path = write_spec_bench(tmp_path / "sps.jsonl", [(81, "writing", ["Once"], [10], [1.0])])
    path.write_text(path.read_text().replace("decoding_steps", "idxs"))
    assert read_answers(path)[81].choices[0].decoding_steps is None


def test_the_text_error_is_an_answer_where_tokens_are_recorded(path: Path) -> None:
    write(path, [answer(choices=[Choice(["ERROR"], [1], [0.1], [1], decoding_steps=[1], token_ids=[[7]])])])
    assert not read_answers(path)[81].choices[0].any_failed


@pytest.mark.parametrize("again", [81, "81"])
def test_a_question_answered_twice_is_refused(path: Path, again: int | str) -> None:
    write(path, [answer(81)])
    path.write_text(path.read_text() + answer(again).to_line().decode())
    with pytest.raises(UserError, match=f"line 2: question {again!r} is answered a second time"):
        read_answers(path)
    with pytest.raises(ValueError, match="same 'index'"):
        answer(choices=[choice([[1]], [1.0]), choice([[1]], [1.0])])


def test_files_that_cannot_be_read_say_what_to_do(path: Path) -> None:
    write(path, [answer()])
    with pytest.raises(UserError, match=r"plb\.jsonl does not exist; did you mean 'pld\.jsonl'\?"):
        read_answers(path.with_name("plb.jsonl"))
    with pytest.raises(UserError, match="does not exist; check the path"):
        read_answers(path.parent / "nowhere" / "pld.jsonl")
    with pytest.raises(UserError, match="is a folder; name one answer file"):
        read_answers(path.parent)
    path.write_text("")
    with pytest.raises(UserError, match="holds no answers: it is empty"):
        read_answers(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_a_user_error(path: Path) -> None:
    write(path, [answer()]).chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read_answers(path)


def test_a_refused_file_is_not_made(path: Path) -> None:
    path.parent.mkdir(parents=True)
    header_path(path).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        AnswerFile.open(path, header())
    assert [p.name for p in path.parent.iterdir()] == ["pld.run.json"]


def test_old_headers_say_no_context_length_and_are_continued(path: Path) -> None:
    write(path, [answer(81)], header())
    with AnswerFile.open(path, header(context_length=2048)) as file:
        assert file.done == {81}


@pytest.mark.parametrize("torn", ['{"question_id": 82, "cat', "\0\0\0\0", '{"question_id": 82, "cat\n', '{"a\n\n \n'])
def test_a_torn_last_line_is_left_out_and_dropped_on_resume(path: Path, torn: str) -> None:
    write(path, [answer(81)])
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    assert list(read_answers(path)) == [81]
    with AnswerFile.open(path, header()) as file:
        assert path.read_bytes() == whole
        file.append(answer(82))
    assert list(read_answers(path)) == [81, 82]


def test_a_last_line_without_its_end_is_read_but_made_again_on_resume(path: Path) -> None:
    write(path, [answer(81), answer(82)])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert list(read_answers(path)) == [81, 82]
    with AnswerFile.open(path, header()) as file:
        assert file.done == {81}
        file.append(answer(82))
    assert list(read_answers(path)) == [81, 82]


def test_resume_keeps_answers_and_the_first_header(path: Path) -> None:
    write(path, [answer(81)], header())
    later = header(created="2025-02-02", floor_seconds_per_token=0.03, read_bandwidth=1)
    with AnswerFile.open(path, later) as file:
        assert file.done == {81}
        with pytest.raises(ValueError, match="already has an answer"):
            file.append(answer(81))
        file.append(answer(82))
    assert list(read_answers(path)) == [81, 82]
    assert read_header(path) == header()


def test_other_conditions_are_refused_each_by_name(path: Path) -> None:
    write(path, [answer(81)], header(max_new_tokens=128))
    before = path.read_bytes(), header_path(path).read_bytes()
    target = {"source": "tiny/model", "revision": "r2", "weight_bytes": 100}
    with pytest.raises(UserError) as error:
        AnswerFile.open(path, header(target=target, gamma=3))
    assert "was made with max_new_tokens=128, now 64, target.revision=r1, now r2, gamma=unset, now 3" in str(
        error.value
    )
    assert "choose another --output or delete that file" in str(error.value)
    assert before == (path.read_bytes(), header_path(path).read_bytes())


def test_deleting_the_answer_file_is_enough_to_start_anew(path: Path) -> None:
    write(path, [answer(81)], header(max_new_tokens=128))
    path.unlink()
    write(path, [answer(81)], header())
    assert read_header(path) == header()


def test_a_compressed_file_is_read_by_either_name_but_not_continued(path: Path) -> None:
    write(path, [answer(81), answer(82)])
    expected = read_answers(path)
    packed = path.with_name("pld.jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert read_answers(path) == read_answers(packed) == expected
    assert read_header(packed) == read_header(path) == header()
    with pytest.raises(UserError, match="gunzip it to go on"):
        AnswerFile.open(path, header())
    assert not path.exists()
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a whole gzip file"):
        read_answers(path)


def test_answers_without_a_header_are_not_continued(path: Path) -> None:
    write(path, [answer(81)])
    header_path(path).unlink()
    with pytest.raises(UserError, match=r"has no run header pld\.run\.json"):
        AnswerFile.open(path, header())


def test_failures_are_recorded_retried_and_forgotten_when_answered(path: Path) -> None:
    with AnswerFile.open(path, header()) as file:
        file.fail(81, "out of memory")
        file.fail(82, "bad luck")
        file.fail(81, "out of memory again")
    stored = read_header(path)
    assert stored is not None and stored["failures"] == [
        {"question_id": 82, "error": "bad luck"},
        {"question_id": 81, "error": "out of memory again"},
    ]
    with AnswerFile.open(path, header()) as file:
        assert file.done == set() and len(file.failures) == 2
        file.append(answer(81))
    assert read_header(path) == header(failures=[{"question_id": 82, "error": "bad luck"}])


def test_a_failure_whose_answer_was_written_before_a_crash_is_forgotten(path: Path) -> None:
    write(path, [answer(81)])
    header_path(path).write_text(json.dumps(keys(failures=[{"question_id": 81, "error": "earlier"}])))
    with AnswerFile.open(path, header()) as file:
        assert file.failures == []
    assert read_header(path) == header()


HOLD = """
import sys, time
from evaluation.answers.writer import AnswerFile
from tests.answer_files import answer, header
file = AnswerFile.open(sys.argv[1], header())
for question in range(10**6):
    file.append(answer(question))
    print(question, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_only_one_process_writes_a_file(path: Path) -> None:
    with start(HOLD, path, 60) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(UserError, match="another run is writing"):
            AnswerFile.open(path, header())
        holder.kill()
    with AnswerFile.open(path, header()) as file:
        assert file.done == {0}


def test_a_killed_run_continues_where_it_was(path: Path) -> None:
    with start(HOLD, path, 0) as writer:
        assert writer.stdout is not None
        while writer.stdout.readline() != "5\n":
            pass
        writer.send_signal(signal.SIGKILL)
    with AnswerFile.open(path, header()) as file:
        count = len(file.done)
        assert count >= 6 and file.done == set(range(count))
        file.append(answer(count))
    assert list(read_answers(path)) == list(range(count + 1))


FILL = """
import resource, sys
from evaluation.answers.writer import AnswerFile
from evaluation.launch.worker import to_choice
from methods.base import Generation
from methods.errors import UserError
from tests.answer_files import answer, header
file = AnswerFile.open(sys.argv[1], header())
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # the disk is full after three answers and a part of a fourth
try:
    for question in range(100):
        file.append(answer(question))
except UserError as error:
    print(error)
"""


def test_a_full_disk_leaves_earlier_answers_whole(path: Path) -> None:
    with start(FILL, path) as writer:
        out, err = writer.communicate(timeout=60)
    answers = list(read_answers(path))
    assert path.read_bytes().endswith(b"\n") and answers == list(range(len(answers))) and answers
    assert f"cannot write {path}" in out and f"its {len(answers)} earlier answers are intact" in out, err
    with AnswerFile.open(path, header()) as file:
        file.append(answer(len(answers)))
    assert len(read_answers(path)) == len(answers) + 1


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .* choose another --output"):
        AnswerFile.open(tmp_path / "file" / "pld.jsonl", header())
    with pytest.raises(UserError, match="cannot write"):
        AnswerFile.open("/dev/full/pld.jsonl", header())


def test_answers_are_frozen() -> None:
    with pytest.raises(AttributeError):
        answer().category = "qa"  # type: ignore[misc]


def test_a_file_continued_by_other_code_names_both_commits(path: Path) -> None:
    for number, commit in enumerate(("aaa", "aaa", "bbb")):
        with AnswerFile.open(path, header(git_commit=commit)) as file:
            file.append(answer(number))
    with AnswerFile.open(path, header(git_commit="ccc")):
        pass  # nothing was added by this one
    kept = read_header(path)
    assert kept is not None
    assert kept["git_commit"] == "aaa, bbb"
