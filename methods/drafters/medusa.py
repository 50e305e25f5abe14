"""Medusa's heads (Cai et al., ICML 2024): from the target's last state, head i guesses the token i + 1 places behind
the pending one, whatever stands between, so all heads are one pass.

A head is residual blocks, h + SiLU(W h + b), and an LM head, its own or the target's. As a tree a node of depth d and
rank r has the r-th token of head d - 1. As a chain there are as many tokens as heads: behind these there is nothing
until the target has decided more.

Legend: K heads, C of them asked, B best tokens, D width, A kept nodes, T prompt tokens, F feature width, R tokens that
an LM head knows.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.drafter_rows import TREE, Shape
from methods.drafters.base import ChainDrafter, Draft, Drafter, newest_state
from methods.drafters.head_files import (
    HeadFiles,
    check_target,
    known_tokens,
    lm_head_shapes,
    lm_heads_of,
    loaded,
    read_head,
)
from methods.drafters.static_tree import Path, StaticShape, levels, static_tree
from methods.engine.sampling import Sampling
from methods.engine.transformer import FINAL
from methods.engine.tree import TokenTree
from methods.engine.weights import TOKENS, Shapes
from methods.models import Models
from methods.target import Outcome

KIND = "Medusa heads"
FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
INSIDE = re.compile(r"medusa_heads?\.")  # where the file is a whole model's
MODEL = "model."  # the rest of that
BLOCK = re.compile(r"(?:blocks\.)?(\d+)\.(?:layers\.)?(\d+)\.(?:linear\.)?(weight|bias)")  # vLLM's names, or Medusa's
OWN_HEAD = re.compile(r"lm_heads\.(\d+)\.weight|(\d+)\.\d+\.weight")
TOKEN_MAP = "token_map"  # vLLM's name of the tokens that an LM head knows


def renamed(name: str) -> str | None:
    """HEAD.BLOCK.linear.weight or .bias, and HEAD.lm_head.weight."""
    if name.startswith(MODEL):
        return None
    name = INSIDE.sub("", name, count=1)
    if own := OWN_HEAD.fullmatch(name):
        return f"{own[1] or own[2]}.lm_head.weight"
    if block := BLOCK.fullmatch(name):
        return f"{block[1]}.{block[2]}.linear.{block[3]}"
    return TOKENS if name == TOKEN_MAP else name


class MedusaHeads:
    """K heads on a state. Their first blocks read the same, so they are multiplied as one matrix."""

    def __init__(self, head: HeadFiles, models: Models) -> None:
        self.device = models.draft_device
        self.count, places = head.blocks
        self.first = head.linear([f"{i}.0.linear" for i in range(self.count)], models)
        self.later = [[head.linear([f"{i}.{block}.linear"], models) for block in places[1:]] for i in range(self.count)]
        self.lm_heads = lm_heads_of(head, self.count, models)

    def states(self, state_1D: Tensor, first: int, stop: int) -> Tensor:
        """What the LM heads of heads first .. stop read, [C, D]."""
        state_1D = state_1D.to(self.device)
        states_KD = state_1D + F.silu(self.first(state_1D).view(self.count, -1))
        found = []
        for i in range(first, stop):
            x_1D = states_KD[i : i + 1]
            for block in self.later[i]:
                x_1D = x_1D + F.silu(block(x_1D))
            found.append(x_1D)
        return torch.cat(found)

    def best(self, state_1D: Tensor, first: int, stop: int, count: int) -> list[list[int]]:
        """The `count` most likely tokens of heads first .. stop, the best first, [C, B]."""
        states_CD = self.states(state_1D, first, stop)
        if self.lm_heads[0] is self.lm_heads[-1]:  # shared: one product for all
            return self.lm_heads[0].best(states_CD, count)
        rows = zip(self.lm_heads[first:stop], states_CD, strict=True)
        return [lm_head.best(x_D[None], count)[0] for lm_head, x_D in rows]


class MedusaTree(Drafter):
    """One pass of the heads fills the tree's paths."""

    taps = (FINAL,)

    def __init__(self, heads: MedusaHeads, paths: Sequence[Path]) -> None:
        """`paths`: the best first, not deeper than there are heads."""
        self.heads, self.shape = heads, StaticShape(paths)
        self.pending, self.state_1D = -1, torch.empty(1, 0)

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        """`settle` brings the state that counts."""

    def fit(self) -> None:
        self.shape.fit()

    def settle(self, outcome: Outcome) -> None:
        self.shape.judged(outcome.path_A)
        self.pending, self.state_1D = outcome.tokens[-1], newest_state(outcome)

    def propose(self, room: int) -> TokenTree:
        paths = self.shape.tree(room, self.levels)
        if not paths:
            return TokenTree.chain([self.pending])
        ranks = [level.ranks for level in levels(paths)]
        best = self.heads.best(self.state_1D, 0, len(ranks), max(ranks))
        known = [path for path in paths if max(path) < len(best[0])]  # a tiny vocabulary has fewer ranks
        return self.shape.filled(self.pending, {path: best[len(path) - 1][path[-1]] for path in known})


class MedusaChain(ChainDrafter):
    """Each head's best token, one behind the other. As each head is for one place behind the newest decided token,
    their number ends the chain, also while that is verified."""

    taps = (FINAL,)
    longest: int

    def __init__(self, heads: MedusaHeads, most: int) -> None:
        """`most`: heads that draft."""
        super().__init__()
        self.heads, self.longest, self.state_1D = heads, min(heads.count, most), torch.empty(1, 0)

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        """`settle` brings the state that counts."""

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        self.state_1D = newest_state(outcome)

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        self.state_1D = newest_state(outcome)

    def draft(self, n: int) -> Draft:
        """Drafts made from an earlier state stay what they are: the new state's heads go on behind them."""
        start = len(self.drafted)
        stop = min(start + n, self.longest)
        if stop <= start:
            return Draft([])
        tokens = [best for (best,) in self.heads.best(self.state_1D, start, stop, 1)]
        self.drafted += tokens
        return Draft(tokens)


def check(models: Models) -> HeadFiles:
    """Refuse what are not Medusa heads for this target, by what their files say."""
    head = read_head(models, KIND, FILES, renamed)
    rows = head.rows_of(".lm_head.weight") if head.tokens_R is None else None
    check_target(head, head.rows_of(".linear.weight"), rows, models)
    tokens, shared = lm_head_shapes(head, models)
    head.check({**_shapes(head, models), **tokens}, shared)
    return head


def _shapes(head: HeadFiles, models: Models) -> Shapes:
    count, places = head.blocks
    width = models.target_checkpoint.config.width
    blocks = [f"{i}.{block}.linear" for i in range(count) for block in range(len(places))]
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (width, width) for name in blocks}
    if any(name.endswith(".bias") for name in head.weights):
        shapes |= {f"{name}.bias": (width,) for name in blocks}
    if any(name.endswith(".lm_head.weight") for name in head.weights):
        rows = len(known_tokens(head, models))
        shapes |= {f"{i}.lm_head.weight": (rows, width) for i in range(count)}
    return shapes


def heads_of(models: Models) -> MedusaHeads:
    """The pair's heads, loaded once."""
    return loaded(models, KIND, lambda: check(models), lambda head: MedusaHeads(head, models))


def build(models: Models, shape: Shape, nodes: int, heads: int) -> Drafter:
    """The pair's Medusa heads. `heads`: most of them that draft a chain."""
    found = heads_of(models)
    return MedusaTree(found, static_tree(nodes, found.count)) if shape == TREE else MedusaChain(found, heads)
