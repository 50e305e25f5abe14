"""A run: one answer file with its header."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evaluation.answers.files import uncompressed
from evaluation.answers.header import Failure, RunHeader, read_header
from evaluation.answers.kinds import QuestionId
from evaluation.answers.packing import pack
from evaluation.answers.record import Answer, read_answers
from methods import VARIANT


@dataclass(frozen=True)
class Run:
    """One answer file with its header, which is None beside Spec-Bench's files."""

    path: Path
    answers: dict[QuestionId, Answer]
    header: RunHeader | None

    @classmethod
    def read(cls, path: str | Path) -> "Run":
        return cls(uncompressed(path), read_answers(path, pack), read_header(path))

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
