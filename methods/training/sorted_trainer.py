"""Training of a draft with sorted exits: what the target says of its data, and how often they agree. Used by train.py.

Shapes: E exits, B documents of a batch, L positions, M positions with a loss, K cached probabilities per position.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from methods.training.data import Document, length_batches, pad
from methods.training.recipe import SortedRecipe
from methods.training.report import write_report
from methods.training.sorted import SortedDraft, chosen_layers
from methods.training.teacher import Targets, Teacher
from methods.training.trainer import Batch, Trainer


class SortedTrainer(Trainer):
    """Its log says for each exit how often it agrees with the target."""

    recipe: SortedRecipe

    def __init__(self, recipe: SortedRecipe, target: LlamaForCausalLM, out: Path) -> None:
        self.target = target
        ends = target.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        super().__init__(recipe, out, target.config.vocab_size, [end for end in ends if end is not None])

    def build(self) -> nn.Module:
        recipe, target = self.recipe, self.target
        layers = chosen_layers(recipe.layers, target.config.num_hidden_layers)
        draft = SortedDraft(target.float(), layers, recipe.exits, self.tokens_N)
        if recipe.precision == "bf16":
            target.bfloat16()
        target.to(self.accelerator.device).eval()
        self.teacher = Teacher(target, self.tokens_N, self.out / "teacher", recipe.kept, recipe.micro_tokens)
        return draft

    def teach(self, start: int, documents: Sequence[Document]) -> Targets | None:
        """The first process computes what is not cached yet, the others wait."""
        if self.recipe.targets == "tokens":
            return None
        with self.accelerator.main_process_first():
            return self.teacher.targets(f"train-{start:07d}-{len(documents)}", documents)

    def batch(self, documents: Sequence[Document], taught: Targets | None, indices: Sequence[int]) -> Batch:
        rows = [documents[i].tokens[:-1] for i in indices]
        width = max(map(len, rows))
        where_M = torch.cat([torch.arange(len(row)) + line * width for line, row in enumerate(rows)])
        if taught is None:
            next_M = torch.tensor([token for i in indices for token in documents[i].tokens[1:]])
            ids_M = torch.searchsorted(self.tokens_N, next_M).clamp(max=len(self.tokens_N) - 1)
            ids_MK, probs_MK = ids_M[:, None], (self.tokens_N[ids_M] == next_M).float()[:, None]
        else:
            rows_M = torch.cat([torch.arange(taught.starts[i], taught.starts[i + 1]) for i in indices])
            ids_MK, probs_MK = taught.ids_PK[rows_M].long(), taught.probs_PK[rows_M].float()
        exits = len(self.recipe.exits) if self.recipe.objective == "soft" else 1
        tensors = {"tokens_BL": pad(rows, width), "where_M": where_M, "ids_MK": ids_MK, "probs_MK": probs_MK}
        return {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()} | {"exits": exits}

    def validate(self) -> dict[str, Any]:
        agreement = zip(self.recipe.exits, self.agreement(), strict=True)
        return {"agreement": {str(number): round(share, 4) for number, share in agreement}}

    def report(self) -> None:
        write_report(self.out, self.accelerator.unwrap_model(self.draft).costs)

    def agreement(self) -> list[float]:
        """Per exit, the share of held-out answer positions where its best token is the target's greedy token."""
        with self.accelerator.main_process_first():
            targets = self.teacher.targets("held-out", self.held_out, greedy=True)
        batches = length_batches([document.positions for document in self.held_out], self.recipe.micro_tokens, 0)
        hits = torch.cat([self._hits(targets, indices) for indices in batches], dim=1)
        return hits.float().mean(1).tolist()

    def _hits(self, targets: Targets, indices: Sequence[int]) -> Tensor:
        rows = [self.held_out[i].tokens[:-1] for i in indices]
        tokens_BL = pad(rows, max(map(len, rows))).to(self.accelerator.device)
        self.draft.eval()
        with self.accelerator.autocast():
            found_EBL = self.accelerator.unwrap_model(self.draft).predictions(tokens_BL).cpu()
        hits = []
        for line, i in enumerate(indices):
            answer = slice(max(self.held_out[i].start - 1, 0), len(rows[line]))
            greedy = targets.greedy_P[targets.starts[i] : targets.starts[i + 1]]
            hits.append(found_EBL[:, line, answer] == greedy[answer])
        return torch.cat(hits, dim=1)
