"""What a report says: the blocks of its document, from the runs of a folder. Used by `report.py`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evaluation.answers.header import COMMON
from evaluation.judge.change import Pairing, headline, interval_words
from evaluation.judge.equality import Comparison
from evaluation.judge.gates import Outcome, compare_all
from evaluation.judge.groups import Group, Result, conditions
from evaluation.judge.summary import Summary
from evaluation.judge.wording import counted
from evaluation.show.document import Block, Bullets, Cell, Figure, Heading, Table, Text
from evaluation.show.figures.speed import category_names
from evaluation.show.figures.style import Drawing
from methods import BASELINE

SHOWN_FAILURES = 50
NEW_LINE = "\n"
DEFINITIONS = {
    "speedup": "tokens per second of a method over the baseline's on the same questions, turns and repeats, prefill "
    "included; the baseline is the target alone, one token per pass, on the device of the target",
    "95% interval": "of that ratio over questions, by the jackknife of its logarithm; not significant where it covers "
    "1; none below 5 questions. It says what other questions would give, not what another launch would on a shared "
    "machine",
    "decoding": "the same ratio with prefill left out of both sides",
    "tokens per s": "new tokens over wall time; new tokens end with the first EOS or at the limit",
    "MAT": "mean accept length: new tokens per target pass",
    "accepted": "of the draft tokens up to each pass's first rejected one, the share that was accepted (alpha)",
    "identical": "the same token ids as the baseline in every turn and repeat of a question; greedy decoding only",
    "in loops": "tokens in a repetition that their answer ends in: easy to draft, so it flatters speculative methods",
    "floor": "tokens per second if a token cost one reading of the target's weights from memory",
}


@dataclass(frozen=True)
class Report:
    """What the runs of a folder say."""

    groups: list[Group]
    drawings: list[Drawing]
    outcomes: list[Outcome]
    pairings: list[Pairing]
    folder: Path
    compared: Path | None
    figures: Path  # where the drawings have been saved
    written_by: str

    @cached_property
    def equality(self) -> dict[Result, Comparison]:
        return compare_all(self.groups)

    def blocks(self) -> Iterator[Block]:
        """The whole document."""
        results = [result for group in self.groups for result in group.results]
        dates = sorted({(result.header.created or "date unknown")[:10] for result in results})
        yield Heading(f"Results: {self.folder.resolve().name}", 1)
        count = f"{len(results)} runs" if len(results) > 1 else "1 run"
        yield Text(f"{self.written_by} from {count} of {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}.")
        yield from self._glance()
        yield from self._gates()
        yield from self._comparison()
        yield from self._figures(None, ("speedup",))
        for group in self.groups:
            yield from self._group(group)
        others = [drawing.name for drawing in self.drawings if drawing.group is None and drawing.name != "speedup"]
        if others:
            yield Heading("Parts and theory")
            yield from self._figures(None, others)
        yield from self._failures()
        yield from _definitions()
        yield from _how_to_reproduce(self.groups, self.folder)

    def _glance(self) -> Iterator[Block]:
        """The fastest lossless method of each group, and whether all that must be identical is."""
        items = []
        for group in self.groups:
            lossless = [r for r in group.measured if r.header.exact and r.overall]
            for best in sorted(lossless, key=lambda r: -r.summary.speedup)[:1]:
                items.append(f"{group.name}: {group.labels[best]} is fastest, {_speedup_words(best.summary)}")
        exact = {r: c for r, c in self.equality.items() if r.header.exact}
        wrong = [result for result, comparison in exact.items() if not comparison.equal]
        if exact:
            right = f"{len(exact) - len(wrong)} of {len(exact)} runs"
            items.append(f"output: {right} of lossless methods are identical to the baseline")
        failures = sum(len(result.header.failures) for group in self.groups for result in group.results)
        items.append(f"failures: {counted(failures, 'answer')}" if failures else "failures: none")
        yield Bullets(items)

    def _gates(self) -> Iterator[Block]:
        if self.outcomes:
            yield Heading("Checks")
            rows: list[list[str | Cell]] = [
                [o.gate.text, "none" if o.value is None else f"{o.value:.3g}",
                 Cell("holds: failed", "bad") if o.holds else Cell("does not hold", "good")]
                for o in self.outcomes
            ]  # fmt: skip
            yield Table(["fails where", "measured", "outcome"], rows)

    def _comparison(self) -> Iterator[Block]:
        if not self.pairings:
            return
        yield Heading(f"Compared with {self.compared}")
        yield Text(
            f"{headline(self.pairings)}. Change: the speedup of now over that of before, on the same questions. What "
            "differs between two launches as wholes, such as the load of the machine, is in no interval."
        )
        for group in dict.fromkeys(pairing.group for pairing in self.pairings):
            yield Heading(group, 3)
            yield _comparison_table([pairing for pairing in self.pairings if pairing.group == group])
        differences = dict.fromkeys(told for pairing in self.pairings for told in pairing.differences)
        if differences:
            yield Bullets([f"other conditions: {told}" for told in differences])

    def _group(self, group: Group) -> Iterator[Block]:
        yield Heading(group.name)
        yield Text(f"{conditions(group.results)}.")
        if group.measured:
            yield _speed_table(group, self.equality)
        if any(result.categories for result in group.measured):
            yield Heading("By category", 3)
            yield _category_table(group)
        missing = [group.labels[r] for r in group.results if r.method != BASELINE and not r.overall]
        notes = [f"{name}: no speedup, for want of a baseline or of finished questions" for name in missing]
        notes += dict.fromkeys(note for result in group.measured for note in result.summary.notes)
        if notes:
            yield Bullets([f"note: {note}" for note in notes])
        if not group.measured and not missing:
            yield Table(["run", "questions"], [[BASELINE, str(len(r.run.finished))] for r in group.results])
        yield from self._figures(group.name, None)

    def _figures(self, group: str | None, names: Sequence[str] | None) -> Iterator[Block]:
        for drawing in self.drawings:
            if drawing.group == group and (names is None or drawing.name in names):
                yield Figure(drawing, self.figures)

    def _failures(self) -> Iterator[Block]:
        yield Heading("Failures")
        rows = [
            [f"{group.name}: {group.labels[result]}", str(failure["question_id"]), str(failure["error"])]
            for group in self.groups
            for result in group.results
            for failure in result.header.failures
        ]
        yield Table(["run", "question", "error"], rows[:SHOWN_FAILURES], words=True) if rows else Text("None.")
        more = [f"and {len(rows) - SHOWN_FAILURES} more, in the run headers"] if len(rows) > SHOWN_FAILURES else []
        odd = {r: c for r, c in self.equality.items() if r.header.exact and not c.equal}
        if odd or more:
            yield Bullets(
                [
                    *more,
                    *(
                        f"not identical: {result.run.path.relative_to(self.folder)}: {c.line}"
                        for result, c in odd.items()
                    ),
                ]
            )


def _speed_table(group: Group, equality: dict[Result, Comparison]) -> Block:
    head = ["method", "speedup", "95% interval", "output", "MAT", "accepted", "decoding", "tokens per s", "baseline",
            "floor", "in loops"]  # fmt: skip
    rows: list[list[str | Cell]] = []
    for result in group.measured:
        s = result.summary
        rows.append([
            group.labels[result],
            _toned_speedup(s),
            _interval(s),
            _identical(result, equality.get(result)),
            _number(s.mat, ".2f"),
            _number(s.acceptance_rate, ".0%"),
            _number(s.decode_speedup, ".2f", "x"),
            _number(s.tokens_per_second, ".1f"),
            _number(s.baseline_tokens_per_second, ".1f"),
            _number(s.floor_tokens_per_second, ".1f"),
            _number(s.repetition, ".1%"),
        ])  # fmt: skip
    return Table(head, rows)


def _identical(result: Result, comparison: Comparison | None) -> Cell:
    if comparison is None:
        return Cell("sampled", "faint")
    text = f"{comparison.identical}/{len(comparison.questions)} identical"
    if not result.header.exact:
        return Cell(f"{text}\n(need not be)", "faint")
    return Cell(text, "good" if comparison.equal else "bad")


def _category_table(group: Group) -> Block:
    results = [result for result in group.measured if result.categories]
    names = category_names(results)
    rows: list[list[str | Cell]] = []
    for result in results:
        found = {summary.group: summary for summary in result.summaries}
        cells = [_toned_speedup(found[name], True) if name in found else Cell("-", "faint") for name in names]
        rows.append([group.labels[result], *cells])
    return Table(["method", *(name.replace("_", " ") for name in names)], rows)


def _toned_speedup(summary: Summary, with_interval: bool = False) -> Cell:
    tone = "faint" if not summary.significant else "good" if summary.speedup > 1 else "bad"
    interval = f"\n{summary.low:.2f} to {summary.high:.2f}" if with_interval and summary.low else ""
    return Cell(f"{summary.speedup:.2f}x{interval}", tone)


def _interval(summary: Summary) -> Cell:
    if summary.low is None:
        return Cell("too few questions", "faint")
    text = f"{summary.low:.2f} to {summary.high:.2f}"
    return Cell(text) if summary.significant else Cell(f"{text}\nnot significant", "faint")


def _comparison_table(pairings: Sequence[Pairing]) -> Block:
    words = {True: Cell("yes", "good"), False: Cell("no", "bad"), None: Cell("-", "faint")}
    rows: list[list[str | Cell]] = [
        [p.label, f"{p.before.speedup:.2f}x", interval_words(p.before.low, p.before.high),
         f"{p.now.speedup:.2f}x", words[p.inside], *_change(p)]
        for p in pairings
    ]  # fmt: skip
    return Table(["run", "before", "95% interval", "now", "in the old interval", "change", "95% interval"], rows)


def _change(pairing: Pairing) -> tuple[Cell, Cell]:
    change = pairing.change
    if change is None:
        return Cell("-", "faint"), Cell("no common question", "faint")
    tone = "" if not change.significant else "good" if change.ratio > 1 else "bad"
    return Cell(f"{change.ratio - 1:+.1%}", tone), Cell(interval_words(change.low, change.high, percent=True))


def _speedup_words(summary: Summary) -> str:
    return f"{summary.speedup:.2f}x ({_interval(summary).text.replace(NEW_LINE, ', ')})"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _definitions() -> Iterator[Block]:
    yield Heading("Definitions")
    yield Table(["term", "meaning"], [[term, meaning] for term, meaning in DEFINITIONS.items()], words=True)


def _how_to_reproduce(groups: Sequence[Group], folder: Path) -> Iterator[Block]:
    """From the run headers; those of older runs do not hold the command."""
    yield Heading("How to reproduce")
    yield Text(
        "Each launch, from its run headers: run its command at the commit named. Where a header holds no command, run "
        "the methods with their options on the pair and the benchmark, as README.md describes."
    )
    launches: dict[str, list[Result]] = {}
    for result in (result for group in groups for result in group.results):
        launched = [str(result.run.path.parent), result.header.methods, result.header.created]
        launches.setdefault(json.dumps(launched), []).append(result)
    for results in launches.values():
        h = results[0].header
        yield Heading(results[0].run.path.parent.relative_to(folder).as_posix(), 3)
        rows = [[f"options of {r.method}", _words(r.options)] for r in results if r.options]
        drafters: dict[str, list[str]] = {}
        for result in results:
            if result.header.draft:
                drafters.setdefault(_words(result.header.draft), []).append(result.run.path.stem)
        rows += [[f"draft of {', '.join(names)}", draft] for draft, names in drafters.items()]
        rows += [[key, _words(h[key])] for key in COMMON if h[key] is not None]
        methods = ", ".join(h.methods or [r.method for r in results])
        told = [["command", h.command]] if h.command else []
        yield Table(["entry", "value"], [*told, ["methods", methods], *rows], words=True)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
