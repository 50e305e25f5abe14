"""Whole generations of the published code, gone through again pass by pass with our drafter and our target.

Where the published loops differ from ours, and what that means here:
- they stop behind their limit, so a trace has as many passes as its accept lengths; the token that the last pass added
  is never emitted;
- their accept lengths count the drafts that were kept;
- they fill short paths with token 0 (Medusa) or the last node's (Hydra) and may "accept" these: where the target emits
  token 0 their next tokens may not be the target's, so a trace is compared up to there;
- where two candidates' scores differ by less than NEAR, either order is right, and a trace whose tree differs there is
  compared up to there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from evaluation.proof.golden.agreement import Agreement, same
from evaluation.proof.golden.folder import Golden
from methods.drafters.base import Drafter
from methods.engine.sampling import Sampling
from methods.target import Target

NEAR = 1e-5
PAD = 0
Items = list[tuple[str, object, object]]


@dataclass
class Compared:
    """What the traces of a setting show, ours and theirs."""

    trees: Items = field(default_factory=list)
    lengths: Items = field(default_factory=list)
    outputs: Items = field(default_factory=list)

    def agreements(self, setting: str) -> Iterator[Agreement]:
        """Of everything that was compared."""
        for what, items in (("trees", self.trees), ("accept lengths", self.lengths), ("tokens", self.outputs)):
            yield same(f"{what}, {setting}", items)


def replayed(golden: Golden, drafter_of: Callable[[dict[str, Any]], Drafter]) -> Iterator[Agreement]:
    """Trees, accept lengths and outputs of every setting. `drafter_of`: the drafter of a trace."""
    settings: dict[str, Compared] = {}
    for number, trace in enumerate(golden.lines("traces.jsonl"), 1):
        found = settings.setdefault(trace["setting"], Compared())
        _replay(golden, drafter_of(trace), trace, f"line {number}", found)
    for setting, found in settings.items():
        yield from found.agreements(setting)


def _replay(golden: Golden, drafter: Drafter, trace: dict[str, Any], line: str, found: Compared) -> None:
    target = Target(golden.models.target, drafter.taps)
    first, features_TF = target.start(trace["prompt"], Sampling())
    drafter.begin(trace["prompt"], Sampling(), features_TF)
    drafter.settle(first)
    tokens, whole = [target.pending], True
    for step, expected in enumerate(trace["accept_length"]):
        tree = drafter.propose(target.room - 1)
        if step < len(trace["drafts"]):
            theirs = trace["drafts"][step]
            ours = {"tokens": list(tree.tokens), "parents": list(tree.parents)}
            ours, theirs = ({key: of[key] for key in ours if key in theirs} for of in (ours, theirs))
            if ours != theirs and trace["min_topk_gap_per_draft"][step] < NEAR:
                whole = False
                break
            found.trees.append((f"{line}, pass {step}", ours, theirs))
        outcome = target.judge(tree)
        drafter.settle(outcome)
        tokens += outcome.tokens
        found.lengths.append((f"{line}, pass {step}", outcome.accepted, expected))
        if PAD in outcome.tokens:
            whole = False
            break
    emitted = tokens[:-1]
    found.outputs.append((line, emitted, trace["output"] if whole else trace["output"][: len(emitted)]))


def greedy(golden: Golden) -> Agreement:
    """Plain decoding of the target."""
    lines = golden.lines("greedy.jsonl")
    ours = [list(golden.greedy(line["prompt"], len(line["output"]))) for line in lines]
    return same(
        "tokens, target alone",
        [(f"line {n}", got, line["output"]) for n, (got, line) in enumerate(zip(ours, lines, strict=True), 1)],
    )
