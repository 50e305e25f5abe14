"""The target's most probable next tokens at every position, computed once and cached on disk. Used by train.py.

Shapes: B documents, L positions, P positions of a chunk in a row, K tokens kept, N tokens of the draft vocabulary.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from methods.training.data import Document, length_batches, pad


@dataclass(frozen=True)
class Targets:
    """What the draft should predict at all positions of documents; rows starts[i] to starts[i+1] for document i."""

    ids_PK: Tensor  # rows of the draft's head
    probs_PK: Tensor  # over the draft's vocabulary, sum 1
    greedy_P: Tensor  # the target's greedy token; -1 where not computed
    starts: list[int]


def digest(items: Iterable[object]) -> str:
    """Tells whether cached probabilities belong to these answers and this vocabulary."""
    return hashlib.sha256("\n".join(map(str, items)).encode()).hexdigest()


class Teacher:
    """Runs the target over documents. One file per chunk, so that training starts before all is computed."""

    def __init__(self, target: LlamaForCausalLM, tokens_N: Tensor, folder: Path, kept: int, batch_tokens: int) -> None:
        self.target, self.tokens_N, self.folder = target, tokens_N, folder
        self.kept, self.batch_tokens = min(kept, len(tokens_N)), batch_tokens
        self.head_ND = target.lm_head.weight[tokens_N]

    def targets(self, name: str, documents: Sequence[Document], greedy: bool = False) -> Targets:
        """The chunk `name`: from the cache, else computed (`greedy`: also the greedy token of the whole vocabulary)."""
        stored = self._cached(self.folder / f"{name}.safetensors", documents, greedy)
        starts = [0, *itertools.accumulate(document.positions for document in documents)]
        return Targets(stored["ids"].long(), stored["probs"].float(), stored["greedy"].long(), starts)

    def _cached(self, path: Path, documents: Sequence[Document], greedy: bool) -> dict[str, Tensor]:
        made_for = {"vocabulary": digest(self.tokens_N.tolist()), "answers": digest(d.tokens for d in documents)}
        if path.is_file():
            with safe_open(path, "pt") as file:
                if file.metadata() == made_for:
                    return load_file(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = self._compute(documents, greedy)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata=made_for)
        partial.replace(path)
        return tensors

    @torch.no_grad()
    def _compute(self, documents: Sequence[Document], greedy: bool) -> dict[str, Tensor]:
        lengths = [document.positions for document in documents]
        starts = [0, *itertools.accumulate(lengths)]
        ids_PK = torch.zeros(starts[-1], self.kept, dtype=torch.int32)
        probs_PK = torch.zeros(starts[-1], self.kept, dtype=torch.float16)
        greedy_P = torch.full((starts[-1],), -1, dtype=torch.int32)
        for batch in length_batches(lengths, self.batch_tokens, seed=0):
            rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in batch])
            states_MD = self._states([documents[i].tokens[:-1] for i in batch])
            for part, states in zip(rows.split(512), states_MD.split(512), strict=True):
                probs, ids = (states @ self.head_ND.t()).float().softmax(-1).topk(self.kept)
                probs_PK[part] = (probs / probs.sum(-1, keepdim=True)).half().cpu()
                ids_PK[part] = ids.int().cpu()
                if greedy:
                    greedy_P[part] = self.target.lm_head(states).argmax(-1).int().cpu()
        return {"ids": ids_PK, "probs": probs_PK, "greedy": greedy_P}

    def _states(self, rows: Sequence[list[int]]) -> Tensor:
        """Final hidden states of the documents' own positions, one after the other: [M, D]."""
        lengths = [len(row) for row in rows]
        hidden_BLD = self.target.model(
            pad(rows, max(lengths)).to(self.head_ND.device), use_cache=False
        ).last_hidden_state
        return torch.cat([hidden[:length] for hidden, length in zip(hidden_BLD, lengths, strict=True)])
