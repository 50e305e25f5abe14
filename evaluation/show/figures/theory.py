"""These figures set measurements beside the theory: speed against the window, predicted against measured speedup, and
where PEARL beats draft-then-verify."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from evaluation.judge.fit import (
    Pace,
    advantage,
    decode_rate,
    decode_speedup,
    pace,
    predicted_over_baseline,
    predicted_rate,
)
from evaluation.judge.groups import Group, LeftOut, Result, conditions
from evaluation.judge.series import Sweep, mean_baseline_rate, measured_paces, sweeps
from evaluation.judge.sharing import predicted_sharing
from evaluation.show.figures.speed import Looks, file_name
from evaluation.show.figures.style import BLACK, GREY, SMALL, Drawing, add_legend, halo, hint, new_figure, whiskers
from methods import theory

ASSUMES = "Theory: every draft token is accepted with the same chance; draft tokens and passes take their mean time."
CURVE_POINTS = 200
C_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
GRID = 60  # of the plane, a side
COLUMNS = 4  # of the legends of methods: names as long as pearl-medusa fit
HITS = {0.3: (0, (5, 2)), 0.6: (0, (1, 1.5))}  # of PEARL's branches: the plane shows a line for each, in this style


def window_sweep(group: Group, groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw tokens per second against the window, with the theory's curve at the sweep's own alpha and c."""
    shown, reasons = sweeps(group)
    if not shown:
        raise LeftOut("needs runs of a method with two windows (--gamma) or more, on the same questions")
    results = [result for sweep in shown for result in sweep.results]
    figure = new_figure(f"Speed by window, {group.name}", f"{ASSUMES}\n{conditions(results)}", 4.1, 7.2, len(shown))
    axes = figure.subplots()
    rows = [row for place, sweep in enumerate(shown) for row in _draw_sweep(axes, place, sweep, looks)]
    axes.axhline(mean_baseline_rate(results), color=BLACK, linewidth=1, linestyle=(0, (4, 2)), label="baseline")
    axes.set(xlabel="window (gamma), tokens drafted per round", ylabel="tokens per second, decoding", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, _by_column(axes), 3)
    about = (
        "Points: tokens per second without prefill; whiskers: the 95% interval of the speedup, times the baseline's "
        "rate. Curves: the theory at the runs' own alpha and c. Dotted: c, a target pass's time in draft tokens."
    )
    return Drawing(file_name("window", group, groups), figure, pd.DataFrame(rows), about, group.name, reasons)


def _draw_sweep(axes: Axes, place: int, sweep: Sweep, looks: Looks) -> Iterator[dict[str, Any]]:
    """The sweep's points, curve and c; yields their numbers."""
    look, measured = looks[sweep.results[0].method], pace(sweep.results)
    about = {"run": sweep.label, "alpha": measured.alpha, "c": measured.c}
    sizes = [size for size, _ in sweep.points]
    rows = [{"kind": "measured", "window": size} | asdict(decode_rate(result)) for size, result in sweep.points]
    rates, low, high = (np.array([row[key] for row in rows], float) for key in ("tokens_per_second", "low", "high"))
    whiskers(axes, sizes, rates, yerr=[rates - low, high - rates])
    (line,) = axes.plot(sizes, rates, look.marker, color=look.color, zorder=5, label=sweep.label)
    hint(line, f"{sweep.label}: " + ", ".join(f"{rate:.1f} at {size}" for size, rate in zip(sizes, rates, strict=True)))
    yield from (about | row for row in rows)
    if rate_by_window := predicted_rate(sweep.results[0], measured):
        curve = np.linspace(1, max(*sizes, measured.c) * 1.08, CURVE_POINTS)
        predicted = [rate_by_window(size) for size in curve]
        label = f"theory: alpha {measured.alpha:.2f}, c {measured.c:.1f}"
        axes.plot(curve, predicted, look.line, color=look.color, label=label, alpha=0.85)
        for size, rate in zip(curve, predicted, strict=True):
            yield about | {"kind": "theory", "window": size, "tokens_per_second": rate}
    axes.axvline(measured.c, color=look.color, linestyle=":", linewidth=1.2)
    style: dict[str, Any] = {"textcoords": "offset points", "color": look.color, "fontsize": 7.5}
    spot = measured.c, 0.02 + 0.06 * place
    axes.annotate(f"c = {measured.c:.1f}", spot, (3, 0), xycoords=("data", "axes fraction"), **style)


def _by_column(axes: Axes) -> list[Any]:
    """The legend's entries, which fill it by column: the runs, their theory, the baseline."""
    entries = axes.get_legend_handles_labels()[0]
    return sorted(entries[:-1], key=lambda entry: str(entry.get_label()).startswith("theory")) + entries[-1:]


def prediction(groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw the theory's speedup against the measured one."""
    paces, reasons = measured_paces(groups)
    if not paces:
        raise LeftOut("; ".join(reasons) or "needs a run whose draft is a model, with its baseline")
    measured = {result: decode_speedup(result) for result in paces}
    predicted = {result: predicted_over_baseline(result, its_pace) for result, its_pace in paces.items()}
    sharing = _sharing(groups, paces)
    figure = new_figure(
        "Speedup, predicted and measured", f"{ASSUMES}\n{conditions(paces)}", 5.4, 5.2, _legend_rows(paces)
    )
    axes = figure.subplots()
    ends = [v for s in measured.values() for v in (s.low or s.ratio, s.high or s.ratio)]
    ends += [*predicted.values(), *sharing.values()]
    least, most = min(ends) * 0.9, max(ends) * 1.1
    axes.axline((1, 1), slope=1, color=GREY, linewidth=1)
    axes.annotate("as predicted", (most, most), (-8, -5), textcoords="offset points", ha="right", va="bottom",
                  fontsize=7.5, color=GREY, rotation=45, rotation_mode="anchor")  # fmt: skip
    rows = []
    for name, label, result in _labelled(groups, paces):
        speedup, look = measured[result], looks[result.method]
        if result in sharing:
            axes.plot(sharing[result], speedup.ratio, look.marker, color=look.color, markersize=7, zorder=4, mfc="none")
        low, high = speedup.low or np.nan, speedup.high or np.nan
        whiskers(axes, predicted[result], speedup.ratio, yerr=[[speedup.ratio - low], [high - speedup.ratio]])
        (point,) = axes.plot(predicted[result], speedup.ratio, look.marker, color=look.color, markersize=7, zorder=5)
        hint(point, f"{name}: {label}, predicted {predicted[result]:.2f}x, measured {speedup.ratio:.2f}x")
        told = {"predicted": predicted[result], "predicted_sharing": sharing.get(result), "measured": speedup.ratio}
        rows.append(_pace_row(name, label, paces[result]) | told | {"low": speedup.low, "high": speedup.high})
    axes.set(
        xlim=(least, most), ylim=(least, most), aspect="equal", xlabel="predicted speedup", ylabel="measured, decoding"
    )
    _name_points(figure, axes, looks, list(paces))
    about = (
        "The theory's tokens per second at each run's own acceptance rate, window and times of a draft token and a "
        "pass, over the baseline's, against the speedup measured while decoding. Hollow: PEARL on cores that share a "
        "memory, from the times of the other methods of its launch."
    )
    return Drawing("prediction", figure, pd.DataFrame(rows), about, missing=reasons)


def _sharing(groups: Sequence[Group], paces: Mapping[Result, Pace]) -> dict[Result, float]:
    """Of the runs for which there is one, what is predicted where the ranks share a memory."""
    found = {}
    for group in groups:
        for result in (result for result in group.results if result in paces):
            with suppress(LeftOut):
                found[result] = predicted_sharing(result, paces[result], group)
    return found


def _legend_rows(results: Iterable[Result]) -> int:
    return -(-len({result.method for result in results}) // COLUMNS)


def _labelled(groups: Sequence[Group], paces: Mapping[Result, Pace]) -> list[tuple[str, str, Result]]:
    return [(g.name, g.labels[result], result) for g in groups for result in g.results if result in paces]


def _pace_row(group: str, label: str, its_pace: Pace) -> dict[str, Any]:
    return {
        "group": group,
        "run": label,
        "alpha": its_pace.alpha,
        "window": "free" if its_pace.window is None else its_pace.window,
        "c": its_pace.c,
        "hits": its_pace.hits,
        "draft_seconds_per_token": its_pace.draft_seconds,
        "verify_seconds_per_pass": its_pace.verify_seconds,
    }


def _name_points(figure: Figure, axes: Axes, looks: Looks, results: Sequence[Result]) -> None:
    """A legend with each method once."""
    methods = dict.fromkeys(result.method for result in results)
    style: dict[str, Any] = {"linestyle": "none", "markersize": 7}
    handles = [axes.plot([], [], color=looks[m].color, marker=looks[m].marker, label=m, **style)[0] for m in methods]
    add_legend(figure, handles, COLUMNS)


def plane(groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw PEARL against draft-then-verify for every alpha and c, and where the measured runs lie."""
    paces, reasons = measured_paces(groups)
    if not paces:
        raise LeftOut("; ".join(reasons) or "needs a run whose draft is a model, with its baseline")
    figure = new_figure(
        "Where PEARL beats draft-then-verify", f"{ASSUMES}\n{conditions(paces)}", 5.2, 6.0, _legend_rows(paces)
    )
    axes = figure.subplots()
    most = max(60.0, *(its_pace.c * 1.5 for its_pace in paces.values()))
    least = min(1.0, *(its_pace.c / 1.5 for its_pace in paces.values()))
    _draw_plane(axes, least, most)
    rows = []
    for name, label, result in _labelled(groups, paces):
        its_pace, look = paces[result], looks[result.method]
        style: dict[str, Any] = {"color": look.color, "markersize": 8, "markeredgecolor": "white", "zorder": 6}
        (point,) = axes.plot(its_pace.alpha, its_pace.c, look.marker, **style)
        hint(point, f"{name}: {label}, alpha {its_pace.alpha:.2f}, c {its_pace.c:.1f}")
        rows.append(
            _pace_row(name, label, its_pace) | {"break_even_c": theory.break_even_c(its_pace.alpha, its_pace.hits)}
        )
    axes.set(xlabel="alpha, acceptance rate of a draft token", xlim=(0, 1), ylim=(least, most))
    axes.set_ylabel("c, a target pass's time in draft tokens")
    axes.set_yticks([tick for tick in C_TICKS if least <= tick <= most], minor=False)
    axes.yaxis.set_major_formatter(lambda c, _: f"{c:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda alpha, _: f"{alpha:g}")
    _name_points(figure, axes, looks, list(paces))
    about = (
        "Below the line PEARL with window c beats draft-then-verify with its best window, above it loses; the contours "
        "are the ratio of the two speedups. The broken lines: that border, if branches had the window ready behind so "
        "many of the rejections. Points: the runs' measured alpha and c."
    )
    return Drawing("plane", figure, pd.DataFrame(rows), about, missing=reasons)


def _draw_plane(axes: Axes, least: float, most: float) -> None:
    alphas, cs = np.linspace(0.001, 0.999, GRID), np.geomspace(least, most, GRID)
    ratios = np.array([[advantage(float(a), float(c)) for a in alphas] for c in cs])
    axes.contourf(alphas, cs, np.log2(ratios), levels=np.linspace(-1, 1, 21), cmap="PuOr_r", extend="both", alpha=0.75)
    lines = axes.contour(alphas, cs, ratios, levels=[0.8, 0.9, 1.1, 1.25, 1.5], colors=GREY, linewidths=0.7)
    axes.clabel(lines, fmt=lambda ratio: f"{ratio:g}x", fontsize=7)
    inner = np.linspace(0.005, 0.995, CURVE_POINTS)
    axes.plot(inner, [theory.break_even_c(float(a)) for a in inner], color=BLACK, linewidth=1.8)
    for hits, style in HITS.items():
        label = f"with branches that hit {hits:.0%}"
        line = [theory.break_even_c(float(a), hits) for a in inner]
        axes.plot(inner, line, color=BLACK, linewidth=1.1, linestyle=style, label=label)
    axes.legend(loc="lower right", fontsize=SMALL, frameon=True)
    for x, y, text in ((0.6, 0.9, "draft-then-verify is faster"), (0.7, 0.25, "PEARL is faster")):
        axes.text(x, y, text, transform=axes.transAxes, ha="center", fontweight="bold", path_effects=halo(3))
    axes.set_yscale("log")
    axes.grid(visible=False)
