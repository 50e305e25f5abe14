"""Hydra's heads (Ankner et al., COLM 2024): head i reads the target's last state and the i + 1 tokens behind it, the
drafted ones included, and guesses the next. So a node's children depend on its path: a level of the tree is one pass of
its head over the nodes that have children.

A head's first block is R x + SiLU(L x + b), from the state and the tokens' embeddings side by side; its further ones
are h + SiLU(W h + b); then comes an LM head, its own or the target's. In Hydra++ (`prefix-mlp`) a layer of the target's
kind, with its norm and with keys and values of its own, first reads the states of all decided tokens, and no drafted
ones; its last row stands for the last state.

Legend: K heads, N nodes of a level, D width, I inputs of a head, T prompt tokens, A kept nodes, F feature width.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

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
from methods.engine.config import ModelConfig
from methods.engine.head import Head
from methods.engine.int8 import EMBEDDING
from methods.engine.loader import DTYPES
from methods.engine.sampling import Sampling
from methods.engine.transformer import FINAL, Layers
from methods.engine.tree import TokenTree
from methods.engine.weights import Shapes, expected_shapes
from methods.errors import UserError, shown
from methods.models import Models
from methods.target import Outcome

KIND = "Hydra heads"
FILES = ("hydra_lm_head.safetensors", "hydra_lm_head.pt")
OFFSET = "hidden_state_offset"  # of the config.json: which state the heads read
BLOCK = re.compile(r"hydra_mlp\.(\d+)\.(\d+)\.(linear|res_connection)\.(weight|bias)")
OWN_HEAD = re.compile(r"hydra_lm_head\.(\d+)\.(?:1\.)?(weight|bias)")  # place 0 is a dropout's where there is one
PREFIX = "prefix_embeding_layer."  # as they spell it
NORM = "model.norm.weight"
TARGETS_OWN = ("input_embed_fn.weight", f"{PREFIX}embed_tokens.weight")


def renamed(name: str) -> str | None:
    """HEAD.PLACE.linear or .res_connection, HEAD.lm_head, and a model's own names for the prefix layer."""
    if name in TARGETS_OWN:
        return None
    if own := OWN_HEAD.fullmatch(name):
        return f"{own[1]}.lm_head.{own[2]}"
    if block := BLOCK.fullmatch(name):
        return ".".join(block.groups())
    return f"model.{name.removeprefix(PREFIX)}" if name.startswith(PREFIX) else name


class HydraHeads:
    """K heads, each over its own number of inputs. `prefix`: the layer of Hydra++, `norm_D` behind it."""

    def __init__(self, head: HeadFiles, models: Models) -> None:
        self.device, self.embedding_VD = models.draft_device, models.embedding_VD
        self.count, (first, *later) = head.blocks
        self.first = [
            head.linear([f"{i}.{first}.linear", f"{i}.{first}.res_connection"], models) for i in range(self.count)
        ]
        self.later = [[head.linear([f"{i}.{place}.linear"], models) for place in later] for i in range(self.count)]
        self.lm_heads = lm_heads_of(head, self.count, models)
        self.prefix, self.norm_D = None, None
        if NORM in head.weights:
            dtype = DTYPES[models.dtype]
            self.prefix = Layers(prefix_config(head, models), head.weights, dtype, [self.device])
            self.norm_D = head.weights[NORM].to(self.device, dtype)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """[N, D]."""
        embedding_VD = self.embedding_VD
        return F.embedding(torch.tensor(tokens, device=embedding_VD.device), embedding_VD).to(self.device)

    def states(self, i: int, inputs_NI: Tensor) -> Tensor:
        """What head i's LM head reads, [N, D]."""
        gate_ND, x_ND = self.first[i](inputs_NI).chunk(2, -1)
        x_ND = x_ND + F.silu(gate_ND)
        for block in self.later[i]:
            x_ND = x_ND + F.silu(block(x_ND))
        return x_ND

    def best(self, i: int, inputs_NI: Tensor, count: int) -> list[list[int]]:
        """The `count` most likely tokens of head i behind each node, the best first."""
        return self.lm_heads[i].best(self.states(i, inputs_NI), count)


class DecidedStates:
    """The one state that stands for all that is decided: the target's last, or what the prefix layer makes of them."""

    def __init__(self, heads: HydraHeads, rows: int) -> None:
        """`rows`: most tokens of a sequence."""
        self.heads = heads
        self.layer = None if heads.prefix is None else Head(heads.prefix, rows)
        self.last_1D = torch.empty(1, 0)

    def begin(self, features_TF: Tensor | None) -> None:
        """The states of a prompt; `read` brings the last of them."""
        if self.layer is not None and features_TF is not None:
            self.layer.truncate(0)
            if len(features_TF) > 1:
                self.layer.feed(features_TF[:-1].to(self.heads.device))

    def read(self, outcome: Outcome) -> None:
        """The states that chose the tokens which were decided now."""
        self.last_1D = newest_state(outcome).to(self.heads.device)
        if self.layer is not None and outcome.features_AF is not None:
            self.last_1D = self.normed(self.layer.feed(outcome.features_AF.to(self.heads.device))[-1:])

    def normed(self, x_ND: Tensor) -> Tensor:
        """Behind the prefix layer's own norm."""
        assert self.heads.prefix is not None and self.heads.norm_D is not None, "of Hydra++ alone"
        return self.heads.prefix.stack.norm(x_ND, self.heads.norm_D, self.heads.prefix.config.norm_eps)


class HydraTree(Drafter):
    """A pass of the next head for each level."""

    taps = (FINAL,)

    def __init__(self, heads: HydraHeads, rows: int, paths: Sequence[Path]) -> None:
        """`paths`: the best first, not deeper than there are heads."""
        self.heads, self.states, self.shape = heads, DecidedStates(heads, rows), StaticShape(paths)
        self.pending = -1

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.states.begin(features_TF)

    def fit(self) -> None:
        self.shape.fit()

    def settle(self, outcome: Outcome) -> None:
        self.shape.judged(outcome.path_A)
        self.pending = outcome.tokens[-1]
        self.states.read(outcome)

    def propose(self, room: int) -> TokenTree:
        tokens: dict[Path, int] = {}
        row_of: dict[Path, int] = {(): 0}  # of the nodes to expand, in `inputs_NI`
        inputs_NI = torch.cat((self.states.last_1D, self.heads.embed([self.pending])), 1)
        for depth, level in enumerate(levels(self.shape.tree(room, self.levels))):
            best = self.heads.best(depth, inputs_NI, level.ranks)
            # A tiny vocabulary has fewer ranks, and so fewer nodes.
            known = [path for path in level.paths if path[:-1] in row_of and path[-1] < len(best[0])]
            tokens |= {path: best[row_of[path[:-1]]][path[-1]] for path in known}
            inner = [path for path in level.inner if path in tokens]
            if not inner:
                break
            rows = [row_of[path[:-1]] for path in inner]
            inputs_NI = torch.cat((inputs_NI[rows], self.heads.embed([tokens[path] for path in inner])), 1)
            row_of = {path: row for row, path in enumerate(inner)}
        return self.shape.filled(self.pending, tokens)


class HydraChain(ChainDrafter):
    """Each head's best token behind the one before, from the newest state on: the number of heads ends the chain, also
    while that is verified."""

    taps = (FINAL,)
    longest: int

    def __init__(self, heads: HydraHeads, rows: int, most: int) -> None:
        """`rows`: most tokens of a sequence; `most`: heads that draft."""
        super().__init__()
        self.heads, self.longest, self.states = heads, min(heads.count, most), DecidedStates(heads, rows)

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.states.begin(features_TF)

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        self.states.read(outcome)

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        self.states.read(outcome)

    def draft(self, n: int) -> Draft:
        start = len(self.drafted)
        for i in range(start, min(start + n, self.longest)):
            embedded = self.heads.embed([self.pending, *self.drafted]).flatten()
            inputs_1I = torch.cat((self.states.last_1D, embedded[None]), 1)
            self.drafted += self.heads.best(i, inputs_1I, 1)[0]
        return Draft(self.drafted[start:])


def prefix_config(head: HeadFiles, models: Models) -> ModelConfig:
    """A layer of the target's kind, whose MLP has a width of its own."""
    gate = head.weights.get("model.layers.0.mlp.gate_proj.weight")
    config = models.target_checkpoint.config
    biased = "model.layers.0.self_attn.q_proj.bias" in head.weights
    return replace(config, layers=1, mlp_width=config.mlp_width if gate is None else len(gate), qkv_bias=biased)


def check(models: Models) -> HeadFiles:
    """Refuse what are not Hydra heads for this target, by what their files say."""
    head = read_head(models, KIND, FILES, renamed)
    if (offset := head.config.get(OFFSET, 0)) != 0:
        raise UserError(
            f"expected {OFFSET} 0 in the config.json of {head.source}, the state behind the target's last norm, got "
            f"{shown(offset)}; choose heads that read it"
        )
    rows = head.rows_of(".lm_head.weight") if head.tokens_R is None else None
    check_target(head, head.rows_of(".linear.weight"), rows, models)
    tokens, shared = lm_head_shapes(head, models)
    head.check({**_shapes(head, models), **tokens}, shared)
    return head


def _shapes(head: HeadFiles, models: Models) -> Shapes:
    count, (first, *later) = head.blocks
    width, rows = models.target_checkpoint.config.width, len(known_tokens(head, models))
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(count):
        matrices = {f"{i}.{first}.{part}": (width, (i + 2) * width) for part in ("linear", "res_connection")}
        matrices |= {f"{i}.{place}.linear": (width, width) for place in later}
        shapes |= {f"{name}.weight": shape for name, shape in matrices.items()}
        shapes |= {f"{name}.bias": (width,) for name in matrices}
    for name, shape in (("lm_head.weight", (rows, width)), ("lm_head.bias", (rows,))):
        if any(stored.endswith(f".{name}") for stored in head.weights):
            shapes |= {f"{i}.{name}": shape for i in range(count)}
    if any(name.startswith("model.") for name in head.weights):
        layer = expected_shapes(replace(prefix_config(head, models), tied=True))
        shapes |= {name: shape for name, shape in layer.items() if name != EMBEDDING}
    return shapes


def heads_of(models: Models) -> HydraHeads:
    """The pair's heads, loaded once."""
    return loaded(models, KIND, lambda: check(models), lambda head: HydraHeads(head, models))


def build(models: Models, shape: Shape, nodes: int, heads: int) -> Drafter:
    """The pair's Hydra heads. `heads`: most of them that draft a chain."""
    found, longest = heads_of(models), models.target_checkpoint.config.max_length
    rows = longest if models.max_length is None else min(models.max_length, longest)
    return HydraTree(found, rows, static_tree(nodes, found.count)) if shape == TREE else HydraChain(found, rows, heads)
