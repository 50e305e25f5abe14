"""EAGLE's goldens: EAGLE-1, 2 and 3.

Legend: K nodes of a level, P nodes before them.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from evaluation.proof.golden.agreement import Agreement, close
from evaluation.proof.golden.folder import Golden
from evaluation.proof.golden.replay import greedy, replayed
from evaluation.proof.golden.static import paths_of
from evaluation.proof.golden.target import forward
from methods.drafters.base import Drafter
from methods.drafters.eagle.drafters import DynamicTree, StaticTree
from methods.drafters.eagle.files import EAGLE, EAGLE3, Reading, load
from methods.drafters.eagle.head import EagleHead
from methods.engine.tree import TokenTree
from methods.models import Models

SPECULATORS = "speculators_forward"


def check(golden: Golden, kind: str, reading: Reading | None = None) -> Iterator[Agreement]:
    """Forward passes, trees and generations. `reading`: of the head, where it is to be another than its files'."""
    head, taps = load(golden.models, kind, reading or Reading())
    if (golden.folder / "target.safetensors").is_file():
        tensors = golden.tensors("target")
        yield from forward(golden, tensors)
        if "taps" in tensors:
            features_TF = golden.models.target.prefill(tensors["input_ids"][0].tolist(), taps).features_NF
            assert features_TF is not None
            yield close("taps", features_TF[None], tensors["taps"])
    for path in sorted(golden.folder.glob("forward_*.safetensors")):
        yield from _forwards(head, golden.tensors(path.stem), path.stem)
    if (golden.folder / f"{SPECULATORS}.safetensors").is_file():
        yield from _speculators(golden)
    yield greedy(golden)
    yield from replayed(golden, partial(_drafter_of, golden, head, taps))


eagle1 = eagle2 = partial(check, kind=EAGLE)
eagle3 = partial(check, kind=EAGLE3)


def _drafter_of(golden: Golden, head: EagleHead, taps: tuple[int, ...], trace: dict[str, Any]) -> Drafter:
    """With the shape of a trace: their depth counts the passes behind the first, and their tokens the root."""
    if "top_k" in trace:
        return DynamicTree(head, taps, trace["top_k"], trace["depth"] + 1, trace["total_token"] - 1)
    paths = paths_of(golden.table(f"buffers_{trace['setting']}.json"))
    return StaticTree(head, taps, golden.models.vocabulary, paths)


def _forwards(head: EagleHead, expected: dict[str, Tensor], file: str) -> Iterator[Agreement]:
    """Rounds of a pass over decided tokens and of levels of a tree behind them, which see what their masks say."""
    head.forget()
    number = 0
    while f"round{number}.level0.hidden_states" in expected:
        tree, level = TokenTree.chain([0]), 0
        while f"{(name := f'round{number}.level{level}.')}hidden_states" in expected:
            given, tokens = expected[f"{name}hidden_states"][0], expected[f"{name}input_ids"][0]
            if level == 0:
                out = head.read(given, tokens.tolist()[-len(given) :])
            else:
                known = tree.nodes
                parents = _parents(expected[f"{name}tree_mask"][0, 0], known - 1)
                tree = TokenTree([*tree.tokens, *tokens.tolist()], [*tree.parents, *parents])
                out = head.branch(tree, known, given)
            yield close(f"{file}, {name}out_hidden", out[None], expected[f"{name}out_hidden"])
            logits = f"{name}logits"
            logits = logits if logits in expected else f"{name}logits_draft_vocab"
            yield close(f"{file}, {logits}", head.logits(out)[None], expected[logits])
            level += 1
        number += 1


def _parents(mask_KP: Tensor, before: int) -> list[int]:
    """Of the nodes of a level, by what they see of the `before` nodes of earlier levels; node 0 is the root."""
    seen = mask_KP[:, :before].bool()
    return [int(row.nonzero().max()) + 1 if row.any() else 0 for row in seen]


def _speculators(golden: Golden) -> Iterator[Agreement]:
    """The same weights in the other format, and read as if the normed state were the residual."""
    expected = golden.tensors(SPECULATORS)
    models = Models(
        golden.models.target_source, str(golden.folder / "head_speculators"), "float32", golden.models.devices
    )
    for name, normed in (("plain", False), ("norm_before_residual", True)):
        head, _ = load(models, EAGLE3, replace(Reading(), norm_before_residual=normed))
        head.forget()
        states_ND = head.read(expected["hidden_states"][0], expected["input_ids"][0].tolist())
        logits = f"{name}.step0.logits"
        yield close(f"speculators, {logits}", head.logits(states_ND)[None], expected[logits])
