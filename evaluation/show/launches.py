"""What each launch of a group came to, as a table."""

from evaluation.judge.groups import Group, Result
from evaluation.judge.launches import Launch, launches, speedups_by_launch
from evaluation.show.document import Cell

MOVED = ["moved by questions", "moved by launch"]


def by_launch(group: Group) -> list[list[str | Cell]]:
    """A row for what may move speedups, then one for each run; none where every run is of one launch."""
    found = launches(group)
    if not found:
        return []
    return [*_conditions(found), *([group.labels[result], *_run(result, len(found))] for result in group.measured)]


def by_launch_heads(group: Group) -> list[str]:
    return [str(number) for number in range(1, len(launches(group)) + 1)] + MOVED


def _conditions(found: list[Launch]) -> list[list[str | Cell]]:
    rows = [
        ("begun", [(launch.header.created or "-")[:16].replace("T", " ") for launch in found]),
        ("baseline, tokens per s", [f"{launch.baseline_tokens_per_second:.1f}" for launch in found]),
        ("memory, GB/s", [_scaled(launch.read_bandwidth, 1e9, ".1f") for launch in found]),
        ("huge pages, MB", [_scaled(launch.header.huge_pages, 1e6, ".0f") for launch in found]),
    ]
    return [[name, *(Cell(cell, "faint") for cell in cells), "", ""] for name, cells in rows]


def _run(result: Result, count: int) -> list[str | Cell]:
    speedups = [f"{ratio:.2f}x" for ratio in speedups_by_launch(result)]
    s = result.summary
    moved = ["-" if part is None else f"{part:.1%}" for part in (s.moved_by_questions, s.moved_by_launch)]
    return [*speedups, *["-"] * (count - len(speedups)), *moved]


def _scaled(value: float | None, unit: float, form: str) -> str:
    return "-" if value is None else f"{value / unit:{form}}"
