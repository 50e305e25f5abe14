"""Generations of published loops without a prefill of their own: their first pass is rooted at the prompt's last token,
where ours begin with the first token of the answer."""

from collections.abc import Callable, Iterator
from typing import Any

from evaluation.proof.golden.folder import Golden
from evaluation.proof.golden.replay import Compared
from methods.drafters.base import Drafter
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.target import Outcome, Target

Judge = Callable[[Target, TokenTree], Outcome]


def started(golden: Golden, drafter: Drafter, prompt_T: list[int]) -> Target:
    """Our target and our drafter, at the beginning of such a loop."""
    *prompt, root = prompt_T
    target = Target(golden.models.target)
    target.start(prompt, Sampling())
    drafter.begin(prompt, Sampling(), None)
    target.pending = root
    drafter.settle(Outcome([root], [0]))
    return target


def passes(
    target: Target, drafter: Drafter, trace: dict[str, Any], judge: Judge = Target.judge
) -> Iterator[tuple[TokenTree, list[int]]]:
    """The tree of each pass and the tokens that it decided, as far as the output of the trace goes."""
    decided = 0
    while decided < len(trace["output"]):
        tree = drafter.propose(target.room - 1)
        outcome = judge(target, tree)
        yield tree, outcome.tokens
        drafter.settle(outcome)
        decided += len(outcome.tokens)


def gone_through(
    line: str, passes: Iterator[tuple[TokenTree, list[int]]], trace: dict[str, Any], lengths: list[int], found: Compared
) -> Iterator[tuple[str, TokenTree]]:
    """The tree of each pass and its place. What the passes decide is compared with the output of the trace, and with
    the tokens of each pass, of which the last one may be cut or missing."""
    tokens: list[int] = []
    for number, (tree, decided) in enumerate(passes):
        tokens += decided
        if number < len(lengths) and len(tokens) <= len(trace["output"]):
            found.lengths.append((f"{line}, pass {number}", len(decided), lengths[number]))
        yield f"{line}, pass {number}", tree
    found.outputs.append((line, tokens[: len(trace["output"])], trace["output"]))
