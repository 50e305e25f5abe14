"""Results folders: every run below them, put beside its baseline and beside the runs that it can be compared with.

Used by `plot.py` and `report.py`. A run is a run header with its answer file, `<benchmark>/<pair>/<method>.jsonl`; its
baseline lies in the same folder. Runs of several folders that did the same work on the same machine are one `Group`.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.answers.header import Role, RunHeader, of_role, read_header
from evaluation.answers.record import Choice
from evaluation.answers.run import Run, first_launch, holds_answers
from evaluation.judge.categories import OVERALL
from evaluation.judge.compare import PairedRuns, pair
from evaluation.judge.summary import Summary, by_category
from evaluation.judge.wording import counted, marked, sampling_words
from methods import BASELINE, METHODS
from methods.errors import UserError
from methods.options import NOTHING
from methods.theory import WITHOUT_PRE_VERIFY

if TYPE_CHECKING:
    import pandas as pd

HEADER = ".run.json"


class LeftOut(Exception):
    """Something cannot be drawn or told from these files. Its text says what it needs, in one line."""


@dataclass(frozen=True, eq=False)
class Result:
    """One run, and its baseline's (None: it has none to be measured by)."""

    run: Run
    header: RunHeader
    base: Run | None

    @property
    def method(self) -> str:
        return self.run.method

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options, as the run had them."""
        return self.header.options or {}

    @property
    def without(self) -> str | None:
        """What it leaves out of PEARL, as given or as it has settled on; None where it is another loop."""
        if self.header.loop != "pearl":
            return None
        if (self.header.settled or {}).get("schedule") == WITHOUT_PRE_VERIFY:
            return "pre-verify"
        return self.options.get("without")

    @property
    def folder(self) -> Path:
        """The results folder, which holds <benchmark>/<pair>/<method>.jsonl."""
        return self.run.path.absolute().parents[2]

    @property
    def work(self) -> str:
        """Equal for runs that did the same work on the same machine."""
        known = {key: self.header[key] for key in ("pair", *of_role(Role.WORK | Role.MACHINE))}
        return json.dumps(known, sort_keys=True)

    @cached_property
    def summaries(self) -> list[Summary]:
        """Against the baseline: one summary per category, the overall one last. Empty where there is nothing to
        compare: it is the baseline, has none, or all its questions failed."""
        if self.method == BASELINE or self.base is None or not self.run.finished:
            return []
        return by_category(self.comparison)

    @cached_property
    def comparison(self) -> PairedRuns:
        """Beside its baseline, which it must have."""
        assert self.base is not None, f"{self.run.path} has no baseline"
        return pair(self.run, self.base)

    @property
    def pairs(self) -> "pd.DataFrame":
        """Its measurements and the baseline's, side by side."""
        return self.comparison.pairs

    @property
    def overall(self) -> Summary | None:
        return self.summaries[-1] if self.summaries else None

    @property
    def categories(self) -> list[Summary]:
        """The summaries of single categories, none if there is but one."""
        parts = [summary for summary in self.summaries if summary.group != OVERALL]
        return parts if len(parts) > 1 else []

    @property
    def summary(self) -> Summary:
        """The overall figures of a run that has them."""
        assert self.overall is not None, f"{self.run.path} has no speedup"
        return self.overall

    @property
    def choices(self) -> list[Choice]:
        """All repeats of all finished questions."""
        answers = self.run.answers.values()
        return [choice for answer in answers for choice in answer.choices if not choice.any_failed]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that did the same work on the same machine. `name`: unlike that of any other group."""

    name: str
    results: list[Result]
    labels: dict[Result, str]  # unlike each other, but for baselines

    @property
    def measured(self) -> list[Result]:
        """The runs that have a speedup."""
        return [result for result in self.results if result.overall is not None]

    @property
    def typical(self) -> list[Result]:
        """One measured run of each method and each of its ablations, for figures in which a sweep has no place: of
        several the one with most options left at their defaults, then the latest. Not the fastest."""
        chosen: dict[object, Result] = {}
        for result in self.measured:
            key = result.method, result.without
            chosen[key] = max(chosen.get(key, result), result, key=_typicality)
        return list(chosen.values())


def read_groups(folders: Iterable[str | Path]) -> list[Group]:
    """All runs below the folders, of each pair and benchmark those with most questions first.

    Raises UserError where there are none, or one of their files cannot be used."""
    runs: dict[Path, Run] = {}  # each file is read once, also of a folder that is named twice
    for folder in folders:
        for path in _answer_paths(Path(folder)):
            if path.absolute() not in runs:
                runs[path.absolute()] = _read(path)
    results = [Result(run, run.header, _baseline(path, runs)) for path, run in list(runs.items()) if run.header]
    by_work: dict[str, list[Result]] = {}
    for result in sorted(results, key=_order):
        by_work.setdefault(result.work, []).append(result)
    names = _labels([group[0] for group in by_work.values()], _name, GROUP_WORDS)
    groups = [Group(name, group, _run_labels(group)) for name, group in zip(names, by_work.values(), strict=True)]
    return sorted(groups, key=lambda group: (_name(group.results[0]), -_questions(group), group.name))


def _questions(group: Group) -> int:
    return max(result.header.questions or 0 for result in group.results)


def _answer_paths(folder: Path) -> list[Path]:
    """Where the answers of the folder's runs are, or would be."""
    if not folder.is_dir():
        raise UserError(f"expected a results folder, got {folder}, which is no folder; check the path")
    if folder.resolve() == Path(folder.resolve().anchor):
        raise UserError(f"expected a results folder, got {folder}, which is the whole disk; name one in it")
    paths = sorted(path for path in folder.rglob("*" + HEADER) if path.parent.name != "parts")
    paths = [path for path in paths if first_launch(path) == path or first_launch(path) not in paths]
    if not paths:
        raise UserError(
            f"{folder} holds no runs (<benchmark>/<pair>/<method>.jsonl, each with its {HEADER}); "
            "name the --output folder of a run"
        )
    return [path.with_name(path.name.removesuffix(HEADER) + ".jsonl") for path in paths]


def _read(path: Path) -> Run:
    """A run, of which nothing may be answered yet."""
    return Run.read_launches(path) if holds_answers(path) else Run(path, {}, read_header(path))


def _baseline(path: Path, runs: dict[Path, Run]) -> Run | None:
    """The run of the baseline in the same folder, which may have no header."""
    base = path.with_name(f"{BASELINE}.jsonl")
    if base not in runs and holds_answers(base):
        runs[base] = Run.read_launches(base)
    return runs[base] if base in runs and runs[base].answers else None


def _typicality(result: Result) -> tuple[int, str]:
    options = METHODS[result.method].options if result.method in METHODS else {}
    defaults = sum(result.options.get(name) == option.default for name, option in options.items())
    return defaults, str(result.header.created)


def _order(result: Result) -> tuple[int, str, list[tuple[bool, float, str]]]:
    """In the order of the table of methods, whole ones before ablations, then by options: numbers by their size, words
    behind them."""
    place = list(METHODS).index(result.method) if result.method in METHODS else len(METHODS)
    options = sorted(result.options.items(), key=lambda option: option[0] != "without")
    return place, result.method, [_size(value) for _, value in options]


def _size(value: object) -> tuple[bool, float, str]:
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, float(value != NOTHING), str(value)


def _name(result: Result) -> str:
    return f"{result.header.pair} · {result.header.benchmark}"


def _labels(
    results: Sequence[Result], name: Callable[[Result], str], words: Sequence[Callable[[Result], str]]
) -> list[str]:
    """Each result's name, with as many of the `words` behind it as tell it from the others of that name."""
    labels = []
    for result in results:
        label, alike = name(result), [other for other in results if name(other) == name(result)]
        for word in words:
            if len({word(other) for other in alike}) > 1:
                label += f", {word(result)}" if word(result) else ""
                alike = [other for other in alike if word(other) == word(result)]
        labels.append(label)
    return labels


def _machine(result: Result) -> str:
    return str(result.header.gpu or result.header.cpu)


# What may tell two groups of one pair and benchmark apart, the most telling first.
GROUP_WORDS: tuple[Callable[[Result], str], ...] = (
    lambda r: r.header.dtype,
    lambda r: sampling_words(r.header.sampling),
    lambda r: f"at most {r.header.max_new_tokens} tokens",
    lambda r: _known(r.header.questions, "question"),
    _machine,
    lambda r: str(r.header.template),
    lambda r: r.folder.name,
    lambda r: str(r.run.path.parent),
)


def _option(name: str) -> Callable[[Result], str]:
    return lambda result: f"{name.replace('_', '-')} {result.options[name]}" if name in result.options else ""


def _without(result: Result) -> str:
    return "" if result.without in (None, "nothing") else f"without {result.without}"


def _known(number: int | None, word: str) -> str:
    """Headers of the first versions do not hold all."""
    return f"unknown {word}s" if number is None else counted(number, word)


def _run_labels(results: list[Result]) -> dict[Result, str]:
    """The method, and what tells a run from the others by the same method."""
    names = list(dict.fromkeys(name for result in results for name in result.options if name != "without"))
    words: list[Callable[[Result], str]] = [_without, *map(_option, names)]
    words += [
        lambda r: "draft " + str(r.header.draft and r.header.draft["source"]).rpartition("/")[2],
        lambda r: _known(r.header.threads, "thread"),
        lambda r: _known(r.header.replicas, "replica"),
        lambda r: f"seed {r.header.seed}",
        lambda r: _known(r.header.questions, "question"),
        lambda r: r.folder.name,
        lambda r: str(r.folder),
    ]
    return dict(zip(results, _labels(results, lambda r: marked(r.method, r.header.lossy), words), strict=True))


def conditions(results: Iterable[Result]) -> str:
    """Under which conditions the runs were made, in one line; where they differ, all that occur."""
    columns = zip(*(_condition_words(result) for result in results), strict=True)
    words = [" / ".join(dict.fromkeys(filter(None, column))) for column in columns]
    return " · ".join(word for word in words if word not in ("", "1 rank", "1 replica"))


def _condition_words(result: Result) -> list[str]:
    h = result.header
    questions = result.overall.questions if result.overall else len(result.run.finished)
    devices = " + ".join(h.devices or ["device unknown"]) + f" ({_machine(result)})"
    return [
        h.pair,
        h.benchmark,
        counted(questions, "question"),
        h.dtype,
        sampling_words(h.sampling),
        f"at most {h.max_new_tokens} new tokens",
        devices,
        counted(h.threads, "thread") if h.threads else "",
        counted(h.ranks or 1, "rank"),
        counted(h.replicas or 1, "replica"),
        (h.created or "date unknown")[:10],
        "commit " + short_commit(h.git_commit),
    ]


def short_commit(commit: str | None) -> str:
    """The first seven digits of each commit that a header names."""
    named = commit.split(", ") if commit else ["unknown"]
    return ", ".join(name if name == "unknown" else name[:7] + name[40:] for name in named)
