"""The first page of a report in words: a row for each task."""

from collections.abc import Mapping, Sequence

from evaluation.judge.equality import Comparison
from evaluation.judge.glance import ELSEWHERE, Glance, glance
from evaluation.judge.groups import Group, Result
from evaluation.judge.summary import Summary
from evaluation.judge.wording import counted, launches_words
from evaluation.show.document import Cell

HEAD = [
    "task",
    "fastest here",
    "how sure",
    "the same text?",
    f"elsewhere, by theory: a pass as long as {' / '.join(map(str, ELSEWHERE))} draft tokens",
]


def first_page(groups: Sequence[Group], equality: Mapping[Result, Comparison]) -> list[list[str | Cell]]:
    """What is fastest in each group, by how much, how sure that is, whether the text is the target's, and what it would
    be elsewhere. Groups in which nothing was measured have no row."""
    found = [(group, glance(group)) for group in groups]
    return [_row(group, seen, equality) for group, seen in found if seen]


def _row(group: Group, seen: Glance, equality: Mapping[Result, Comparison]) -> list[str | Cell]:
    s = seen.best.summary
    faster = s.significant and s.speedup > 1
    words = f"{group.labels[seen.best]}: {s.speedup:.2f}x" + "\nnone beats the target alone" * (not faster)
    fastest = Cell(words, "good" if faster else "")
    return [group.name, fastest, Cell(_sure(group, seen, s)), _same_text(group, equality), Cell(_elsewhere(seen, s))]


def _sure(group: Group, seen: Glance, summary: Summary) -> str:
    """The interval, by what it is judged, and whether it is ahead of the next."""
    lines = [f"{counted(summary.questions, 'question')}, {launches_words([summary.launches])}"]
    if summary.low is not None:
        lines.insert(0, f"{summary.low:.2f} to {summary.high:.2f}" + " (not significant)" * (not summary.significant))
    if summary.launches > 1 and summary.moved_by_questions is not None:
        lines.append(
            f"questions move it by {summary.moved_by_questions:.1%}, launches by {summary.moved_by_launch:.1%}"
        )
    if seen.second is not None and seen.ahead is not None:
        ahead = seen.ahead
        interval = f", {ahead.low:.2f} to {ahead.high:.2f}" if ahead.low is not None else ""
        lines.append(f"{ahead.ratio:.2f} times {group.labels[seen.second]}, the next{interval}")
    return "\n".join(lines)


def _same_text(group: Group, equality: Mapping[Result, Comparison]) -> Cell:
    """Of all lossless runs of the group."""
    judged = [equality[r] for r in group.measured if r.header.exact and r in equality]
    if not judged:
        return Cell("sampled: alike in distribution", "faint")
    equal = sum(comparison.equal for comparison in judged)
    if equal == len(judged):
        return Cell(f"yes, token for token, in {'all ' * (equal > 1)}{counted(equal, 'run')}", "good")
    return Cell(f"NO: {len(judged) - equal} of {len(judged)} runs differ", "bad")


def _elsewhere(seen: Glance, summary: Summary) -> str:
    """By the draft's acceptance; of a method that copies, by what a pass yields."""
    lines = []
    if (found := seen.elsewhere) is not None:
        lines = [f"{found.alpha:.0%} accepted", f"drafting first {_speeds(found.draft_then_verify)}"]
        lines.append(f"PEARL {_speeds(found.pearl)}")
    if seen.best.header.draft is None and seen.best.header.drafter and summary.mat is not None:
        lines.append(f"{seen.best.method} at most {summary.mat:.1f}x")
    return "\n".join(lines) or "-"


def _speeds(ratios: Sequence[float]) -> str:
    return " / ".join(f"{ratio:.1f}" for ratio in ratios) + "x"
