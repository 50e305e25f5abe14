"""What PEARL would reach where both its ranks read one memory, from the times that its launch shows of each alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.answers.record import Choice
from evaluation.judge.fit import (
    NOTHING,
    PEARL,
    PRE_VERIFY,
    Pace,
    baseline_rate,
    decode_speedup,
    pace,
    rounds,
    schedule,
)
from evaluation.judge.groups import Group, LeftOut, Result
from evaluation.judge.windows import Seen, seen
from methods.pearl.window import Windows, on_lines
from methods.rounds import Floats, answer_seconds
from methods.table import ALL_DEVICES
from methods.theory import sharing_seconds


@dataclass(frozen=True)
class Alone:
    """What the other methods of a launch show of a target and a draft of which the other does nothing meanwhile, and
    how much slower each is beside the other (`slowdown`). `pass_seconds`: by the rows of a pass."""

    draft_seconds: float  # of a drafted token
    pass_seconds: dict[int, float]
    slowdown: float

    def beside(self, longest: int, prepare_seconds: float, link_seconds: float) -> Floats:
        """both_RW of `answer_seconds`: passes of 1 to `longest` + 1 rows beside drafts of 1 to `longest` tokens."""
        return np.array([
            [self._beside(rows, window, prepare_seconds) + link_seconds for window in range(1, longest + 1)]
            for rows in range(1, longest + 2)
        ])  # fmt: skip

    def _beside(self, rows: int, window: int, prepare_seconds: float) -> float:
        """Branches are prepared in what the pass leaves of the draft's time, and read the memory as drafts do."""
        passing, drafting = on_lines(self.pass_seconds, rows), window * self.draft_seconds
        return sharing_seconds(passing, max(drafting, min(passing, drafting + prepare_seconds)), self.slowdown)


def predicted_sharing(result: Result, measured: Pace, group: Group) -> float:
    """The speedup over the baseline: every answer takes what `answer_seconds` says at the run's own acceptance, hits
    and windows, with the times that the target and the draft take alone, and what each slows the other down.

    Raises LeftOut where the launch lacks one of these, or the ranks do not share a memory."""
    told = schedule(result) == PEARL and measured.window is not None and result.without in (NOTHING, PRE_VERIFY)
    if measured.window is None or not told or not _on_cpus(result):
        raise LeftOut(f"{result.method} is not PEARL over a model, with a window, on cores that share a memory")
    alone, pre_verify = _alone_in(group, result), result.without == NOTHING
    turns = seen(result.choices, pre_verify)
    usual = sum((windows for _, windows in turns), Seen()).typical(Windows(measured.window, measured.window))
    answers = Counter((tokens, windows.typical(usual)) for tokens, windows in turns if tokens > 0)
    longest = max(max(windows) for _, windows in answers)
    link_seconds, prepare_seconds = _between_passes(result.choices)
    both_RW = alone.beside(longest, prepare_seconds, link_seconds)
    before_F = np.array([alone.draft_seconds * window + link_seconds for window in range(1, longest + 1)])

    def seconds(tokens: int, windows: Windows) -> float:
        seconds_FW = answer_seconds(measured.alpha, tokens, both_RW, before_F, pre_verify, measured.hits)
        return float(seconds_FW[windows.first - 1, windows.later - 1])

    total = sum(count * seconds(*answer) for answer, count in answers.items())
    return sum(tokens * count for (tokens, _), count in answers.items()) / total / baseline_rate(result)


def _alone_in(group: Group, result: Result) -> Alone:
    """From draft-then-verify with the same drafter and from the baseline on the target's cores, and on all."""
    beside = [other for other in group.measured if other.folder == result.folder]
    turns = next((other for other in beside if _drafts_the_same(other, result)), None)
    all_cores = next((other for other in beside if other.method == ALL_DEVICES), None)
    if turns is None or all_cores is None:
        raise LeftOut(f"beside {result.method} are no draft-then-verify run and no {ALL_DEVICES}")
    alone, token_seconds = pace([turns]), 1 / baseline_rate(result)
    rows = {1: token_seconds, (alone.window or 0) + 1: alone.verify_seconds}
    # Together they want to read so much more than the target alone, and the memory gives what that gets on all cores.
    rate = _rate_of_reading(turns, token_seconds)
    return Alone(alone.draft_seconds, rows, max((1 + rate) / decode_speedup(all_cores).ratio, 1.0))


def _rate_of_reading(turns: Result, token_seconds: float) -> float:
    """How fast the draft reads weights, over how fast the target does. Files that do not tell what was read are of
    drafts that are taken to be as fast."""
    target, read = turns.header.target, [sum(choice.draft_bytes or []) for choice in turns.choices]
    if target is None or "weight_bytes" not in target or not all(read):
        return 1.0
    drafting = sum(sum(choice.draft_time or []) for choice in turns.choices)
    return sum(read) / drafting / (target["weight_bytes"] / token_seconds)


def _between_passes(choices: Sequence[Choice]) -> tuple[float, float]:
    """Seconds of a round in which the target neither scores nor waits, as messages take; and for which branches are
    prepared."""
    parts = ("prefill_time", "verify_time", "wait_time")
    if not all(getattr(choice, part) for choice in choices for part in parts):
        raise LeftOut("the files do not record the times of the ranks")
    spent = sum(sum(choice.wall_time) - sum(sum(getattr(choice, part)) for part in parts) for choice in choices)
    preparing = sum(sum(choice.prepare_time or []) for choice in choices)
    return max(spent, 0.0) / rounds(choices), preparing / rounds(choices)


def _on_cpus(result: Result) -> bool:
    return all(str(device).startswith("cpu") for device in result.header.devices or [])


def _drafts_the_same(other: Result, result: Result) -> bool:
    """Whether it does, before it verifies."""
    same = other.header.drafter == result.header.drafter and other.header.draft == result.header.draft
    return other.header.loop == "turns" and other.header.shape == "chain" and same
