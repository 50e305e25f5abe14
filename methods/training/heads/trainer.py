"""Training of a draft head: its features, its batches and how often the target accepts what it drafts. Used by
train.py."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.engine.decoder import Decoder
from methods.training.data import Document, length_batches, pad
from methods.training.heads.acceptance import DEPTH, Hits, accept_length, answer_hits, conditional_acceptance
from methods.training.heads.base import Head
from methods.training.heads.features import FeatureCache, Features
from methods.training.heads.kinds import new_head
from methods.training.heads.report import write_report
from methods.training.heads.start import StoredHead
from methods.training.heads.target import HeadTarget
from methods.training.recipe import HeadRecipe
from methods.training.trainer import Batch, Trainer


class HeadTrainer(Trainer):
    """Its log says for each depth how often the drafted token is accepted, those before it being so, and the tokens per
    pass that chains of three and of five tokens would give."""

    recipe: HeadRecipe

    def __init__(self, recipe: HeadRecipe, target: HeadTarget, out: Path) -> None:
        self.target = target
        super().__init__(recipe, out, target.config.vocab_size, target.checkpoint.eos_token_ids)
        self.held_out = [document for document in self.held_out if document.greedy] or self.held_out

    def build(self) -> Head:
        head = new_head(self.recipe, self.target, self.tokens_N)
        if self.recipe.start:
            StoredHead(Path(self.recipe.start)).copy_to(head)
        named = self.recipe.features
        folder = None if named == "none" else Path(named) if named else self.out / "features"
        self.cache = FeatureCache(lambda: self.decoder, folder, head.taps)
        return head

    def _vocabulary(self, size: int, ends: Sequence[int]) -> Tensor:
        start = self.recipe.start
        return StoredHead(Path(start)).tokens_N(size) if start else super()._vocabulary(size, ends)

    @cached_property
    def decoder(self) -> Decoder:
        return self.target.decoder(self.recipe.engine_dtype, self.accelerator.device, self.recipe.length)

    def teach(self, start: int, documents: Sequence[Document]) -> Features:
        return self._features(f"train-{start:07d}-{len(documents)}", documents)

    def _features(self, name: str, documents: Sequence[Document]) -> Features:
        """The first process computes what is not there yet, the others wait."""
        with self.accelerator.main_process_first():
            return self.cache.shard(name, documents)

    def batch(self, documents: Sequence[Document], taught: Features, indices: Sequence[int]) -> Batch:
        rows = [documents[i].tokens for i in indices]
        width = max(map(len, rows))
        roots_BL, answer_BL = torch.zeros(2, len(rows), width, dtype=torch.bool)
        for line, i in enumerate(indices):
            start = documents[i].start
            roots_BL[line, max(start - 1, 0) : len(rows[line])] = True
            answer_BL[line, start + 1 : len(rows[line])] = True
        tensors = {"tokens_BL": pad(rows, width), "roots_BL": roots_BL, "answer_BL": answer_BL}
        moved: Batch = {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()}
        return moved | {"features": self._padded(taught, indices, width), "positions": sum(map(len, rows))}

    def _padded(self, taught: Features, indices: Sequence[int], width: int) -> dict[int, Tensor]:
        """[B, L, D] by tap."""
        found = {}
        for tap, states_PD in taught.states.items():
            padded_BLD = states_PD.new_zeros(len(indices), width, states_PD.shape[1])
            for line, i in enumerate(indices):
                own = states_PD[taught.starts[i] : taught.starts[i + 1]]
                padded_BLD[line, : len(own)] = own
            found[tap] = padded_BLD.to(self.accelerator.device)
        return found

    # validation ------------------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, Any]:
        taught = self._features(f"held-out-{len(self.held_out)}", self.held_out)
        batches = length_batches([document.positions for document in self.held_out], self.recipe.micro_tokens, 0)
        answers = [hits for indices in batches for hits in self._hits(taught, indices)]
        shares = [round(share, 4) for share in conditional_acceptance(answers)]
        return {
            "acceptance": {str(depth): share for depth, share in enumerate(shares, 1)},
            "accept_length_3": round(accept_length(answers, 3), 4),
            "accept_length": round(accept_length(answers, DEPTH), 4),
        }

    def _hits(self, taught: Features, indices: Sequence[int]) -> list[Hits]:
        batch = self.batch(self.held_out, taught, indices)
        self.draft.eval()
        head: Head = self.accelerator.unwrap_model(self.draft)
        with self.accelerator.autocast():
            drafts_SBL = head.drafts(batch["tokens_BL"], batch["features"], min(DEPTH, head.longest)).cpu()
        documents = [self.held_out[i] for i in indices]
        return [answer_hits(drafts_SBL[:, line], d.tokens, d.start) for line, d in enumerate(documents)]

    def hopeless(self) -> bool:
        return 0 < self.recipe.patience <= self.progress.worse

    def report(self) -> None:
        write_report(self.out)
