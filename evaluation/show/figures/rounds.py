"""These figures show what happens in a round: what a pass keeps, who waits for whom, and a timeline of both sides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evaluation.answers.trace import Trace
from evaluation.judge.acceptance import drafts_of
from evaluation.judge.fit import schedule
from evaluation.judge.groups import Group, LeftOut, conditions
from evaluation.judge.rounds import Round, RoundTimes, first_rounds, own_rank, quantities, round_times
from evaluation.judge.stats import mean_accept_length
from evaluation.judge.timeline import spans_of
from evaluation.show.figures.speed import Looks, file_name, whole
from evaluation.show.figures.style import BLUE, FAINT, GREY, ORANGE, SMALL, Drawing, Look, add_legend, hint, new_figure
from methods.theory import SCHEDULES

PEARL = SCHEDULES[0]
LONGEST_SHOWN = 12  # tokens; what is longer is one point, "more"
MOST_BARS = 3  # side by side
TIMELINE_ROUNDS = 8
WORK: Mapping[str, dict[str, Any]] = {
    "verify": {"facecolor": BLUE, "edgecolor": "white"},
    "draft": {"facecolor": ORANGE, "edgecolor": "white", "hatch": "////"},
    "prepare": {"facecolor": "#f7e9c8", "edgecolor": "white", "hatch": "////"},
    "wait": {"facecolor": "white", "edgecolor": GREY, "hatch": ".."},
}
WORK_HANDLES = [Patch(label=name, **look) for name, look in (("verifies", WORK["verify"]), ("drafts", WORK["draft"]))]
WORK_HANDLES += [Patch(label="waits", **WORK["wait"])]


def acceptance(group: Group, groups: Sequence[Group], looks: Looks) -> Drawing:
    """Accept lengths and run lengths as shares, and the acceptance rate by draft position."""
    results = [r for r in whole(group) if len(drafts_of(r.run, r.choices).drafted)]
    if not results:
        raise LeftOut("needs a run that records what it drafted")
    figure = new_figure(f"What a target pass keeps, {group.name}", conditions(results), 3.4, 7.2, -(-len(results) // 4))
    panels = figure.subplots(1, 3)
    rows = []
    for place, result in enumerate(results):
        found = quantities(result)
        for quantity, points in found.items():
            rows += [
                {"run": group.labels[result], "quantity": quantity, "value": value, "count": count, "share": share}
                for value, count, share in points
            ]
        for axes, quantity in zip(panels, ("accept length", "run length"), strict=False):
            _draw_shares(axes, found[quantity], looks[result.method], (place, len(results)), group.labels[result])
        positions = [(value, share) for value, _, share in found["draft position"] if value <= LONGEST_SHOWN]
        look = looks[result.method]
        style: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": look.line}
        spots = [value for value, _ in positions], [share for _, share in positions]
        (line,) = panels[2].plot(*spots, **style, label=group.labels[result])
        hint(line, group.labels[result])
    titles = ("Accept length", "Run length", "Draft position")
    labels = ("tokens per target pass", "drafts kept between rejections", "n-th drafted token")
    shares = ("share of passes", "share of runs", "accepted, after n - 1")
    for axes, title, below, beside in zip(panels, titles, labels, shares, strict=True):
        axes.set(title=title, xlabel=below, ylabel=beside, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    panels[2].set_ylim(0, 1.04)
    handles = [Patch(label=group.labels[result], **looks[result.method].bar) for result in results]
    add_legend(figure, handles if len(results) <= MOST_BARS else panels[2].get_legend_handles_labels()[0], 4)
    about = (
        "Left: tokens that one target pass decided. Middle: accepted drafts between two rejections, chains only. "
        "Right: of the n-th draft tokens behind accepted ones, the share that was accepted; chains only. "
        f"Shown up to {LONGEST_SHOWN}."
    )
    return Drawing(file_name("acceptance", group, groups), figure, pd.DataFrame(rows), about, group.name)


def _draw_shares(
    axes: Axes, points: Sequence[tuple[int, int, float]], look: Look, among: tuple[int, int], label: str
) -> None:
    """A histogram beside those of the other runs, `among` which it has a place; where they are too many for bars, as
    lines."""
    place, runs = among
    shown = [(value, share) for value, _, share in points if value <= LONGEST_SHOWN]
    if not shown:
        return
    values, shares = zip(*shown, strict=True)
    if runs > MOST_BARS:
        (line,) = axes.plot(values, shares, look.line, marker=look.marker, color=look.color, markersize=4)
        hint(line, label)
        return
    width = 0.86 / runs
    spots = [value + (place - (runs - 1) / 2) * width for value in values]
    for bar, value, share in zip(
        axes.bar(spots, shares, width, **look.bar | {"linewidth": 0.3}), values, shares, strict=True
    ):
        hint(bar, f"{label}: {value}, {share:.0%}")
    axes.grid(axis="x", visible=False)


def waiting(group: Group, groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw who waits how long in a round, by draft-then-verify and by PEARL."""
    results = [result for result in group.typical if schedule(result)]
    if {schedule(result) for result in results} != set(SCHEDULES):
        raise LeftOut("needs PEARL and a method that drafts, then verifies, each with a draft model")
    times = {result: round_times(result) for result in results}
    figure = new_figure(f"Waiting in a round, {group.name}", conditions(results), 1.4 + 0.62 * len(results), 7.2, 1)
    axes = figure.subplots()
    rows, ticks = [], []
    for place, (result, of_round) in enumerate(times.items()):
        for lane, side in enumerate(("target", "draft")):
            spot = place + (lane - 0.5) * 0.38
            ticks.append((spot, side))
            rows.append(_waiting_bar(axes, spot, side, of_round) | {"run": group.labels[result]})
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    for place, result in enumerate(results):
        tokens = mean_accept_length(result.choices)
        text = f"{group.labels[result]}\n{tokens:.2f} tokens per pass"
        axes.annotate(text, (0, place), (-42, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", va="center", fontsize=8)  # fmt: skip
    axes.set(xlabel="mean time of a round, ms", ylim=(len(results) - 0.45, -0.55))
    axes.set_xlim(0, max(of_round.total for of_round in times.values()) * 1e3 * 1.12)
    axes.grid(axis="y", visible=False)
    add_legend(figure, WORK_HANDLES, 3)
    about = (
        "The mean round of each method: what the target's and the draft's side do, and how long each waits for the "
        "other. On one device the two take turns. What is blank is neither: messages, bookkeeping."
    )
    data = pd.DataFrame(rows)[["run", "side", "round_seconds", "busy_seconds", "waiting_seconds", "waiting_share"]]
    return Drawing(file_name("waiting", group, groups), figure, data, about, group.name)


def _waiting_bar(axes: Axes, spot: float, side: str, of_round: RoundTimes) -> dict[str, Any]:
    busy, waits, total = of_round.busy[side], of_round.waits[side], of_round.total
    work = "draft" if side == "draft" else "verify"
    axes.barh(spot, total * 1e3, 0.34, color="white", edgecolor=FAINT)
    parts = {work: axes.barh(spot, busy * 1e3, 0.34, **WORK[work])}
    parts["wait"] = axes.barh(spot, waits * 1e3, 0.34, left=busy * 1e3, linewidth=0.6, **WORK["wait"])
    for name, bar in parts.items():
        hint(bar[0], f"{side}: {name} {bar[0].get_width():.2f} of {total * 1e3:.2f} ms")
    share = of_round.waiting_share(side)
    text = f"waits {share:.0%}"
    axes.annotate(text, (total * 1e3, spot), (4, 0), textcoords="offset points", va="center", fontsize=7)
    return {
        "side": side,
        "round_seconds": total,
        "busy_seconds": busy,
        "waiting_seconds": waits,
        "waiting_share": share,
    }


def timeline(trace: Trace, groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw what both sides do in the first rounds of one answer, by PEARL and by a method that drafts, then
    verifies."""
    labels = {result: label for group in groups for result, label in group.labels.items()}
    traced = {
        result: spans_of(result, trace) for result in labels if schedule(result) and result.run.label in trace.answers
    }
    traced = {result: turns for result, turns in traced.items() if turns}
    common = set.intersection(*(set(turns) for turns in traced.values())) if traced else set()
    if {schedule(result) for result in traced} != set(SCHEDULES) or not common:
        raise LeftOut(f"{trace.path} does not show one answer of the folders' runs by PEARL and by draft, then verify")
    turn = next(turn for turn in next(iter(traced.values())) if turn in common)
    answers = {result: first_rounds(result, turn, turns[turn], TIMELINE_ROUNDS) for result, turns in traced.items()}
    if not all(answers.values()):
        raise LeftOut(f"{trace.path} shows no whole round of an answer")
    small = f"question {turn[0]}, turn {turn[1] + 1} · {conditions(answers)}"
    figure = new_figure("The first rounds of an answer", small, 1.35 + 1.0 * len(answers), 7.2, 1)
    panels = figure.subplots(len(answers), 1, sharex=True, squeeze=False)[:, 0]
    rows = []
    for axes, (result, its_rounds) in zip(panels, answers.items(), strict=True):
        one_device = "" if own_rank(result) else ", on one device"
        rows += [{"run": labels[result]} | row for row in _draw_rounds(axes, its_rounds, labels[result], one_device)]
    panels[-1].set_xlabel("time since the first round began, ms")
    dropped = Patch(label="drafts, and it is dropped", **DROPPED)
    add_legend(figure, [*WORK_HANDLES[:2], dropped, WORK_HANDLES[2]], 4)
    about = (
        f"The first {TIMELINE_ROUNDS} rounds of one answer, on one scale of time; +n are the tokens that each target "
        "pass decided. Drafts beside a pass that rejects are dropped."
    )
    return Drawing("timeline", figure, pd.DataFrame(rows), about)


DROPPED = WORK["draft"] | {"facecolor": "#f7dca3", "edgecolor": GREY, "hatch": "xxxx", "linewidth": 0.5}


def _draw_rounds(axes: Axes, its_rounds: Sequence[Round], label: str, where: str) -> Iterable[dict[str, Any]]:
    zero = min(span.begin for span in its_rounds[0].spans)
    end = max(span.end for span in its_rounds[-1].spans if span.rank == "target")
    axes.barh([1, 0], (end - zero) * 1e3, 0.7, linewidth=0.5, zorder=1, **WORK["wait"])
    tokens = sum(of_round.tokens for of_round in its_rounds)
    axes.set_title(f"{label}: {tokens} tokens in {len(its_rounds)} rounds, {(end - zero) * 1e3:.1f} ms{where}")
    for number, of_round in enumerate(its_rounds, start=1):
        for span in (span for span in of_round.spans if span.work != "wait"):
            begin, stop = (span.begin - zero) * 1e3, min(span.end - zero, end - zero) * 1e3
            dropped = of_round.dropped(span)
            look = DROPPED if dropped else WORK[span.work] | {"linewidth": 0.4}
            bar = axes.barh(int(span.work == "verify"), stop - begin, 0.7, left=begin, zorder=2, **look)
            hint(bar[0], f"round {number}: {span.work}{', dropped' if dropped else ''}, {stop - begin:.2f} ms")
            yield {"round": number, "side": "target" if span.work == "verify" else "draft", "work": span.work,
                   "begin_ms": begin, "end_ms": stop, "dropped": dropped}  # fmt: skip
        decided = (max(span.end for span in of_round.spans if span.work == "verify") - zero) * 1e3
        axes.annotate(f"+{of_round.tokens}", (decided, 1.37), ha="right", va="bottom", fontsize=SMALL)
        yield {"round": number, "side": "target", "work": "decided", "begin_ms": decided, "end_ms": decided,
               "tokens": of_round.tokens}  # fmt: skip
    axes.set_yticks([1, 0], ["target", "draft"])
    axes.set(ylim=(-0.5, 1.8), xlim=(0, None))
    axes.grid(visible=False)
