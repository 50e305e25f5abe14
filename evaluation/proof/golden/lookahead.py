"""Lookahead decoding's goldens: windows, guesses and generations.

The published loop loses the last token of a guess that is right as a whole, and its pool learns a text in which the
last token of a pass stands in the place of all: see methods/drafters/lookahead.py. Both faults are repeated here, to
compare what comes behind them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from evaluation.proof.golden.agreement import Agreement, same
from evaluation.proof.golden.folder import Golden
from evaluation.proof.golden.replay import Compared, Items, greedy
from evaluation.proof.golden.rooted import gone_through, passes, started
from methods.drafters.lookahead import LookaheadDrafter, Window, WindowSize
from methods.engine.tree import TokenTree
from methods.target import Outcome, Target


class Published(LookaheadDrafter):
    """With the published record of the text."""

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome._replace(tokens=outcome.tokens[-1:] * len(outcome.tokens)))


def loses_the_last(length: int, target: Target, tree: TokenTree) -> Outcome:
    """What is decided without the token behind a whole guess of `length` - 1 tokens, which takes back a row."""
    outcome = target.judge(tree)
    if len(outcome.tokens) < length:
        return outcome
    target.decoder.truncate(target.decoder.length - 1)
    target.pending, target.decided = outcome.tokens[-2], target.decided - 1
    return outcome._replace(tokens=outcome.tokens[:-1], path_A=outcome.path_A[:-1])


@dataclass
class WithWindows(Compared):
    """The same, and the windows."""

    windows: Items = field(default_factory=list)

    def agreements(self, setting: str) -> Iterator[Agreement]:
        yield same(f"windows, {setting}", self.windows)
        yield from super().agreements(setting)


def check(golden: Golden) -> Iterator[Agreement]:
    """Windows and guesses of every pass that has some, accept lengths and outputs."""
    yield greedy(golden)
    settings: dict[str, WithWindows] = {}
    for number, trace in enumerate(golden.lines("traces.jsonl"), 1):
        _replay(golden, trace, f"line {number}", settings.setdefault(trace["setting"], WithWindows()))
    for setting, found in settings.items():
        yield from found.agreements(setting)


def _replay(golden: Golden, trace: dict[str, Any], line: str, found: WithWindows) -> None:
    length = trace["LEVEL"]
    drafter = Published(
        Window(WindowSize(trace["WINDOW_SIZE"], length, trace["GUESS_SET_SIZE"])), bool(trace["POOL_FROM_PROMPT"])
    )
    target = started(golden, drafter, trace["prompt"])
    drafter.lookahead.rows = [trace["initial_window"]]
    through = passes(target, drafter, trace, partial(loses_the_last, length))
    guesses = trace["guess_tokens_all_steps"] or [step["guess_tokens"] for step in trace["step_inputs"]]
    count = 0
    for place, tree in gone_through(line, through, trace, trace["accepted_per_step_except_last"], found):
        if count < len(guesses):
            found.trees.append((place, _judged(tree), _trie(tree.tokens[0], guesses[count] or [], length - 1)))
        if count < len(trace["step_inputs"]):
            window = [row for row in trace["step_inputs"][count]["window"] if row is not None]
            found.windows.append((place, drafter.lookahead.rows, window))
        count += 1
    found.lengths.append((f"{line}, passes", count, trace["steps"]))


def _judged(tree: TokenTree) -> tuple[list[int], list[int]]:
    return list(tree.tokens[: tree.judged]), list(tree.parents[: tree.judged])


def _trie(pending: int, tokens: list[int], length: int) -> tuple[list[int], list[int]]:
    """Of the guesses that lie one behind the other."""
    return _judged(TokenTree.of(pending, [tokens[at : at + length] for at in range(0, len(tokens), length)]))
