"""Files of a calibration: what disturbed a rank, and `calibration.json`, what came of it all."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Le

from evaluation.answers.files import read_file, write_whole
from evaluation.answers.kinds import Count, Line, Number, Rate
from methods.errors import UserError

CALIBRATION = "calibration.json"
Read = TypeVar("Read")
Seconds = Annotated[float, Ge(0), Le(1e9)]
Verdict = Literal["exact", "near", "busy", "wrong"]


@dataclass(frozen=True)
class Disturbance:
    """What kept a rank from its core during a run of `seconds`: `stolen` seconds of the whole machine, by its host;
    `switches`, times that the core was given to another program. `ends`: when each of its waits had to end, by the
    monotonic clock; `late`: how much later it did."""

    seconds: Seconds
    stolen: Seconds
    switches: Count
    ends: list[Number]
    late: list[Seconds]


@dataclass(frozen=True)
class Calibrated:
    """A method in a calibration. `theory` and `printed`: its speedup as computed, and as the verdict of the run has it;
    of the baseline its tokens per second. `mat_theory`, `mat`: the same of tokens per pass. `overhead`: seconds that a
    round takes beyond what theory says and what its waits are late, the median; `passes`: of either model in a round.
    `lost`: the share of its time for which waits were late. `faults`: what cannot be, however busy the machine."""

    method: Line
    theory: Rate
    printed: Rate
    mat_theory: Rate
    mat: Rate
    overhead: Number
    passes: Rate
    lost: Annotated[float, Ge(0)]
    faults: list[Line]
    verdict: Verdict

    @property
    def deviation(self) -> float:
        """Of the printed speedup, relative."""
        return self.printed / self.theory - 1


@dataclass(frozen=True)
class Calibration:
    """All of a calibration. `pass_seconds`, `draft_seconds`, `link_seconds`: what a pass of the target, one of the
    draft and a message take; `stolen`: the share of the machine's time that its host took; `switches`: per second, of
    a rank, the most."""

    created: Line
    cpu: Line
    git_commit: Line | None
    pass_seconds: Seconds
    draft_seconds: Seconds
    link_seconds: Seconds
    stolen: Annotated[float, Ge(0)]
    switches: Annotated[float, Ge(0)]
    rows: list[Calibrated]
    notes: list[Line]

    @property
    def verdict(self) -> Verdict:
        """That of the worst row."""
        return max((row.verdict for row in self.rows), key=VERDICTS.index)

    @property
    def deviation(self) -> float:
        """The largest of any row."""
        return max(abs(row.deviation) for row in self.rows)


VERDICTS: tuple[Verdict, ...] = ("exact", "near", "busy", "wrong")


def read_disturbance(path: Path) -> Disturbance:
    return _read(path, Disturbance)


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration that lies in a results folder; None where none does."""
    path = folder / CALIBRATION
    return _read(path, Calibration) if path.exists() else None


def write_calibration(folder: Path, found: Calibration) -> Path:
    path = folder / CALIBRATION
    write_whole(path, json.dumps(asdict(found), indent=2).encode() + b"\n")
    return path


def _read(path: Path, kind: type[Read]) -> Read:
    from pydantic import TypeAdapter, ValidationError

    from evaluation.answers.schema import sentence

    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_json(read_file(path))
    except ValidationError as error:
        problem = sentence(error.errors(include_url=False), "calibration")
        raise UserError(f"{path}: {problem}; calibrate again, or delete it") from None
