"""Medusa's goldens."""

from collections.abc import Iterator

import torch

from evaluation.proof.golden.agreement import Agreement, close
from evaluation.proof.golden.folder import Golden
from evaluation.proof.golden.replay import greedy, replayed
from evaluation.proof.golden.static import paths_of, shapes
from evaluation.proof.golden.target import forward
from methods.drafters.medusa import MedusaTree, heads_of

SETTINGS = ("mc_sim_7b_63", "small")


def check(golden: Golden) -> Iterator[Agreement]:
    """Forward passes, trees and generations."""
    tensors, heads = golden.tensors("forward"), heads_of(golden.models)
    yield from forward(golden, tensors)
    rows = tensors["last_hidden"][0]
    states = [heads.states(row_D[None], 0, heads.count) for row_D in rows]
    logits = [torch.cat([lm(s[i : i + 1]) for i, lm in enumerate(heads.lm_heads)]) for s in states]
    yield close("medusa_logits", torch.stack(logits, 1)[:, None], tensors["medusa_logits"])
    tables = {setting: golden.table(f"choices_{setting}.json") for setting in SETTINGS}
    yield from shapes(tables)
    yield greedy(golden)
    yield from replayed(golden, lambda trace: MedusaTree(heads, paths_of(tables[trace["setting"]])))
