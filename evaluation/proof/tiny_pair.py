"""All answers of a method are enumerated on a random model of three tokens, with a draft for it: see enumeration.py.

They are loaded as any other pair, so that every method is built as in a run.
"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evaluation.proof.enumeration import enumerated
from evaluation.proof.goodness import all_answers, next_token
from methods import DrafterSpec, MethodSpec
from methods.base import Limits, generate
from methods.build import build_chain_drafter, build_method, chosen_options, write_tiny_weights
from methods.engine.sampling import Sampling
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.pearl.messages import Ready
from methods.pearl.target import Pearl
from methods.tiny import write_target

PROMPT, TOKENS = (0, 1, 2, 0, 1), 3  # the prompt repeats itself, so that it can be looked up
SMALL = {  # options that the number of runs depends on, or that could want more tokens than an answer has
    **{"gamma": 2, "branches": 2, "depth": 2, "nodes": 4},
    **{"columns": 2, "ngram": 2, "guesses": 2, "phrases": 2, "masks": 2},
    **{"matched": 1, "longest": 2},  # of what is copied before another drafter drafts: the prompt is short
}
FEW_HEADS = {"heads": 1}  # and of what another drafter goes on behind, so that its drafts are among the first tokens


@dataclass(frozen=True)
class Enumeration:
    """`answers`: how many can occur; `runs`: how many went through all random choices; `difference`: the largest one
    between the probability of an answer under the method and under the target."""

    answers: int
    runs: int
    difference: float


def enumerate_method(spec: MethodSpec, chosen: Mapping[str, Any], sampling: Sampling) -> Enumeration:
    """All answers of the method on the tiny pair; of the options `chosen` the words hold, sizes are as in SMALL."""
    options = _small(spec, {**chosen, **spec.fixed})
    spec = replace(spec, fixed={name: value for name, value in spec.fixed.items() if name not in options})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        models = tiny_models(Path(folder), spec.drafter, spec.behind(options | dict(spec.fixed)))
        expected = all_answers(next_token(models.target, PROMPT, sampling), TOKENS)
        ready: dict[str, Ready] = {}
        if spec.loop == "pearl":
            drafters = {spec.name: build_chain_drafter(spec, models, options)}
            models.link, ready = stack.enter_context(local_draft_rank(drafters))

        def answer() -> list[int]:
            method = build_method(spec, models, options)  # anew: it may learn from its answers
            if isinstance(method, Pearl):
                method.meet(ready[spec.name])
            return generate(method, PROMPT, sampling, Limits(frozenset(), TOKENS)).token_ids

        found, runs = enumerated(answer)
    difference = max(abs(found[a] - expected.get(a, 0.0)) for a in found | expected)
    return Enumeration(len(expected), runs, difference)


def _small(spec: MethodSpec, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options, of a size that can be enumerated. PEARL has branches only where they are chosen: then a window of
    one token, and one pass of the draft that prepares them."""
    words = {name: word for name, word in chosen.items() if isinstance(word, str) and word != "auto"}
    sizes = SMALL | (FEW_HEADS if spec.behind(chosen_options(spec, words)) else {})
    small: dict[str, Any] = {name: size for name, size in sizes.items() if name in spec.options} | words
    if spec.loop == "pearl":
        small["branches"] = chosen.get("branches", 0)
        small["gamma"] = 1 if small["branches"] else small["gamma"]
    return small


def tiny_models(folder: Path, *drafters: DrafterSpec | None) -> Models:
    """The pair, written below `folder`: a target, and weights of the kinds that the drafters need, the first's as its
    draft."""
    target = write_target(folder / "target")
    needed = {drafter.weights: drafter for drafter in drafters if drafter is not None and drafter.weights}
    drafts = {kind: str(write_tiny_weights(drafter, folder / kind, target)) for kind, drafter in needed.items()}
    draft = drafts.get(drafters[0].weights) if drafters[0] else None
    return Models(str(target), draft, "float32", [torch.device("cpu")], drafts=drafts)
