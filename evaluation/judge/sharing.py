"""What PEARL would reach where both its ranks read one memory, from the times that its launch shows of each alone."""

from evaluation.judge.fit import NOTHING, Pace, baseline_rate, decode_speedup, pace
from evaluation.judge.groups import Group, LeftOut, Result
from methods import theory
from methods.table import ALL_DEVICES


def predicted_sharing(result: Result, measured: Pace, group: Group) -> float:
    """The speedup over the baseline, from what `theory.sharing_rate` asks: the acceptance of the run itself, the times
    of draft-then-verify with the same drafter, on the target's cores, and how much the target alone gains by the
    draft's cores too. Raises LeftOut where the launch lacks one of them, or the ranks do not share a memory."""
    if measured.window is None or result.without != NOTHING or not _on_cpus(result):
        raise LeftOut(f"{result.method} is not PEARL with a window on cores that share a memory")
    beside = [other for other in group.measured if other.folder == result.folder]
    turns = next((other for other in beside if _alone(other, result)), None)
    all_cores = next((other for other in beside if other.method == ALL_DEVICES), None)
    if turns is None or all_cores is None:
        raise LeftOut(f"beside {result.method} are no draft-then-verify run and no {ALL_DEVICES}")
    alone = pace([turns])
    # Two ranks with as many cores each read twice what one could; the memory gives what the target gets on all of them.
    slowdown = max(2 / decode_speedup(all_cores).ratio, 1.0)
    rate = theory.sharing_rate(measured.alpha, measured.window, alone.draft_seconds, alone.verify_seconds, slowdown)
    return rate / baseline_rate(result)


def _on_cpus(result: Result) -> bool:
    return all(str(device).startswith("cpu") for device in result.header.devices or [])


def _alone(other: Result, result: Result) -> bool:
    """Whether it drafts the same, before it verifies."""
    same = other.header.drafter == result.header.drafter and other.header.draft == result.header.draft
    return other.header.loop == "turns" and other.header.shape == "chain" and same
