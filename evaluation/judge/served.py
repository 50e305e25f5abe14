"""Whether a server's speculation changes its own output: each of its configurations beside its plain one."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from evaluation.answers.kinds import QuestionId
from evaluation.answers.run import Run
from evaluation.judge.change import interval_words
from evaluation.judge.compare import pair
from evaluation.judge.equality import Comparison, compare, shared_words
from evaluation.judge.stats import Speedup, speedup
from methods.table import PLAIN, SERVER


@dataclass(frozen=True)
class Served:
    """A configuration of a server, by its name, beside the plain one. `gain`: its speed over the plain one's."""

    name: str
    comparison: Comparison
    gain: Speedup

    @property
    def lossless(self) -> bool:
        return self.comparison.equal

    @property
    def speed_words(self) -> str:
        return f"{self.gain.ratio:.2f}x ({interval_words(self.gain.low, self.gain.high)})"

    @property
    def sentence(self) -> str:
        """The verdict on its speculation."""
        said = "is lossless" if self.lossless else "changes its output"
        equality = f"{self.comparison.line}, {shared_words(self.comparison)}"
        return f"{self.name}: its speculation {said} here: {equality}; {self.speed_words} of the plain server's speed"


def name_of(run: Run) -> str | None:
    """The name of the server that a run has asked; None of other methods."""
    header = run.header
    return str((header.options or {}).get("name", PLAIN)) if header and header.method == SERVER else None


def against_plain(runs: Iterable[Run], question_ids: Collection[QuestionId] | None = None) -> list[Served]:
    """Every greedy configuration beside the plain one, of runs that did the same work; none where there is no plain
    one."""
    named = {name: run for run in runs if run.finished and (name := name_of(run)) is not None}
    plain = named.pop(PLAIN, None)
    others = [run for run in named.values() if run.header and run.header.greedy]
    return [] if plain is None else [_beside(plain, run, question_ids) for run in others]


def _beside(plain: Run, run: Run, question_ids: Collection[QuestionId] | None) -> Served:
    pairs = pair(run, plain, question_ids).pairs
    return Served(run.label, compare(run, plain, question_ids), speedup(pairs))
