"""These figures show speed: bars with intervals over pairs and benchmarks, over categories, of PEARL's ablation; a
radar.

Each function draws one figure, or raises `LeftOut` where the data do not allow it.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from evaluation.judge.categories import OVERALL, SPEC_BENCH_ORDER
from evaluation.judge.fit import BOTH, NOTHING, POST_VERIFY, PRE_VERIFY
from evaluation.judge.groups import Group, LeftOut, Result, conditions
from evaluation.judge.series import ablations
from evaluation.judge.summary import Summary
from evaluation.judge.wording import counted, launches_words
from evaluation.show.figures.style import (
    BLACK,
    PLATE,
    Drawing,
    Look,
    add_legend,
    hint,
    new_figure,
    number,
    one_line,
    slug,
    whiskers,
)

Looks = Mapping[str, Look]
FIGURES = (
    "speedup",
    "low",
    "high",
    "significant",
    "questions",
    "tokens_per_second",
    "baseline_tokens_per_second",
    "mat",
)
LEGEND_COLUMNS = 5
MOST_BARS = 12  # of a group in one figure
MOST_LABELLED = 28  # bars: with more, their numbers would overlap
ABLATION = {
    BOTH: "without both:\ndraft, then verify",
    POST_VERIFY: "without\npost-verify",
    PRE_VERIFY: "without\npre-verify",
    NOTHING: "PEARL",
}


def file_name(kind: str, group: Group, groups: Sequence[Group]) -> str:
    """Name the files of a figure of one group; where there are several groups, the name says which."""
    return kind if len(groups) == 1 else f"{kind}-{slug(group.name)}"


def _caption(results: Sequence[Result]) -> str:
    """Below bars: what they are, and of how many launches their intervals tell."""
    launches = launches_words(result.summary.launches for result in results)
    about = f"Bars: tokens per second over the baseline's. Whiskers: 95% interval over questions of {launches}."
    return f"{about}\n{conditions(results)}"


def _row(group: Group, result: Result, summary: Summary) -> dict[str, Any]:
    return {"group": group.name, "run": group.labels[result], "method": result.method} | {
        key: getattr(summary, key) for key in FIGURES
    }


def _errors(summaries: Sequence[Summary]) -> np.ndarray[Any, Any]:
    """Whiskers below and above; none where there is no interval."""
    below = [s.speedup - s.low if s.low is not None else np.nan for s in summaries]
    above = [s.high - s.speedup if s.high is not None else np.nan for s in summaries]
    return np.array([below, above])


def _said(summary: Summary) -> str:
    """A bar's numbers."""
    text = f"{number(summary.speedup)}x"
    if summary.low is None or summary.high is None:
        return text
    text += f"  ({number(summary.low)} to {number(summary.high)})"
    return text if summary.significant else text + "  not significant"


def _hint(label: str, summary: Summary) -> str:
    """What a bar says where a pointer rests on it."""
    told = f"{label} {_said(summary)}, {counted(summary.questions, 'question')}"
    return told if summary.mat is None else f"{told}, MAT {summary.mat:.2f}"


def speedup_bars(groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw overall speedups, with a panel for each pair and benchmark."""
    shown = {group: few_runs(group) for group in groups if group.measured}
    if not shown:
        raise LeftOut("needs a run with its baseline beside it")
    counts = [len(results) for results in shown.values()]
    results = [result for few in shown.values() for result in few]
    figure = new_figure(
        "Speedup over autoregressive decoding",
        _caption(results),
        0.95 + 0.5 * len(shown) + 0.27 * sum(counts),
    )
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=[n + 0.6 for n in counts])[:, 0]
    for axes, (group, few) in zip(panels, shown.items(), strict=True):
        _bars_across(axes, group, few, looks)
    longest = max(float(result.overall.high or result.overall.speedup) for result in results if result.overall)
    panels[-1].set(xlim=(0, max(longest, 1.0) * 1.42), xlabel="speedup")  # with room for the numbers
    rows = [_row(group, r, r.overall) for group, few in shown.items() for r in few if r.overall]
    about = (
        "Tokens per second over the baseline's on the same questions, prefill included, with 95% intervals. Of more "
        f"than {MOST_BARS} runs, such as a sweep, one of each method and ablation: the one nearest to the defaults."
    )
    return Drawing("speedup", figure, pd.DataFrame(rows), about)


def few_runs(group: Group) -> list[Result]:
    """All measured runs; of more than `MOST_BARS` one of each method and ablation."""
    return group.measured if len(group.measured) <= MOST_BARS else group.typical


def _bars_across(axes: Axes, group: Group, results: Sequence[Result], looks: Looks) -> None:
    summaries = [result.overall for result in results if result.overall]
    values, rows = [s.speedup for s in summaries], np.arange(len(results))
    for row, result, value in zip(rows, results, values, strict=True):
        bar = axes.barh(row, value, height=0.68, **looks[result.method].bar)
        hint(bar[0], _hint(group.labels[result], result.summary))
    whiskers(axes, values, rows, xerr=_errors(summaries))
    for row, summary in zip(rows, summaries, strict=True):
        end = max(summary.high or 0, summary.speedup)
        style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7.5}
        axes.annotate(_said(summary), (end, row), (5, 0), bbox=PLATE, zorder=5, **style)
    one_line(axes, vertical=True)
    labels = ["\n".join(textwrap.wrap(group.labels[result], 34)) for result in results]
    axes.set_yticks(rows, labels)
    axes.set(title=group.name, ylim=(len(results) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)


def category_bars(group: Group, groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw Spec-Bench's chart: speedups by category, then overall."""
    results = [result for result in whole(group) if result.categories]
    if not results:
        raise LeftOut("needs questions of two categories")
    names = category_names(results)
    bars = len(names) * len(results)
    figure = new_figure(
        f"Speedup by category, {group.name}",
        _caption(results),
        3.9,
        min(max(7.2, 0.9 + 0.16 * bars + 0.25 * len(names)), 16),
        legend_rows=_rows_of(len(results) + 1),
    )
    axes = figure.subplots()
    width = 0.84 / len(results)
    rows = []
    for place, result in enumerate(results):
        found = {summary.group: summary for summary in result.summaries}
        summaries = [found[name] for name in names if name in found]
        spots = np.array([_spot(names, s.group) for s in summaries]) + (place - (len(results) - 1) / 2) * width
        values = [s.speedup for s in summaries]
        bars_of_run = axes.bar(spots, values, width * 0.96, label=group.labels[result], **looks[result.method].bar)
        for bar, summary in zip(bars_of_run, summaries, strict=True):
            hint(bar, f"{summary.group}: {_hint(group.labels[result], summary)}")
        whiskers(axes, spots, values, yerr=_errors(summaries), capsize=min(2.5, 12 * width))
        rows += [_row(group, result, s) | {"category": s.group} for s in summaries]
        if bars <= MOST_LABELLED:
            _label_bars(axes, spots, summaries)
    one_line(axes)
    axes.set_xticks([_spot(names, name) for name in names], [_wrapped(name) for name in names])
    axes.set(ylabel="speedup", ylim=(0, None))
    axes.margins(x=0.02)
    axes.grid(axis="x", visible=False)
    add_legend(figure, axes.get_legend_handles_labels()[0], LEGEND_COLUMNS)
    about = "Speedup in each category and overall, with 95% intervals over the category's questions."
    return Drawing(file_name("speedup-by-category", group, groups), figure, pd.DataFrame(rows), about, group.name)


def whole(group: Group) -> list[Result]:
    """A run of each method with all its parts: what ablations show has a figure of its own."""
    return [result for result in group.typical if result.without in (None, NOTHING)] or group.typical


def _rows_of(entries: int) -> int:
    return -(-entries // LEGEND_COLUMNS)


def category_names(results: Sequence[Result]) -> list[str]:
    """Return the categories in Spec-Bench's order, then others, and the overall one last."""
    present = dict.fromkeys(s.group for result in results for s in result.categories)
    known = [name for name in SPEC_BENCH_ORDER if name in present]
    return [*known, *sorted(set(present) - set(known)), OVERALL]


def _spot(names: Sequence[str], name: str) -> float:
    """Where a category's bars stand; the overall ones a little apart."""
    return names.index(name) + (0.25 if name == OVERALL else 0)


def _label_bars(axes: Axes, spots: np.ndarray[Any, Any], summaries: Sequence[Summary]) -> None:
    for spot, summary in zip(spots, summaries, strict=True):
        top = max(summary.high or 0, summary.speedup)
        style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 6.5}
        axes.annotate(number(summary.speedup), (spot, top), (0, 2), bbox=PLATE, zorder=5, **style)


def _wrapped(name: str, width: int = 13) -> str:
    words = {"qa": "QA", "rag": "RAG", OVERALL: "Overall"}.get(name, name.replace("_", " "))
    return "\n".join(textwrap.wrap(words, width))


def radar(group: Group, groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw the six categories of Spec-Bench around a circle."""
    results = [r for r in whole(group) if set(SPEC_BENCH_ORDER) <= {s.group for s in r.categories}]
    if not results:
        raise LeftOut("needs the six categories of Spec-Bench")
    figure = new_figure(
        f"Speedup around Spec-Bench, {group.name}", conditions(results), 5.4, 6.4, _rows_of(len(results))
    )
    axes: Any = figure.subplots(subplot_kw={"projection": "polar"})
    angles = np.linspace(0, 2 * np.pi, len(SPEC_BENCH_ORDER), endpoint=False)
    rows = []
    for result in results:
        found = {summary.group: summary for summary in result.summaries}
        values, look = [found[name].speedup for name in SPEC_BENCH_ORDER], looks[result.method]
        ring = [*angles, angles[0]], [*values, values[0]]
        (line,) = axes.plot(*ring, look.line, marker=look.marker, color=look.color, label=group.labels[result])
        hint(line, _hint(group.labels[result], result.summary))
        axes.fill(*ring, color=look.color, alpha=0.04)
        rows += [_row(group, result, found[name]) | {"category": name} for name in SPEC_BENCH_ORDER]
    axes.plot(np.linspace(0, 2 * np.pi, 200), np.ones(200), color=BLACK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_theta_offset(np.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [_wrapped(name, 24) for name in SPEC_BENCH_ORDER])
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        label.set_horizontalalignment({1: "left", -1: "right"}.get(int(np.sign(np.round(np.sin(angle), 6))), "center"))
    axes.set_rlim(0, None)
    axes.set_rlabel_position(30)
    axes.spines["polar"].set_visible(False)
    axes.yaxis.set_tick_params(labelsize=7)
    add_legend(figure, axes.get_legend_handles_labels()[0], LEGEND_COLUMNS)
    about = "Speedup in each of the six categories of Spec-Bench; the dashed circle is the baseline."
    return Drawing(file_name("radar", group, groups), figure, pd.DataFrame(rows), about, group.name)


def ablation_bars(groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw PEARL without its parts, from the folders of its ablations."""
    shown = [ablation for group in groups for ablation in ablations(group)]
    if not shown:
        raise LeftOut("needs runs of PEARL that differ in --without, on the same questions")
    results = [result for ablation in shown for result in ablation.results]
    figure = new_figure("What the parts of PEARL bring", _caption(results), 3.3, max(7.2, 0.8 + 0.85 * len(results)))
    ratios = [len(ablation.results) + 0.5 for ablation in shown]
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False, width_ratios=ratios)[0]
    rows = []
    for axes, ablation in zip(panels, shown, strict=True):
        members = ablation.results
        summaries = [result.overall for result in members if result.overall]
        spots, values = np.arange(len(members)), [s.speedup for s in summaries]
        for spot, result, value in zip(spots, members, values, strict=True):
            whole = result.without == NOTHING
            bar = axes.bar(spot, value, 0.62, **looks[result.method].bar | {"alpha": 1 if whole else 0.55})
            hint(bar[0], _hint(ablation.group.labels[result], result.summary))
        whiskers(axes, spots, values, yerr=_errors(summaries))
        _label_bars(axes, spots, summaries)
        one_line(axes)
        axes.set_xticks(spots, [ABLATION[str(result.without)] for result in members])
        axes.set(title="\n".join(textwrap.wrap(ablation.label, 12 * len(members))), xlim=(-0.6, len(members) - 0.4))
        axes.grid(axis="x", visible=False)
        rows += [_row(ablation.group, r, s) | {"without": r.without} for r, s in zip(members, summaries, strict=True)]
    panels[0].set(ylabel="speedup", ylim=(0, None))
    about = "PEARL, and PEARL without pre-verify, post-verify or both, each over the baseline of its own launch."
    return Drawing("ablation", figure, pd.DataFrame(rows), about)
