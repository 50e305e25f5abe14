"""The runs below a folder, for the browser: a row for each, figures of those that one folder holds, and a question's
answers side by side, as they can be replayed without a model."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.answers.header import RunHeader, read_header
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import Choice
from evaluation.answers.run import Run
from evaluation.judge.equality import Comparison, compare
from evaluation.judge.gates import compare_all
from evaluation.judge.groups import HEADER, Group, Result, read_groups
from evaluation.judge.summary import Summary, summarize
from evaluation.judge.wording import sampling_words
from evaluation.launch.benchmarks import benchmarks_here, load_questions
from evaluation.launch.hub import is_cached, is_hub_id
from evaluation.page.lanes import Json, Lane, passes_of
from methods import BASELINE, METHODS
from methods.engine.loader import find_checkpoint
from methods.errors import UserError

KEPT = 8  # folders whose answers stay in memory


@dataclass
class Runs:
    """All below `folder`. A browser names a folder and a run in it by the ids that `rows` gives, and nothing else."""

    folder: Path
    _read: dict[str, "Leaf"] = field(default_factory=dict)
    _tokenizers: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[Json]:
        """What the run headers say. Those that cannot be read are told as such."""
        found = []
        for path in self._headers():
            place = {"folder": path.parent.relative_to(self.folder).as_posix(), "run": _name(path)}
            try:
                header = read_header(path.with_name(_name(path) + ".jsonl"))
            except UserError as error:
                found.append(place | {"error": str(error)})
                continue
            if header is not None:
                found.append(place | _row(header))
        return found

    def _headers(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*" + HEADER) if path.parent.name != "parts")

    def leaf(self, name: str) -> "Leaf":
        """The folder of that id. Raises UserError for any other name."""
        known = {path.parent.relative_to(self.folder).as_posix(): path.parent for path in self._headers()}
        if name not in known:
            raise UserError(f"there are no runs in {name[:80]!r} below {self.folder}; reload the page")
        leaf = Leaf(known[name])
        if name in self._read and self._read[name].state == leaf.state:
            return self._read[name]
        self._read = dict(list(self._read.items())[1 - KEPT :]) | {name: leaf}
        return leaf

    def tokenizer(self, header: RunHeader | None) -> Any:
        """That of the run's target; None where it is not here, for nothing is downloaded to look at a run."""
        source = header.target["source"] if header and header.target else ""
        if source not in self._tokenizers:
            self._tokenizers[source] = self._load(source)
        return self._tokenizers[source]

    def _load(self, source: str) -> Any:
        if not source or (is_hub_id(source) and not is_cached(source)):
            return None
        try:
            return find_checkpoint(source).tokenizer
        except UserError:
            return None

    def answers(self, folder: str, question: QuestionId) -> Json:
        """Every run's answer to a question, turn by turn: the first repeat."""
        leaf = self.leaf(folder)
        lanes = []
        for result in leaf.results:
            answer = result.run.answers.get(question)
            if answer is not None and not answer.choices[0].any_failed:
                lanes.append(self._lanes(result, answer.choices[0]))
        if not lanes:
            raise UserError(f"no run in {folder} has an answer to the question {str(question)[:40]!r}; choose another")
        return {"turns": leaf.turns(question), "answers": [list(turn) for turn in zip(*lanes, strict=False)]}

    def _lanes(self, result: Result, choice: Choice) -> list[Json]:
        tokenizer = self.tokenizer(result.header)
        return [lane_of(result, choice, turn, tokenizer) for turn in range(len(choice.turns))]


@dataclass
class Leaf:
    """A folder that holds the answer files of some runs of one pair and benchmark."""

    path: Path

    @cached_property
    def state(self) -> object:
        """Another one when a file of the folder has changed."""
        return sorted((path.name, path.stat().st_mtime_ns) for path in self.path.iterdir())

    @cached_property
    def groups(self) -> list[Group]:
        return read_groups([self.path])

    @property
    def results(self) -> list[Result]:
        """In the order of the table of methods, the baseline first."""
        found = [result for group in self.groups for result in group.results]
        return sorted(found, key=lambda result: result.method != BASELINE)

    @cached_property
    def figures(self) -> Json:
        """Of each run its figures and its speedup by category; and the questions."""
        equality = compare_all(self.groups)
        runs = {_stem(result.run): _figures(result, equality.get(result)) for result in self.results}
        seen: dict[QuestionId, str] = {}
        for result in self.results:
            seen |= {question: answer.category for question, answer in result.run.answers.items()}
        questions = [{"id": question, "category": category} for question, category in seen.items()]
        return {"runs": runs, "questions": questions}

    def run(self, name: str) -> Run:
        """Raises UserError where the folder has no such run."""
        for result in self.results:
            if _stem(result.run) == name:
                return result.run
        raise UserError(f"{self.path} has no run {name[:80]!r}; reload the page")

    def turns(self, question: QuestionId) -> list[str]:
        """What was asked, where the benchmark is here."""
        header = next((result.header for result in self.results if result.header), None)
        if header is None or header.benchmark not in benchmarks_here():
            return []
        asked = load_questions(header.benchmark).questions
        return next((q.turns for q in asked if q.question_id == question), [])


def compared(one: Run, other: Run) -> Json:
    """The second run against the first: speed, where both did the same work on the same machine, and output."""
    equality = compare(one, other)
    parted = [turn for turn in equality.turns if turn.status == "different" and turn.difference]
    told: Json = {
        "equal": equality.line,
        "notes": list(equality.notes),
        "parted": [[turn.question_id, turn.turn, turn.difference.position] for turn in parted if turn.difference],
    }
    try:
        told["speed"] = _summary(summarize(other, one))
    except UserError as error:
        told["error"] = str(error)
    return told


def lane_of(result: Result, choice: Choice, turn: int, tokenizer: Any) -> Json:
    """A turn as the browser replays it; its text alone where no tokenizer is here, or no ids."""
    header = result.header
    spec = METHODS.get(header.method)
    lane: Json = {
        "name": _stem(result.run),
        "about": spec.about if spec else "",
        "loop": header.loop,
        "exact": header.exact and header.greedy,
        "wall": choice.wall_time[turn],
        "prefill": choice.prefill_time[turn] if choice.prefill_time else 0.0,
        "finish": choice.finish[turn] if choice.finish else "",
        "timed": choice.pass_time is not None,
    }
    if tokenizer is None or choice.token_ids is None:
        return lane | {"text": choice.turns[turn]}
    loop = header.loop if choice.nodes else None  # old files of PEARL do not tell which row judged a draft
    return lane | {"passes": Lane(loop, tokenizer).add(passes_of(choice, turn))}


def _name(header: Path) -> str:
    return header.name.removesuffix(HEADER)


def _stem(run: Run) -> str:
    return run.path.name.removesuffix(".jsonl")


def _row(header: RunHeader) -> Json:
    return {
        "method": header.method,
        "pair": header.pair,
        "benchmark": header.benchmark,
        "dtype": header.dtype,
        "sampling": sampling_words(header.sampling),
        "questions": header.questions,
        "threads": header.threads,
        "created": (header.created or "")[:10],
        "options": ", ".join(f"{name} {value}" for name, value in (header.options or {}).items()),
        "machine": header.gpu or header.cpu or "",
    }


def _figures(result: Result, equality: Comparison | None) -> Json:
    found: Json = {"finished": len(result.run.finished)}
    if equality is not None:
        found["identical"] = [equality.identical, len(equality.questions)]
    if result.overall is not None:
        found |= _summary(result.overall)
        found["categories"] = {part.group: _summary(part) for part in result.categories}
    return found


def _summary(summary: Summary) -> Json:
    names = ("questions", "speedup", "low", "high", "significant", "mat", "acceptance_rate", "lossy", "repetition")
    told = {name: getattr(summary, name) for name in names}
    return told | {"speed": summary.tokens_per_second, "base_speed": summary.baseline_tokens_per_second}
