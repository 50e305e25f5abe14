"""What the replicas of a launch leave is put together whole: answers, failures, and what was found out on the way."""

from pathlib import Path
from typing import Any

import pytest

from evaluation.answers.header import RunHeader, read_header
from evaluation.answers.record import read_answers
from evaluation.answers.writer import AnswerFile
from evaluation.judge.fit import window
from evaluation.judge.groups import read_groups
from evaluation.launch.parts import read_part
from methods.errors import UserError
from tests.answer_files import answer, header, write

Settled = dict[str, Any]


def leave_part(folder: Path, replica: int, questions: list[int], **found: Any) -> Path:
    """A part as a replica leaves it, which notes what it finds out before its first answer."""
    with AnswerFile.open(folder / f"parts/pearl.{replica}.jsonl", header("pearl")) as part:
        for key, value in found.items():
            part.note(key, value)
        for question in questions:
            part.append(answer(question))
        return part.path


def merge(folder: Path, parts: list[Path], base: RunHeader | None = None) -> RunHeader:
    """The header of the method's own file when it has taken over the parts."""
    with AnswerFile.open(folder / "pearl.jsonl", base or header("pearl")) as file:
        for path in parts:
            file.take_over(*read_part(path, header("pearl")))
    told = read_header(file.path)
    assert told == file.header
    return told


@pytest.mark.parametrize(
    ("ours", "theirs", "together"),
    [
        ({"gamma": 4}, {"gamma": 4}, {"gamma": 4}),
        ({"gamma": 6}, {"gamma": 4}, {"gamma": [4, 6]}),
        ({"gamma": 4}, None, {"gamma": 4}),
        (None, None, None),
    ],
)
def test_what_replicas_have_found_out_is_kept(
    ours: Settled | None, theirs: Settled | None, together: Settled | None, tmp_path: Path
) -> None:
    parts = [leave_part(tmp_path, n, [n], taps=[-1], settled=settled) for n, settled in enumerate((ours, theirs))]
    found = merge(tmp_path, parts)
    assert (found.taps, found.settled) == ([-1], together)
    assert sorted(read_answers(tmp_path / "pearl.jsonl")) == [0, 1]


def test_what_a_replica_found_out_before_it_died_says_nothing_of_the_answers(tmp_path: Path) -> None:
    parts = [leave_part(tmp_path, 0, [], settled={"gamma": 9}), leave_part(tmp_path, 1, [1], settled={"gamma": 4})]
    assert merge(tmp_path, parts).settled == {"gamma": 4}


def test_failures_of_replicas_are_kept_until_they_are_answered(tmp_path: Path) -> None:
    failures = [{"question_id": question, "error": "ValueError: no"} for question in (1, 2)]
    parts = [leave_part(tmp_path, 0, [0], failures=failures[:1]), leave_part(tmp_path, 1, [1], failures=failures[1:])]
    assert [failure["question_id"] for failure in merge(tmp_path, parts).failures] == [2]


def test_a_part_of_other_conditions_is_refused(tmp_path: Path) -> None:
    """An interrupted launch may have left parts and no answer of the method's own, whose header is replaced then."""
    path = leave_part(tmp_path, 0, [0])
    with pytest.raises(UserError, match=r"pearl\.0\.jsonl was made with max_new_tokens=64, now 32; choose another"):
        read_part(path, header("pearl", max_new_tokens=32))
    assert len(read_answers(path)) == 1


def test_a_continued_file_names_all_that_its_launches_have_chosen(tmp_path: Path) -> None:
    """The theory takes the windows that the passes show where they have changed, here of one token each."""
    place = tmp_path / "mini_bench/tiny"
    about = {"options": {"gamma": "auto", "without": "nothing"}, "draft": {"source": "tiny/draft"}, "ranks": 2}
    write(place / "autoregressive.jsonl", [answer(1), answer(2)], header("autoregressive"))
    for question, gamma in ((1, 4), (2, 6)):
        with AnswerFile.open(place / "pearl.jsonl", header("pearl", **about)) as file:
            file.settle({"gamma": gamma})
            file.append(answer(question))
    told = read_header(place / "pearl.jsonl")
    assert told is not None and told.settled == {"gamma": [4, 6]}
    (pearl,) = (result for result in read_groups([tmp_path])[0].results if result.method == "pearl")
    assert window(pearl) == 1
