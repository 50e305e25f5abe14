"""A report has texts and tables from the runs of a folder, and `templates/report.md.jinja` lays them out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evaluation.answers.calibration import Calibration, read_calibration
from evaluation.answers.header import COMMON
from evaluation.judge.acceptance import AtDepth, by_depth
from evaluation.judge.change import Pairing, apart, headline, interval_words
from evaluation.judge.equality import Comparison, shared_words
from evaluation.judge.gates import GateResult, compare_all
from evaluation.judge.groups import Group, Result, conditions
from evaluation.judge.served import Served, against_plain
from evaluation.judge.summary import Summary
from evaluation.judge.wording import counted, launches_words
from evaluation.show import calibration as words
from evaluation.show.document import Cell
from evaluation.show.figures.speed import category_names
from evaluation.show.figures.style import Drawing
from evaluation.show.glance import HEAD, first_page
from evaluation.show.launches import by_launch, by_launch_heads
from methods import BASELINE

Rows = list[list[str | Cell]]

SHOWN_FAILURES = 50
DEEPEST_SHOWN = 12
NEW_LINE = "\n"


@dataclass(frozen=True)
class Report:
    """A report says what the runs of a folder have shown."""

    groups: list[Group]
    drawings: list[Drawing]
    outcomes: list[GateResult]
    pairings: list[Pairing]
    folder: Path
    compared: Path | None
    written_by: str

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def calibration(self) -> Calibration | None:
        """What is known of the harness on that machine, where it was calibrated into the folder."""
        return read_calibration(self.folder)

    calibration_heads = words.HEADS

    def calibrated(self) -> Rows:
        return [list(words.cells(row)) for row in self.calibration.rows] if self.calibration else []

    def calibration_words(self) -> list[str]:
        found = self.calibration
        return [words.headline(found), *words.told(found)] if found else []

    @property
    def results(self) -> list[Result]:
        return [result for group in self.groups for result in group.results]

    @property
    def replay(self) -> bool:
        """Say whether `./eval.sh page --write` has put a page of all answers there."""
        return (self.folder / "replay.html").exists()

    @property
    def origin(self) -> str:
        """Say how many runs there are, and of which days."""
        dates = sorted({(result.header.created or "date unknown")[:10] for result in self.results})
        return f"{counted(len(self.results), 'run')} of {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}"

    @cached_property
    def equality(self) -> dict[Result, Comparison]:
        return compare_all(self.groups)

    @property
    def _exact(self) -> dict[Result, Comparison]:
        """Of the runs whose output must be the baseline's."""
        return {r: c for r, c in self.equality.items() if r.header.exact}

    first_page_head = HEAD

    @cached_property
    def first_page(self) -> Rows:
        return first_page(self.groups, self.equality)

    def glance(self) -> list[str]:
        """Say whether all that must be identical is, and what failed."""
        items = []
        if exact := list(self._exact.values()):
            right = f"{sum(comparison.equal for comparison in exact)} of {len(exact)} runs"
            items.append(f"output: {right} of lossless methods are identical to the baseline")
        items += [f"{group.name}: {served.sentence}" for group in self.groups for served in served_in(group)]
        failures = sum(len(result.header.failures) for result in self.results)
        items.append(f"failures: {counted(failures, 'answer')}" if failures else "failures: none")
        return items

    def checks(self) -> Rows:
        return [
            [
                outcome.gate.text,
                "none" if outcome.value is None else f"{outcome.value:.3g}",
                Cell("holds: failed", "bad") if outcome.holds else Cell("does not hold", "good"),
            ]
            for outcome in self.outcomes
        ]

    @property
    def headline(self) -> str:
        return headline(self.pairings)

    def comparisons(self) -> Iterator[tuple[str, Rows]]:
        """Yield each group's name and how its runs compare with earlier ones."""
        for group in dict.fromkeys(pairing.group for pairing in self.pairings):
            yield group, [_comparison(pairing) for pairing in self.pairings if pairing.group == group]

    def other_conditions(self) -> list[str]:
        told = dict.fromkeys(difference for pairing in self.pairings for difference in pairing.differences)
        return apart(self.pairings) + [f"other conditions: {difference}" for difference in told]

    def conditions(self, group: Group) -> str:
        return conditions(group.results)

    def speeds(self, group: Group) -> Rows:
        return [_speed(result, group.labels[result], self.equality.get(result)) for result in group.measured]

    def launches_words(self, group: Group) -> str:
        return launches_words(result.summary.launches for result in group.measured)

    def by_launch(self, group: Group) -> Rows:
        """Return what each launch came to, a row for each; none where every run is of one."""
        return by_launch(group)

    def by_launch_heads(self, group: Group) -> list[str]:
        return by_launch_heads(group)

    def categories(self, group: Group) -> Rows:
        """Return the speedups of each method by category; none where no run has several categories."""
        results = [result for result in group.measured if result.categories]
        names = category_names(results) if results else []
        return [[group.labels[result], *_by_category(result, names)] for result in results]

    def category_heads(self, group: Group) -> list[str]:
        return [name.replace("_", " ") for name in category_names([r for r in group.measured if r.categories])]

    def depths(self, group: Group) -> Rows:
        """Return the acceptance of each method by depth since the last true feature; none where no run records it."""
        heads = self.depth_heads(group)
        return [
            [group.labels[result], *(_at_depth(rates.get(int(depth))) for depth in heads)]
            for result, rates in _rates(group).items()
        ]

    def depth_heads(self, group: Group) -> list[str]:
        deepest = max((max(rates) for rates in _rates(group).values()), default=0)
        return [str(depth) for depth in range(1, min(deepest, DEEPEST_SHOWN) + 1)]

    def served(self, group: Group) -> Rows:
        """Return each configuration of a server beside its plain one."""
        return [_served(served) for served in served_in(group)]

    def unmeasured(self, group: Group) -> list[str]:
        return [group.labels[r] for r in group.results if r.method != BASELINE and not r.overall]

    def notes(self, group: Group) -> list[str]:
        why = "no speedup, for want of a baseline or of finished questions"
        notes = [f"{name}: {why}" for name in self.unmeasured(group)]
        notes += dict.fromkeys(note for result in group.measured for note in result.summary.notes)
        return [f"note: {note}" for note in notes]

    def baselines(self, group: Group) -> Rows:
        """Return the rows of a group in which nothing but the baseline was run."""
        return [[BASELINE, str(len(result.run.finished))] for result in group.results]

    def drawn(self, group: str | None, names: Sequence[str] | None = None) -> list[Drawing]:
        """Return the drawings of a group (None: those of all groups together), or those of them that are named."""
        return [d for d in self.drawings if d.group == group and (names is None or d.name in names)]

    def theory(self) -> list[Drawing]:
        """Return the drawings of all groups together, but for the one of speedups, which comes first."""
        return [drawing for drawing in self.drawn(None) if drawing.name != "speedup"]

    def _all_failures(self) -> Rows:
        return [
            [f"{group.name}: {group.labels[result]}", str(failure["question_id"]), str(failure["error"])]
            for group in self.groups
            for result in group.results
            for failure in result.header.failures
        ]

    def failures(self) -> Rows:
        return self._all_failures()[:SHOWN_FAILURES]

    def odd_ones(self) -> list[str]:
        """Tell what the table of failures has no room for, and which runs should be identical to the baseline but are
        not."""
        more = len(self._all_failures()) - SHOWN_FAILURES
        told = [f"and {more} more, in the run headers"] if more > 0 else []
        odd = {result: comparison for result, comparison in self._exact.items() if not comparison.equal}
        return told + [f"not identical: {r.run.path.relative_to(self.folder)}: {c.line}" for r, c in odd.items()]

    def launches(self) -> Iterator[tuple[str, Rows]]:
        """Yield each launch's folder and what is needed to run it again."""
        launches: dict[str, list[Result]] = {}
        for result in self.results:
            launched = [str(result.run.path.parent), result.header.methods, result.header.created]
            launches.setdefault(json.dumps(launched), []).append(result)
        for results in launches.values():
            yield results[0].run.path.parent.relative_to(self.folder).as_posix(), _launch(results)


def _speed(result: Result, label: str, comparison: Comparison | None) -> list[str | Cell]:
    s = result.summary
    return [
        label,
        _toned_speedup(s),
        _interval(s),
        _identical(result, comparison),
        _number(s.mat, ".2f"),
        _number(s.acceptance_rate, ".0%"),
        _number(s.decode_speedup, ".2f", "x"),
        _number(s.tokens_per_second, ".1f"),
        _number(s.baseline_tokens_per_second, ".1f"),
        _number(s.floor_tokens_per_second, ".1f"),
        _number(s.repetition, ".1%"),
    ]


def served_in(group: Group) -> list[Served]:
    """Each configuration of a server beside the plain one of its folder."""
    folders: dict[Path, list[Result]] = {}
    for result in group.measured:
        folders.setdefault(result.run.path.parent, []).append(result)
    return [served for results in folders.values() for served in against_plain([result.run for result in results])]


def _served(served: Served) -> list[str | Cell]:
    comparison, gain = served.comparison, served.gain
    same = f"{comparison.identical}/{len(comparison.questions)} identical"
    tone = "faint" if not gain.significant else "good" if gain.ratio > 1 else "bad"
    return [
        served.name,
        Cell(same, "good" if served.lossless else "bad"),
        _number(comparison.shared, ".1%"),
        Cell(f"{gain.ratio:.2f}x", tone),
        interval_words(gain.low, gain.high),
    ]


def _identical(result: Result, comparison: Comparison | None) -> Cell:
    if comparison is None:
        return Cell("lossy", "bad") if result.header.lossy else Cell("sampled", "faint")
    text = f"{comparison.identical}/{len(comparison.questions)} identical"
    if not result.header.exact:
        return Cell(f"{text}\n{shared_words(comparison)}\n(need not be)", "faint")
    return Cell(text, "good" if comparison.equal else "bad")


def _by_category(result: Result, names: Sequence[str]) -> list[Cell]:
    found = {summary.group: summary for summary in result.summaries}
    return [_toned_speedup(found[name], True) if name in found else Cell("-", "faint") for name in names]


def _rates(group: Group) -> dict[Result, dict[int, AtDepth]]:
    """The acceptance of each run that records depths, by depth."""
    found = {result: {rate.depth: rate for rate in by_depth(result.choices)} for result in group.measured}
    return {result: rates for result, rates in found.items() if rates}


def _at_depth(rate: AtDepth | None) -> Cell:
    return Cell("-", "faint") if rate is None else Cell(f"{rate.share:.0%}\nof {rate.tried}")


def _toned_speedup(summary: Summary, with_interval: bool = False) -> Cell:
    tone = "faint" if not summary.significant else "good" if summary.speedup > 1 else "bad"
    interval = f"\n{summary.low:.2f} to {summary.high:.2f}" if with_interval and summary.low else ""
    return Cell(f"{summary.speedup:.2f}x{interval}", tone)


def _interval(summary: Summary) -> Cell:
    if summary.low is None:
        return Cell("too few questions", "faint")
    text = f"{summary.low:.2f} to {summary.high:.2f}"
    return Cell(text) if summary.significant else Cell(f"{text}\nnot significant", "faint")


def _comparison(pairing: Pairing) -> list[str | Cell]:
    before, now = pairing.before, pairing.now
    inside = {True: Cell("yes", "good"), False: Cell("no", "bad"), None: Cell("-", "faint")}[pairing.inside]
    interval = interval_words(before.low, before.high)
    return [pairing.label, f"{before.speedup:.2f}x", interval, f"{now.speedup:.2f}x", inside, *_change(pairing)]


def _change(pairing: Pairing) -> tuple[Cell, Cell]:
    change = pairing.change
    if change is None:
        return Cell("-", "faint"), Cell("no common question", "faint")
    tone = "" if not change.significant else "good" if change.ratio > 1 else "bad"
    return Cell(f"{change.ratio - 1:+.1%}", tone), Cell(interval_words(change.low, change.high, percent=True))


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _launch(results: Sequence[Result]) -> Rows:
    """The entries of its run headers; those of older runs do not hold the command."""
    h = results[0].header
    told = [["command", h.command]] if h.command else []
    methods = ", ".join(h.methods or [r.method for r in results])
    options = [[f"options of {r.method}", _words(r.options)] for r in results if r.options]
    drafters: dict[str, list[str]] = {}
    for result in results:
        if result.header.draft:
            drafters.setdefault(_words(result.header.draft), []).append(result.run.path.stem)
    drafts = [[f"draft of {', '.join(names)}", draft] for draft, names in drafters.items()]
    entries = [[key, _words(h[key])] for key in COMMON if h[key] is not None]
    rows = [*told, ["methods", methods], *options, *drafts, *entries]
    return [[name, value] for name, value in rows]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
