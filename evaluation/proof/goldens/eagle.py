"""EAGLE-1, 2 and 3 against their published code: the target's features, every forward of the head, trees, generations.

Legend: N rows, K nodes of a level, F feature width.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.proof.goldens.base import (
    Agreement,
    generations_agree,
    golden_models,
    read_tensors,
    target_agrees,
    tensors_agree,
)
from methods.drafters.base import Drafter
from methods.drafters.eagle.drafters import DynamicTree, StaticTree
from methods.drafters.eagle.files import EAGLE, EAGLE3, Reading, load
from methods.drafters.eagle.head import EagleHead
from methods.engine.transformer import FINAL
from methods.engine.tree import TokenTree
from methods.models import Models

SPECULATORS = {"plain": "head_speculators", "norm_before_residual": "head_speculators_norm_before_residual"}


def check(folder: Path, reading: Reading | None = None) -> Iterator[Agreement]:
    """All that a folder of EAGLE's goldens holds. `reading`: of the head, where it is to be another than its files'."""
    kind = EAGLE3 if folder.name.startswith("eagle3") else EAGLE
    models = golden_models(folder, "head" if (folder / "head").is_dir() else "../eagle2/head")
    head, taps = load(models, kind, reading or Reading())
    yield target_agrees(folder, models)
    if (folder / "target.safetensors").is_file():
        yield tensors_agree(
            "the target's features", _features(models, taps, read_tensors(folder / "target.safetensors"))
        )
    for path in sorted(folder.glob("forward_*.safetensors")):
        yield tensors_agree(f"forwards in {path.stem}", _forwards(head, read_tensors(path)))
    if (folder / "speculators_forward.safetensors").is_file():
        yield tensors_agree("forwards in the speculators format", _speculators(folder))

    def drafter_of(row: dict[str, Any]) -> Drafter:
        if "top_k" in row:  # their depth counts passes behind the first, and their nodes the root
            return DynamicTree(head, taps, row["top_k"], row["depth"] + 1, row["total_token"] - 1)
        choices = json.loads((folder / f"buffers_{row['setting']}.json").read_text())["choices"]
        paths = sorted((tuple(path) for path in choices), key=lambda path: (len(path), path))
        return StaticTree(head, taps, models.vocabulary, paths)

    yield from generations_agree(folder, models, drafter_of)


def _features(
    models: Models, taps: tuple[int, ...], expected: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    scores = models.target.prefill(expected["input_ids"][0].tolist(), (FINAL, *taps))
    models.target.truncate(0)
    assert scores.features_NF is not None
    width = models.target.model.config.width
    yield "last_hidden", scores.features_NF[:, :width], expected["last_hidden"][0]
    yield "logits", scores.logits_NV[0], expected["logits"][0, -1]
    if "taps" in expected:
        yield "taps", scores.features_NF[:, width:], expected["taps"][0]


def _forwards(head: EagleHead, expected: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Rounds of a prefix pass and levels of a tree behind it, each level seeing the nodes before as its mask says."""
    head.forget()
    for number in range(10):
        if f"round{number}.level0.hidden_states" not in expected:
            return
        tree, known = TokenTree.chain([0]), 0
        for level in range(20):
            name = f"round{number}.level{level}."
            if f"{name}hidden_states" not in expected:
                break
            given, tokens = expected[f"{name}hidden_states"][0], expected[f"{name}input_ids"][0]
            if level == 0:
                out = head.read(given, tokens.tolist()[-len(given) :])
            else:
                known = len(tree.tokens_N)
                parents = _parents(expected[f"{name}tree_mask"][0, 0], known - 1)
                tree = TokenTree(torch.cat((tree.tokens_N, tokens)), torch.cat((tree.parents_N, parents)))
                out = head.branch(tree, known, given)
            yield f"{name}out_hidden", out, expected[f"{name}out_hidden"][0]
            logits = next(expected[key] for key in (f"{name}logits_draft_vocab", f"{name}logits") if key in expected)
            yield f"{name}logits", head.logits(out), logits[0]


def _parents(mask_KP: Tensor, before: int) -> Tensor:
    """Of the nodes of a level, by what they see of the `before` nodes of earlier levels; node 0 is the root."""
    seen = mask_KP[:, :before].bool()
    return torch.tensor([int(row.nonzero().max()) + 1 if row.any() else 0 for row in seen])


def _speculators(folder: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    expected = read_tensors(folder / "speculators_forward.safetensors")
    features_NF, tokens = expected["hidden_states"][0], expected["input_ids"][0].tolist()
    models = golden_models(folder, SPECULATORS["plain"])
    for name in SPECULATORS:
        reading = replace(Reading(), norm_before_residual=name == "norm_before_residual")
        head, _ = load(models, EAGLE3, reading)
        head.forget()
        states_ND = head.read(features_NF, tokens)
        yield f"{name}.step0", head.logits(states_ND), expected[f"{name}.step0.logits"][0]
