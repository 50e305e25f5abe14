"""A draft head in training: what is common to all kinds. A kind says how it reads features and drafts a token.

Rows: row t of an answer has read the target's features up to position t and knows the token t + 1, the root of its
draft. Its step i drafts token t + 2 + i. Shapes: B answers, L positions, D width, M rows with a loss, N tokens of the
draft vocabulary, K tokens kept of the target's distribution, S steps.
"""

import sys
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.engine.transformer import FINAL
from methods.training.heads.target import HeadTarget
from methods.training.recipe import HeadRecipe
from methods.training.sorted import soft_cross_entropy

UNLIMITED = sys.maxsize
BLOCK = 512  # rows whose logits are in memory at a time


class Head(nn.Module, ABC):
    """Reads the features `taps` of the target, and embeds tokens as the target does. Its state has all that is trained,
    and `tokens_N`, the tokens that it knows."""

    embedding_VD: Tensor
    target_head_ND: Tensor
    tokens_N: Tensor
    taps: tuple[int, ...] = (FINAL,)
    steps: int

    def __init__(self, target: HeadTarget, tokens_N: Tensor, recipe: HeadRecipe) -> None:
        super().__init__()
        self.width, self.recipe = target.config.width, recipe
        self.register_buffer("embedding_VD", target.embedding_VD, persistent=False)
        self.register_buffer("target_head_ND", target.head_VD[tokens_N], persistent=False)
        self.register_buffer("tokens_N", tokens_N)

    # what a kind of head is ------------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, features: dict[int, Tensor]) -> Any:
        """What the first step goes on from, of [B, L, D] features by tap."""

    @abstractmethod
    def step(self, memory: Any, number: int, ids_BL: Tensor) -> tuple[Any, Tensor]:
        """(what the next step goes on from, the state whose logits draft a token); `ids_BL`: the token before that."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is trained, by its published names."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What its config.json says beside the target's shape."""

    @property
    def head_ND(self) -> Tensor:
        """The matrix of its logits: the target's own rows, unless the kind trains some."""
        return self.target_head_ND

    def feature_loss(self, state_BLD: Tensor, wanted_BLD: Tensor, mask_BL: Tensor) -> Tensor | float:
        """Sum over the masked rows of what the step's state is off the target's own next feature."""
        return 0.0

    token_weight = 1.0

    @property
    def longest(self) -> int:
        """Tokens that it can draft in a row: as many as it has blocks, unless it goes on from what it drafted."""
        return self.steps

    # training --------------------------------------------------------------------------------------------------------

    def forward(
        self, tokens_BL: Tensor, features: dict[int, Tensor], roots_BL: Tensor, answer_BL: Tensor, positions: int
    ) -> Tensor:
        """The loss, in nats per position: over the steps, each less than the one before by the recipe's decay.

        `roots_BL`: rows that draft; `answer_BL`: tokens that can be drafted; `positions`: all but padding."""
        features = {tap: state.float() for tap, state in features.items()}
        known_BL = answer_BL & torch.isin(tokens_BL, self.tokens_N)
        teacher = self._teacher(features[FINAL], known_BL)
        memory, total = self.begin(self.disturbed(features)), features[FINAL].new_zeros(())
        for i in range(self.steps):
            memory, state_BLD = self.step(memory, i, shifted(tokens_BL, 1 + i))
            weight = self.recipe.decay**i / positions
            loss = self._token_loss(state_BLD, roots_BL & shifted(known_BL, 2 + i), teacher, 1 + i)
            mask_BL, wanted_BLD = roots_BL & shifted(answer_BL, 2 + i), shifted(features[FINAL], 1 + i)
            total = total + weight * (self.token_weight * loss + self.feature_loss(state_BLD, wanted_BLD, mask_BL))
        return total

    def disturbed(self, features: dict[int, Tensor]) -> dict[int, Tensor]:
        """The features as training reads them."""
        return features

    @torch.no_grad()
    def _teacher(self, final_BLD: Tensor, known_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(rows of the head, their probabilities), [B * L, K]: the target's most probable tokens of the vocabulary at
        the positions behind which a known token comes."""
        kept, rows = min(self.recipe.kept, len(self.tokens_N)), shifted(known_BL, 1).flatten().nonzero()[:, 0]
        ids = torch.zeros(known_BL.numel(), kept, dtype=torch.long, device=known_BL.device)
        probs = torch.zeros(known_BL.numel(), kept, device=known_BL.device)
        for part in rows.split(BLOCK):
            logits = (final_BLD.flatten(0, 1)[part] @ self.target_head_ND.t()).float()
            best, ids[part] = logits.topk(kept)
            probs[part] = best.softmax(-1)
        return ids, probs

    def _token_loss(self, state_BLD: Tensor, mask_BL: Tensor, teacher: tuple[Tensor, Tensor], ahead: int) -> Tensor:
        """Sum over the masked rows of the cross entropy to the target, which is `ahead` positions on."""
        rows = mask_BL.flatten().nonzero()[:, 0]
        states_1MD = state_BLD.flatten(0, 1)[None, rows]
        if torch.is_autocast_enabled(state_BLD.device.type):
            states_1MD = states_1MD.to(torch.get_autocast_dtype(state_BLD.device.type))
        ids, probs = (part[rows + ahead] for part in teacher)
        mean_1 = soft_cross_entropy(states_1MD, self.head_ND, ids, probs)
        return mean_1[0] * len(rows) if len(rows) else state_BLD.sum() * 0

    # drafting --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def drafts(self, tokens_BL: Tensor, features: dict[int, Tensor], count: int) -> Tensor:
        """The tokens that each row would draft one after the other, greedily, [count, B, L]."""
        memory, ids_BL = self.begin({tap: state.float() for tap, state in features.items()}), shifted(tokens_BL, 1)
        found = []
        for i in range(count):
            memory, state_BLD = self.step(memory, i, ids_BL)
            ids_BL = self.tokens_N[self._best(state_BLD)]
            found.append(ids_BL)
        return torch.stack(found)

    def _best(self, state_BLD: Tensor) -> Tensor:
        head_ND = self.head_ND.to(state_BLD.dtype)
        parts = state_BLD.flatten(0, 1).split(BLOCK)
        return torch.cat([(part @ head_ND.t()).argmax(-1) for part in parts]).view(state_BLD.shape[:2])

    def embed(self, ids_BL: Tensor) -> Tensor:
        return F.embedding(ids_BL, self.embedding_VD)


def shifted(x_BL: Tensor, by: int) -> Tensor:
    """Column t has what column t + `by` had; zeros come in at the end."""
    filler = torch.zeros_like(x_BL[:, :by])
    return torch.cat([x_BL[:, by:], filler], 1)


def embedding_like(linear: nn.Linear, columns: slice, embedding_VD: Tensor) -> None:
    """Weights for inputs that are embeddings, so large that their outputs have about the size one."""
    size = float(embedding_VD[:1024].pow(2).sum(1).mean().sqrt())
    with torch.no_grad():
        linear.weight[:, columns].normal_(std=1 / size)
