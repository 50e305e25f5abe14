"""This module draws every figure that the runs of a results folder allow."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.answers.trace import Trace
    from evaluation.judge.groups import Group
    from evaluation.show.figures.style import Drawing


def draw(groups: "Sequence[Group]", trace: "Trace | None" = None) -> "tuple[list[Drawing], list[str]]":
    """Draw every figure that the runs allow. Returns these, and for each other one, or part of one, a line saying why
    it is left out."""
    import matplotlib as mpl

    from evaluation.judge.groups import LeftOut
    from evaluation.show.figures.style import STYLE

    drawn: list[Drawing] = []
    missing: dict[str, list[str]] = {}  # figure and reason -> the groups without it
    with mpl.rc_context(STYLE):
        for name, group, figure in _figures(groups, trace):
            try:
                drawn.append(figure())
                reasons = [f"{name}, in part: {reason}" for reason in dict.fromkeys(drawn[-1].missing)]
            except LeftOut as reason:
                reasons = [f"{name}: {reason}"]
            for line in reasons:
                missing.setdefault(line, []).append(group)
    everywhere = [group.name for group in groups], [""]
    return drawn, [line if found in everywhere else f"{line} ({'; '.join(found)})" for line, found in missing.items()]


def _figures(groups: "Sequence[Group]", trace: "Trace | None") -> "Iterable[tuple[str, str, Callable[[], Drawing]]]":
    """The name of each figure, the group that it is of ("": of all), and what draws it."""
    from functools import partial

    from evaluation.show.figures import depth as figures_depth
    from evaluation.show.figures import rounds as figures_rounds
    from evaluation.show.figures import speed as figures
    from evaluation.show.figures import theory as figures_theory
    from evaluation.show.figures.style import looks

    look = looks(result.method for group in groups for result in group.results)
    yield "speedup", "", partial(figures.speedup_bars, groups, look)
    for group in groups:
        yield "speedup by category", group.name, partial(figures.category_bars, group, groups, look)
        yield "radar", group.name, partial(figures.radar, group, groups, look)
    yield "ablation", "", partial(figures.ablation_bars, groups, look)
    for group in groups:
        yield "window", group.name, partial(figures_theory.window_sweep, group, groups, look)
        yield "acceptance", group.name, partial(figures_rounds.acceptance, group, groups, look)
        yield "depth", group.name, partial(figures_depth.depth_lines, group, groups)
        yield "waiting", group.name, partial(figures_rounds.waiting, group, groups, look)
    if trace is not None:
        yield "timeline", "", partial(figures_rounds.timeline, trace, groups, look)
    yield "prediction", "", partial(figures_theory.prediction, groups, look)
    yield "plane", "", partial(figures_theory.plane, groups, look)
