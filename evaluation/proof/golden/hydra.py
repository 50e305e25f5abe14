"""Hydra's goldens, of both architectures."""

from collections.abc import Iterator

import torch

from evaluation.proof.golden.agreement import Agreement, close
from evaluation.proof.golden.folder import Golden
from evaluation.proof.golden.replay import greedy, replayed
from evaluation.proof.golden.static import paths_of, shapes
from evaluation.proof.golden.target import forward
from methods.drafters.hydra import DecidedStates, HydraTree, heads_of

SETTINGS = ("mc_sim_7b_63", "small")
ROWS = 512  # more than a trace has


def check(golden: Golden) -> Iterator[Agreement]:
    """Forward passes, trees and generations."""
    tensors, heads = golden.tensors("forward"), heads_of(golden.models)
    yield from forward(golden, tensors)
    tokens, states_TD = tensors["input_ids"][0].tolist(), tensors["last_hidden"][0]
    if heads.prefix is not None:
        states = DecidedStates(heads, ROWS)
        assert states.layer is not None
        states_TD = states.normed(states.layer.feed(states_TD))
        yield close("prefix_embedding", states_TD[None], tensors["prefix_embedding"])
    for i in range(heads.count):
        rows = len(tokens) - i - 1  # each with the tokens that really follow
        embedded = [heads.embed(tokens[place : place + rows]) for place in range(1, i + 2)]
        hidden_ND = heads.states(i, torch.cat((states_TD[:rows], *embedded), 1))
        yield close(f"hydra_hidden.{i}", hidden_ND[None], tensors[f"hydra_hidden.{i}"])
        yield close(f"hydra_logits.{i}", heads.lm_heads[i](hidden_ND)[None], tensors[f"hydra_logits.{i}"])
    tables = {setting: golden.table(f"buffers_{setting}.json") for setting in SETTINGS}
    yield from shapes(tables)
    yield greedy(golden)
    yield from replayed(golden, lambda trace: HydraTree(heads, ROWS, paths_of(tables[trace["setting"]])))
