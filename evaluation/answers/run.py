"""A run: one answer file with its header, or those of several launches of the same comparison.

The first launch lies in FOLDER/<benchmark>/<pair>/, the others in FOLDER/launch-2/<benchmark>/<pair>/ and so on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from evaluation.answers.files import compressed, launch_folder, told, uncompressed
from evaluation.answers.header import Failure, RunHeader, read_header, told_together
from evaluation.answers.kinds import QuestionId
from evaluation.answers.packing import pack, renumbered
from evaluation.answers.record import Answer, read_answers
from methods import VARIANT

LAUNCH = re.compile(r"launch-([2-9]|[1-9]\d+)").fullmatch  # the folder of a later launch
REPEATS = 1 << 20  # more than a launch has: where launches are taken together, a repeat's number tells its launch


def launch_of(repeat: int) -> int:
    """The launch that a repeat of a run is of, from 0."""
    return repeat // REPEATS


def repeat_within(repeat: int) -> int:
    """Its number within the launch."""
    return repeat % REPEATS


def first_launch(path: Path) -> Path:
    """The file of the first launch that an answer file of a later one belongs to; the file itself if it is of none."""
    if len(path.parents) < 3 or not LAUNCH(path.parents[2].name):
        return path
    place = path.parents[2]
    return place.parent / path.relative_to(place)


@dataclass(frozen=True)
class Run:
    """The answers of a method with their header, which is None beside Spec-Bench's files.

    Of several launches (`read_launches`) a question has the repeats of all, and the header says what was found in any
    of them. `launches`: the header of each. `notes`: what lies beside and is not in it."""

    path: Path
    answers: dict[QuestionId, Answer]
    header: RunHeader | None
    launches: tuple[RunHeader, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, number: int = 1) -> "Run":
        """One answer file alone. `number`: of its launch, which its repeats are to tell."""
        answers, header = read_answers(path, partial(_kept, number)), read_header(path)
        return cls(uncompressed(path), answers, header, (header,) if header else ())

    @classmethod
    def read_launches(cls, path: str | Path) -> "Run":
        """The same with the later launches that lie beside it, if it is of the first. One that is not at its end, or
        that was made under other conditions, is left out with a note."""
        first = cls.read(path)
        later = {number: cls.read(place, number) for number, place in later_launches(first.path).items()}
        faults = [(run.path, _fault(first, run)) for run in later.values()]
        run = _together([first, *(run for run in later.values() if _fault(first, run) is None)])
        return replace(run, notes=tuple(f"left out: {place}, {fault}" for place, fault in faults if fault))

    @property
    def ended(self) -> bool:
        """Whether every question that it was given is answered or has failed, as far as its header tells."""
        return self.header is None or len(self.questions) >= (self.header.questions or 0)

    @property
    def method(self) -> str:
        return self.header.method if self.header else next(iter(self.answers.values())).model_id

    @property
    def label(self) -> str:
        """The method, or the variant of it that the file is named after."""
        return self.path.stem if self.path.stem.startswith(self.method + VARIANT) else self.method

    @property
    def questions(self) -> set[QuestionId]:
        """The questions the run was given: answered or failed."""
        return set(self.answers) | {failure["question_id"] for failure in self.failures}

    @property
    def failures(self) -> list[Failure]:
        """The questions that failed, each with its error; Spec-Bench's files have them among the answers."""
        return self.header.failures if self.header else []

    @property
    def tree(self) -> bool:
        """Whether it drafts trees."""
        return self.header is not None and self.header.shape == "tree"

    @cached_property
    def finished(self) -> set[QuestionId]:
        """The questions with at least one repeat in which no turn failed and one turn fits the context."""
        return {q for q, answer in self.answers.items() if any(choice.usable for choice in answer.choices)}

    @property
    def too_long(self) -> set[QuestionId]:
        """The questions of which not one turn fits the context."""
        return {q for q, answer in self.answers.items() if all(choice.never_fits for choice in answer.choices)}


def later_launches(first: Path) -> dict[int, Path]:
    """The files of the later launches that hold something, by number, of the file of a first one."""
    first = first.absolute()
    if len(first.parents) < 3 or first_launch(first) != first:
        return {}
    output = first.parents[2]
    numbers = sorted(int(place.name.removeprefix("launch-")) for place in output.glob("launch-*") if LAUNCH(place.name))
    files = {number: launch_folder(output, number) / first.relative_to(output) for number in numbers}
    return {number: file for number, file in files.items() if holds_answers(file)}


def holds_answers(path: Path) -> bool:
    """Whether an answer file is there, compressed or not, and holds something."""
    return any(file.exists() and file.stat().st_size for file in (path, compressed(path)))


def _fault(first: Run, later: Run) -> str | None:
    """Why a launch cannot be judged together with the first."""
    if first.header is None or later.header is None:
        return "which has no run header"
    if differences := first.header.differences(later.header):
        named = [f"{key}={told(now)}, where the first has {told(was)}" for key, (was, now) in differences.items()]
        return f"made with {'; '.join(named)}"
    return None if later.ended else f"{len(later.questions)} of {later.header.questions} questions"


def _together(runs: Sequence[Run]) -> Run:
    """The first with the repeats of the others."""
    answers: dict[QuestionId, Answer] = {}
    for run in runs:
        for question, answer in run.answers.items():
            before = answers.get(question)
            answers[question] = replace(before, choices=before.choices + answer.choices) if before else answer
    headers = tuple(header for run in runs for header in run.launches)
    return Run(runs[0].path, answers, told_together(headers) if headers else None, headers)


def _kept(number: int, answer: Answer) -> Answer:
    """What is kept of an answer of a launch."""
    return renumbered(pack(answer), (number - 1) * REPEATS)
