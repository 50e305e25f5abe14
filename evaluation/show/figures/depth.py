"""This figure shows what a drafter that reads features is worth beyond what it was told: acceptance by depth."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from evaluation.judge.acceptance import AtDepth, by_depth
from evaluation.judge.groups import Group, LeftOut, Result, conditions
from evaluation.show.figures.speed import few_runs, file_name
from evaluation.show.figures.style import Drawing, add_legend, hint, looks, new_figure

LEAST_TRIED = 20  # tokens, of what is drawn; all is among the data
LEGEND_COLUMNS = 3


def depth_lines(group: Group, groups: Sequence[Group]) -> Drawing:
    """Draw the share of drafted tokens that were accepted by their depth since the last true feature, a line for each
    run. Runs of one method have looks of their own here: variants and ablations differ in their depths."""
    found = {result: rates for result in few_runs(group) if (rates := by_depth(result.choices))}
    if not found:
        raise LeftOut("needs a run of chains whose drafter reads features of the target, and which records their depth")
    title = f"Acceptance by depth since the last true feature, {group.name}"
    figure = new_figure(title, conditions(found), 3.4, 7.2, -(-len(found) // LEGEND_COLUMNS))
    axes = figure.subplots()
    its_looks = looks(group.labels[result] for result in found)
    for result, rates in found.items():
        shown, look = [rate for rate in rates if rate.tried >= LEAST_TRIED], its_looks[group.labels[result]]
        spots = [rate.depth for rate in shown], [rate.share for rate in shown]
        style: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": look.line}
        (line,) = axes.plot(*spots, **style, label=group.labels[result])
        hint(line, group.labels[result])
    axes.set(xlabel="places behind the last token with a true feature", ylabel="accepted, all before being so")
    axes.set_ylim(0, 1.04)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    add_legend(figure, axes.get_legend_handles_labels()[0], LEGEND_COLUMNS)
    about = (
        "Of drafted tokens behind accepted ones the share that was accepted, by how many places they lie behind the "
        "last token whose true features their drafter had read; at 1 no unverified token is between. Chains only. "
        f"Drawn where {LEAST_TRIED} tokens or more were judged."
    )
    rows = [_row(group, result, rate) for result, rates in found.items() for rate in rates]
    return Drawing(file_name("depth", group, groups), figure, pd.DataFrame(rows), about, group.name)


def _row(group: Group, result: Result, rate: AtDepth) -> dict[str, object]:
    return {
        "run": group.labels[result],
        "depth": rate.depth,
        "tried": rate.tried,
        "accepted": rate.accepted,
        "share": rate.share,
    }
