"""What a report is judged by: conditions under which it fails."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.judge.change import Pairing
from evaluation.judge.equality import Comparison, compare
from evaluation.judge.groups import Group, Result
from methods import BASELINE
from methods.errors import UserError, nearest

IDENTICAL = "identical"
CHANGE = "change"


@dataclass(frozen=True)
class Gate:
    """NAME<NUMBER: fails a report in which it holds. `name`: a method, whose overall speedup counts; "identical", the
    share of questions on which a lossless method's output is the baseline's; or "change", a run's speedup over that of
    the same run in the folder compared with."""

    text: str
    name: str
    limit: float


@dataclass(frozen=True)
class GateResult:
    """What a gate found: the lowest value there is, None if there is none to be had."""

    gate: Gate
    value: float | None

    @property
    def holds(self) -> bool:
        """A method that has nothing to show fails, too."""
        return self.value is None or self.value < self.gate.limit


def parse_gate(text: str) -> Gate:
    """Raises UserError for what is not METHOD<NUMBER."""
    match = re.fullmatch(r"\s*([\w.+-]+)\s*<\s*(\d+\.?\d*|\.\d+)\s*", text)
    if not match or not math.isfinite(float(match[2])):
        raise UserError(
            f"expected --fail-on METHOD<NUMBER, such as 'pearl<1.5', 'identical<1' or 'change<0.95', got '{text}'"
        )
    return Gate(text, match[1], float(match[2]))


def judge(gate: Gate, groups: Sequence[Group], pairings: Sequence[Pairing] = ()) -> GateResult:
    """Raises UserError for a name that no run has, or where there is nothing to compare."""
    if gate.name == CHANGE:
        changes = [pairing.change.ratio for pairing in pairings if pairing.change]
        if not changes:
            raise UserError(f"'{gate.text}' needs an earlier folder to compare with; pass --compare OTHER")
        return GateResult(gate, min(changes))
    if gate.name == IDENTICAL:
        shares = identical_shares(groups)
        if not shares:
            raise UserError(f"'{gate.text}' cannot be judged: the folder has no greedy run of a lossless method")
        return GateResult(gate, min(shares))
    runs = [result for group in groups for result in group.results if result.method == gate.name]
    if not runs or gate.name == BASELINE:
        names = {result.method for group in groups for result in group.results} - {BASELINE} | {IDENTICAL, CHANGE}
        raise UserError(f"'{gate.text}' names no method measured in the folder{nearest(gate.name, names)}")
    speedups = [result.overall.speedup if result.overall else None for result in runs]
    known = [speedup for speedup in speedups if speedup is not None]
    return GateResult(gate, min(known) if len(known) == len(runs) else None)


def compare_all(groups: Sequence[Group]) -> dict[Result, Comparison]:
    """Every greedy run beside its baseline, token by token. Sampled output need not be equal."""
    return {
        result: compare(result.run, result.base)
        for group in groups
        for result in group.measured
        if result.base and result.header.greedy
    }


def identical_shares(groups: Sequence[Group]) -> list[float]:
    """Of each greedy run of a lossless method: the share of questions that are identical; 0 where none was answered."""
    equality = compare_all(groups)
    runs = [result for group in groups for result in group.results if result.method != BASELINE]
    exact = [r for r in runs if r.header.exact and r.header.greedy]
    return [equality[r].identical / len(equality[r].questions) if r in equality else 0.0 for r in exact]
