"""What a report is judged by: conditions under which it fails, and an earlier report's runs."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.equal import Comparison, compare
from evaluation.headers import header_differences
from evaluation.results import Group, Result
from evaluation.tables import Summary
from methods import BASELINE
from methods.errors import UserError, nearest

IDENTICAL = "identical"


@dataclass(frozen=True)
class Gate:
    """NAME<NUMBER: fails a report in which it holds. `name`: a method, whose overall speedup counts, or "identical",
    the share of questions on which a lossless method's output is the baseline's."""

    text: str
    name: str
    limit: float


@dataclass(frozen=True)
class Outcome:
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
        raise UserError(f"expected --fail-on METHOD<NUMBER, such as 'pearl<1.5' or 'identical<1', got '{text}'")
    return Gate(text, match[1], float(match[2]))


def judge(gate: Gate, groups: Sequence[Group]) -> Outcome:
    """Raises UserError for a name that no run has, or where there is nothing to compare."""
    if gate.name == IDENTICAL:
        shares = identical_shares(groups)
        if not shares:
            raise UserError(f"'{gate.text}' cannot be judged: the folder has no greedy run of a lossless method")
        return Outcome(gate, min(shares))
    runs = [result for group in groups for result in group.results if result.method == gate.name]
    if not runs or gate.name == BASELINE:
        names = {result.method for group in groups for result in group.results} - {BASELINE} | {IDENTICAL}
        raise UserError(f"'{gate.text}' names no method measured in the folder{nearest(gate.name, names)}")
    speedups = [result.overall["speedup"] if result.overall else None for result in runs]
    known = [speedup for speedup in speedups if speedup is not None]
    return Outcome(gate, min(known) if len(known) == len(runs) else None)


def compare_all(groups: Sequence[Group]) -> dict[Result, Comparison]:
    """Every greedy run beside its baseline, token by token. Sampled output need not be equal."""
    return {
        result: compare(result.run.path, result.base_path)
        for group in groups
        for result in group.measured
        if result.base_path and result.header["sampling"]["temperature"] == 0
    }


def identical_shares(groups: Sequence[Group]) -> list[float]:
    """Of each greedy run of a lossless method: the share of questions that are identical; 0 where none was answered."""
    equality = compare_all(groups)
    runs = [result for group in groups for result in group.results if result.method != BASELINE]
    exact = [r for r in runs if r.header.get("lossless", True) and r.header["sampling"]["temperature"] == 0]
    return [equality[r].identical / len(equality[r].questions) if r in equality else 0.0 for r in exact]


@dataclass(frozen=True)
class Pairing:
    """A run and the same one of an earlier folder."""

    name: str
    now: Summary
    before: Summary
    differences: list[str]

    @property
    def inside(self) -> bool | None:
        """Whether the speedup of now lies in the interval of before; None if that has none."""
        if self.before["low"] is None:
            return None
        return self.before["low"] <= self.now["speedup"] <= self.before["high"]


def pair_runs(now: Sequence[Group], before: Sequence[Group]) -> list[Pairing]:
    """Runs of the same pair, benchmark, sampling, method and options; of several earlier ones the one whose conditions
    differ least. Raises UserError where there is none."""
    earlier: dict[str, list[Result]] = {}
    for result in (r for group in before for r in group.measured):
        earlier.setdefault(_same(result), []).append(result)
    pairings = []
    for group in now:
        for result in group.measured:
            others = earlier.get(_same(result), [])
            if others:
                nearest_run = min(others, key=lambda other: len(header_differences(other.header, result.header)))
                pairings.append(_pairing(f"{group.name}: {group.labels[result]}", result, nearest_run))
    if not pairings:
        raise UserError("the two folders have no run of the same pair, benchmark, method and options to compare")
    return pairings


def _same(result: Result) -> str:
    h = result.header
    return json.dumps([h["pair"], h["benchmark"], h["sampling"], result.method, result.options], sort_keys=True)


def _pairing(name: str, now: Result, before: Result) -> Pairing:
    differences = header_differences(before.header, now.header)
    told = [f"{key} was {was}, is {now}" for key, (was, now) in differences.items() if key != "methods"]
    summaries = [summary for summary in (now.overall, before.overall) if summary is not None]
    return Pairing(name, summaries[0], summaries[1], told)
