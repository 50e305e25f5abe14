"""These figures show what happens in a round: what a pass keeps, who waits for whom, and a timeline of both sides."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evaluation.answers.record import Choice
from evaluation.answers.trace import Trace, TracedSpan, Turn
from evaluation.judge import stats
from evaluation.judge.fit import rounds, schedule
from evaluation.judge.groups import Group, LeftOut, Result, conditions
from evaluation.judge.timeline import spans_of
from evaluation.show.figures.speed import Looks, file_name, whole
from evaluation.show.figures.style import BLUE, FAINT, GREY, ORANGE, SMALL, Drawing, Look, add_legend, new_figure
from methods.theory import SCHEDULES

PEARL = SCHEDULES[0]
LONGEST_SHOWN = 12  # tokens; what is longer is one point, "more"
MOST_BARS = 3  # side by side
TIMELINE_ROUNDS = 8
WORK: Mapping[str, dict[str, Any]] = {
    "verify": {"facecolor": BLUE, "edgecolor": "white"},
    "draft": {"facecolor": ORANGE, "edgecolor": "white", "hatch": "////"},
    "wait": {"facecolor": "white", "edgecolor": GREY, "hatch": ".."},
}
LEGEND = [Patch(label=name, **look) for name, look in (("verifies", WORK["verify"]), ("drafts", WORK["draft"]))]
LEGEND += [Patch(label="waits", **WORK["wait"])]


def acceptance(group: Group, groups: Sequence[Group], looks: Looks) -> Drawing:
    """Draw how often each accept length and run length occurs, and the acceptance rate by draft position."""
    results = [r for r in whole(group) if stats.acceptance_rate(r.choices) is not None]
    if not results:
        raise LeftOut("needs a run that records what it drafted")
    figure = new_figure(f"What a target pass keeps, {group.name}", conditions(results), 3.4, 7.2, -(-len(results) // 4))
    panels = figure.subplots(1, 3)
    rows = []
    for place, result in enumerate(results):
        quantities = _quantities(result)
        for quantity, points in quantities.items():
            rows += [
                {"run": group.labels[result], "quantity": quantity, "value": value, "count": count, "share": share}
                for value, count, share in points
            ]
        for axes, quantity in zip(panels, ("accept length", "run length"), strict=False):
            _draw_shares(axes, quantities[quantity], looks[result.method], place, len(results))
        positions = [(value, share) for value, _, share in quantities["draft position"] if value <= LONGEST_SHOWN]
        look = looks[result.method]
        style: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": look.line}
        panels[2].plot(*zip(*positions, strict=True), **style, label=group.labels[result])
    titles = ("Accept length", "Run length", "Draft position")
    labels = ("tokens per target pass", "drafts kept between rejections", "n-th drafted token")
    shares = ("share of passes", "share of runs", "first n all accepted")
    for axes, title, below, beside in zip(panels, titles, labels, shares, strict=True):
        axes.set(title=title, xlabel=below, ylabel=beside, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    panels[2].set_ylim(0, 1.04)
    handles = [Patch(label=group.labels[result], **looks[result.method].bar) for result in results]
    add_legend(figure, handles if len(results) <= MOST_BARS else panels[2].get_legend_handles_labels()[0], 4)
    about = (
        "Left: tokens that one target pass decided. Middle: accepted drafts between two rejections, chains only. "
        f"Right: drafts of at least n tokens of which the first n were accepted. Shown up to {LONGEST_SHOWN}."
    )
    return Drawing(file_name("acceptance", group, groups), figure, pd.DataFrame(rows), about, group.name)


def _draw_shares(axes: Axes, points: Sequence[tuple[int, int, float]], look: Look, place: int, runs: int) -> None:
    """A histogram beside those of the other runs; where they are too many for bars, as lines."""
    shown = [(value, share) for value, _, share in points if value <= LONGEST_SHOWN]
    if not shown:
        return
    values, shares = zip(*shown, strict=True)
    if runs > MOST_BARS:
        axes.plot(values, shares, look.line, marker=look.marker, color=look.color, markersize=4)
        return
    width = 0.86 / runs
    spots = [value + (place - (runs - 1) / 2) * width for value in values]
    axes.bar(spots, shares, width, **look.bar | {"linewidth": 0.3})
    axes.grid(axis="x", visible=False)


def _quantities(result: Result) -> dict[str, list[tuple[int, int, float]]]:
    """(value, count, share) of each quantity."""
    choices = result.choices
    lengths = Counter(length for choice in choices for length in choice.accept_lengths)
    chain = "nodes" not in result.options
    runs = Counter(length for choice in choices for length in run_lengths(choice)) if chain else Counter()
    drafted = [n for choice in choices for turn in choice.drafted or [] for n in turn]
    positions = enumerate(stats.acceptance_by_position(choices) or [], start=1)
    return {
        "accept length": _shares(lengths),
        "run length": _shares(runs),
        "draft position": [(n, sum(d >= n for d in drafted), rate) for n, rate in positions],
    }


def _shares(counts: Counter[int]) -> list[tuple[int, int, float]]:
    total = sum(counts.values())
    return [(n, counts[n], counts[n] / total) for n in range(min(counts, default=0), max(counts, default=-1) + 1)]


def run_lengths(choice: Choice) -> Iterable[int]:
    """Count the accepted drafts before each rejection. What follows an answer's last rejection is no whole run, and is
    left out."""
    for drafted, accepted in zip(choice.drafted or [], choice.accepted or [], strict=True):
        length = 0
        for judged, kept in zip(drafted, accepted, strict=True):
            length += kept
            if kept < judged:
                yield length
                length = 0


@dataclass(frozen=True)
class RoundTimes:
    """This is how many seconds a round lasts on average, and how much of it each side works and waits."""

    total: float
    busy: dict[str, float]
    waits: dict[str, float]


def round_times(result: Result) -> RoundTimes:
    """Measure the mean round of a run. On one device the two take turns: the target waits while the draft drafts, and
    the draft waits all other time."""
    choices, count = result.choices, rounds(result.choices)
    times = [choice.prefill_time and choice.draft_time and choice.verify_time for choice in choices]
    if not count or not all(times):
        raise LeftOut(f"the files of {result.method} do not record the times of its rounds")

    def mean(key: str) -> float:
        return sum(sum(getattr(choice, key) or []) for choice in choices) / count

    total, draft, verify = mean("wall_time") - mean("prefill_time"), mean("draft_time"), mean("verify_time")
    own_rank = result.header.get("ranks", 1) > 1
    target_waits = mean("wait_time") if own_rank else draft
    return RoundTimes(total, {"draft": draft, "target": verify}, {"draft": total - draft, "target": target_waits})


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
        tokens = stats.mean_accept_length(result.choices)
        text = f"{group.labels[result]}\n{tokens:.2f} tokens per pass"
        axes.annotate(text, (0, place), (-42, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", va="center", fontsize=8)  # fmt: skip
    axes.set(xlabel="mean time of a round, ms", ylim=(len(results) - 0.45, -0.55))
    axes.set_xlim(0, max(of_round.total for of_round in times.values()) * 1e3 * 1.12)
    axes.grid(axis="y", visible=False)
    add_legend(figure, LEGEND, 3)
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
    axes.barh(spot, busy * 1e3, 0.34, **WORK[work])
    axes.barh(spot, waits * 1e3, 0.34, left=busy * 1e3, linewidth=0.6, **WORK["wait"])
    text = f"waits {waits / total:.0%}"
    axes.annotate(text, (total * 1e3, spot), (4, 0), textcoords="offset points", va="center", fontsize=7)
    return {
        "side": side,
        "round_seconds": total,
        "busy_seconds": busy,
        "waiting_seconds": waits,
        "waiting_share": waits / total,
    }


@dataclass(frozen=True)
class Round:
    """A round is one target pass of a traced answer, with the tokens that it decided."""

    spans: list[TracedSpan]
    tokens: int
    rejected: bool

    def dropped(self, span: TracedSpan) -> bool:
        """Say whether a draft is in vain: drafted beside a pass that rejected what it would have followed."""
        passes = [s for s in self.spans if s.work == "verify"]
        beside = span.rank == "draft" and span.end > passes[0].begin and span.begin < passes[-1].end
        return span.work == "draft" and self.rejected and beside


def first_rounds(result: Result, turn: Turn, spans: Iterable[TracedSpan]) -> list[Round]:
    """Return the first rounds of an answer. Two ranks end a round by deciding, which is the second span of verifying; a
    single rank ends it by telling its drafter."""
    choice, at = result.run.answers[turn[0]].choices[0], turn[1]
    behind_prefill = sum((choice.decoding_steps or [])[:at]) + 1
    lengths = choice.accept_lengths[behind_prefill : behind_prefill + TIMELINE_ROUNDS]
    judged, kept = ([] if turns is None else turns[at][1:] for turns in (choice.drafted, choice.accepted))
    found: list[list[TracedSpan]] = [[]]
    for span in spans:
        found[-1].append(span)
        works = [s.work for s in found[-1]]
        two_ranks = result.header.get("ranks", 1) > 1
        if works.count("verify") == 2 if two_ranks else works[-2:] == ["verify", "draft"]:
            found.append([])
    rounds_found = [Round(s, n, k < j) for s, n, j, k in zip(found, lengths, judged, kept, strict=False)]
    return [one for one in rounds_found if any(span.work == "verify" for span in one.spans)]


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
    answers = {result: first_rounds(result, turn, turns[turn]) for result, turns in traced.items()}
    if not all(answers.values()):
        raise LeftOut(f"{trace.path} shows no whole round of an answer")
    small = f"question {turn[0]}, turn {turn[1] + 1} · {conditions(answers)}"
    figure = new_figure("The first rounds of an answer", small, 1.35 + 1.0 * len(answers), 7.2, 1)
    panels = figure.subplots(len(answers), 1, sharex=True, squeeze=False)[:, 0]
    rows = []
    for axes, (result, its_rounds) in zip(panels, answers.items(), strict=True):
        one_device = "" if result.header.get("ranks", 1) > 1 else ", on one device"
        rows += [{"run": labels[result]} | row for row in _draw_rounds(axes, its_rounds, labels[result], one_device)]
    panels[-1].set_xlabel("time since the first round began, ms")
    dropped = Patch(label="drafts, and it is dropped", **DROPPED)
    add_legend(figure, [*LEGEND[:2], dropped, LEGEND[2]], 4)
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
            axes.barh(int(span.work == "verify"), stop - begin, 0.7, left=begin, zorder=2, **look)
            yield {"round": number, "side": "target" if span.work == "verify" else "draft", "work": span.work,
                   "begin_ms": begin, "end_ms": stop, "dropped": dropped}  # fmt: skip
        decided = (max(span.end for span in of_round.spans if span.work == "verify") - zero) * 1e3
        axes.annotate(f"+{of_round.tokens}", (decided, 1.37), ha="right", va="bottom", fontsize=SMALL)
        yield {"round": number, "side": "target", "work": "decided", "begin_ms": decided, "end_ms": decided,
               "tokens": of_round.tokens}  # fmt: skip
    axes.set_yticks([1, 0], ["target", "draft"])
    axes.set(ylim=(-0.5, 1.8), xlim=(0, None))
    axes.grid(visible=False)
