"""This module shows the figures of `speed.py` in a terminal: a row for each method, or for each category."""

import sys
from collections.abc import Callable, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.judge.categories import OVERALL
from evaluation.judge.spec_bench import spec_bench_notes
from evaluation.judge.summary import Summary
from evaluation.judge.wording import launches_words, marked

Column = tuple[str, Callable[[Summary], str | Text | None]]  # its name, and its cell of a row: None where unknown

POSITIONS_SHOWN = 4
WIDER_THAN_ANY = 10_000  # columns of a terminal


def terminal(stderr: bool = False) -> Console:
    """Return the console that tables are printed on. Where it is a file or a pipe it has a width of its own."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 120, highlight=False, markup=False)


def print_tables(console: Console, *tables: Table) -> None:
    """Print tables. In a terminal the last columns are left out where they do not fit, and a note says so."""
    needed = max(_width(console, table) for table in tables)
    if not console.file.isatty():
        console.width = max(console.width, needed)
    left_out = sum(_shorten(console, table) for table in tables)
    console.print(*tables, sep="\n")
    if left_out:
        columns = "1 column" if left_out == 1 else f"{left_out} columns"
        told = f"note: {columns} left out; widen the terminal to {needed} columns, or pipe the output"
        console.print(Text(told, style="yellow"), soft_wrap=True)


def _shorten(console: Console, table: Table) -> int:
    """Take away columns until the table fits, or there is but one beside the names. Returns how many."""
    whole = len(table.columns)
    while len(table.columns) > 2 and _width(console, table) > console.width:
        table.columns.pop()
    return whole - len(table.columns)


def _width(console: Console, table: Table) -> int:
    """What the table takes where nothing in it is wrapped."""
    return console.measure(table, options=console.options.update(width=WIDER_THAN_ANY)).maximum


def table(summaries: Sequence[Summary], spec_bench: bool = False) -> Table:
    """Make a table of the headline figures, a row for each summary."""
    columns: list[Column] = [
        ("ques-\ntions", lambda s: str(s.questions)),
        ("tokens\nper s", lambda s: f"{s.tokens_per_second:.1f}"),
        ("base-\nline", lambda s: f"{s.baseline_tokens_per_second:.1f}"),
        ("floor", lambda s: _number(s.floor_tokens_per_second, ".1f")),
        ("speedup", lambda s: Text(f"{s.speedup:.2f}x", style=_style(s))),
        (f"95% interval,\n{launches_words(s.launches for s in summaries)}", _interval),
        ("MAT", lambda s: _number(s.mat, ".2f")),
    ]
    if spec_bench:
        columns.append(("Spec-Bench speedup\n(mean of rates)", _spec_bench))
    first = summaries[0]
    title = f"{first.method} against {first.baseline}"
    if len({s.method for s in summaries}) > 1:
        title = f"speed against {first.baseline}"
    return _table(summaries, columns, Text(f"{title}\n{first.conditions}", style="bold", justify="left"))


def details(summaries: Sequence[Summary]) -> Table:
    """Make a table of how the headline figures come about, a row for each summary."""
    columns: list[Column] = [
        ("geom.\nmean", lambda s: f"{s.geometric_mean:.2f}x"),
        ("decode\nonly", lambda s: _number(s.decode_speedup, ".2f", "x")),
        ("passes", lambda s: _number(s.passes, "d")),
        ("draft+\nverify ms", _milliseconds),
        ("wait\nms", _waited),
        ("hits of\nbranches", _hits),
        ("hidden\nms", lambda s: _number(s.hidden_seconds_per_pass and s.hidden_seconds_per_pass * 1e3, ".1f")),
        ("run\nlength", lambda s: _number(s.run_length, ".2f")),
        ("nodes\n/pass", lambda s: _number(s.nodes_per_pass, ".2f")),
        ("drafts\n/token", lambda s: _number(s.drafted_per_token, ".2f")),
        ("accepted\nat n, %", _positions),
        ("drafts\nkept", lambda s: _number(s.accepted_share, ".0%")),
        ("in\nloops", lambda s: _number(s.repetition, ".1%")),
        ("moved by\nquestions", lambda s: _number(s.moved_by_questions if s.launches > 1 else None, ".1%")),
        ("moved by\nlaunch", lambda s: _number(s.moved_by_launch, ".1%")),
    ]
    return _table(summaries, columns, None)


def _table(summaries: Sequence[Summary], columns: Iterable[Column], title: Text | None) -> Table:
    """Columns that are unknown in every row are left out."""
    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    by_category = any(s.group != OVERALL for s in summaries)
    result.add_column("category" if by_category else "method", no_wrap=True)
    shown = [(name, cells) for name, cell in columns if any(cells := [cell(s) for s in summaries])]
    for name, _ in shown:
        result.add_column(name, justify="right", no_wrap=True)
    for row, summary in enumerate(summaries):
        label = Text(summary.group if by_category else marked(summary.method, summary.lossy))
        before_overall = by_category and row == len(summaries) - 2
        result.add_row(label, *(cells[row] or "-" for _, cells in shown), end_section=before_overall)
    return result


def _number(value: float | None, form: str, unit: str = "") -> str | None:
    return None if value is None else f"{value:{form}}{unit}"


def _interval(summary: Summary) -> Text:
    if summary.low is None:
        return Text("too few questions", style="dim")
    text = Text(f"{summary.low:.2f} to {summary.high:.2f}")
    return text if summary.significant else text.append("\nnot significant", style="yellow")


def _style(summary: Summary) -> str:
    if not summary.significant:
        return "yellow"
    return "bold green" if summary.speedup > 1 else "bold red"


def _spec_bench(summary: Summary) -> str | None:
    """Spec-Bench's own figure, and how far it is from ours."""
    theirs = summary.spec_bench_speedup
    return None if theirs is None else f"{theirs:.2f}x ({theirs / summary.speedup - 1:+.1%})"


def _milliseconds(summary: Summary) -> str | None:
    draft, verify = summary.draft_seconds_per_pass, summary.verify_seconds_per_pass
    return None if draft is None or verify is None else f"{draft * 1e3:.1f}+{verify * 1e3:.1f}"


def _waited(summary: Summary) -> str | None:
    """What the target waited for its draft, where the two have a rank each."""
    wait = summary.wait_seconds_per_pass
    return f"{wait * 1e3:.1f}" if wait else None


def _hits(summary: Summary) -> str | None:
    """How often PEARL had prepared what it needed, and for how many outcomes of a pass."""
    if summary.hit_rate is None or summary.prepared_per_pass is None:
        return None
    return f"{summary.hit_rate:.0%} of {summary.prepared_per_pass:.1f}"


def _positions(summary: Summary) -> str | None:
    rates = summary.conditional_acceptance
    return " ".join(f"{rate:.0%}"[:-1] for rate in rates[:POSITIONS_SHOWN]) if rates else None


COLUMNS_EXPLAINED = """\
speedup: tokens per second over the baseline's, prefill included; interval: over questions and launches; of one launch
it says what other questions would give, not what another launch would
floor: tokens per second at one reading of the target's weights per token; MAT: tokens per target pass
draft+verify, wait: mean per target pass (on two ranks at the same time); run length: accepted drafts per rejection
hits of branches: how often PEARL had prepared what came, of so many outcomes of a pass; hidden: drafting not waited for
nodes: rows that a pass scores; accepted at n: of the n-th drafts behind n - 1 accepted ones
in loops: tokens in a repetition that their answer ends in, which is easy to draft
moved by: standard deviation of a launch's speedup, with other questions (as many), and from launch to launch"""
SPEC_BENCH_EXPLAINED = """
Spec-Bench speedup: as its own script computes it, in brackets how far from ours: the mean over lines of their rates, of
each line its first choice, failed turns and lines without a partner included"""


def show(summaries: Sequence[Summary], spec_bench: bool, recorded: bool) -> None:
    """Print the tables and the notes. `spec_bench`: with its own figure, of tokens `recorded` or counted anew."""
    console = terminal()
    print_tables(console, table(summaries, spec_bench), details(summaries))
    console.print(COLUMNS_EXPLAINED + SPEC_BENCH_EXPLAINED * spec_bench, style="dim", soft_wrap=True)
    notes = summaries[-1].notes + (spec_bench_notes(summaries, recorded) if spec_bench else [])
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
