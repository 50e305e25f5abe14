"""A smaller language model as drafter (Leviathan et al. 2023; Chen et al. 2023).

Legend: T prompt tokens, G drafted tokens, V target vocabulary, R rows of the draft's head.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from methods.drafters.base import ChainDrafter, Draft
from methods.drafters.draft_model import draft_decoder, draft_model
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling, draw, probabilities
from methods.engine.transformer import Transformer
from methods.models import Models
from methods.target import Outcome


class LanguageModel(Protocol):
    """What a drafter asks of a decoder: see `Decoder`."""

    model: Transformer
    length: int
    max_length: int

    @property
    def room(self) -> int: ...
    def prefill(self, tokens_T: Sequence[int]) -> object: ...
    def extend(self, tokens_N: Sequence[int]) -> Tensor: ...
    def truncate(self, length: int) -> None: ...


def head_tokens(model: Transformer, vocabulary: int) -> Tensor:
    """The target's token for each row of the draft's head, ascending rows; rows behind these are padding."""
    if model.tokens_R is not None:
        return model.tokens_R
    return torch.arange(min(model.config.vocab_size, vocabulary))


class ModelDrafter(ChainDrafter):
    """Greedy where the target is greedy; else draws from its own distribution under the same sampling rules."""

    def __init__(self, decoder: LanguageModel, vocabulary: int) -> None:
        """`vocabulary`: the target's size V. Models of one tokenizer may be padded to different sizes, and a draft's
        head may know part of the vocabulary only: what it does not know, it never drafts."""
        super().__init__()
        self.decoder, self.vocabulary = decoder, vocabulary
        self.tokens_R = head_tokens(decoder.model, vocabulary)
        self.sampling = Sampling()
        self.generator = self.sampling.generator("draft")
        self.base = 0  # tokens in the draft's cache that are decided
        self.roots: list[int] = []  # decided tokens after those, the pending one last; `drafted` follows them

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.sampling, self.generator = sampling, sampling.generator("draft")
        # A prompt longer than the draft's context leaves no room, so nothing is drafted for it.
        self.decoder.prefill(prompt_T[-self.decoder.max_length :])
        self.base, self.roots, self.drafted = self.decoder.length, [], []

    def draft(self, n: int) -> Draft:
        tokens: list[int] = []
        rows: list[Tensor] = []
        while len(tokens) < n:
            unseen = (self.roots + self.drafted)[self.decoder.length - self.base :]
            if self.decoder.room < len(unseen):
                break
            logits_1R = self.decoder.extend(unseen)[:, : len(self.tokens_R)]
            tokens.append(self._choose(logits_1R, rows))
            self.drafted.append(tokens[-1])
        return Draft(tokens, torch.cat(rows) if rows else None)

    def _choose(self, logits_1R: Tensor, rows: list[Tensor]) -> int:
        """The next draft token; when sampling, its q over the target's vocabulary is added to `rows`."""
        if self.sampling.greedy:
            return int(self.tokens_R[int(logits_1R.argmax())])
        q_1R = probabilities(logits_1R, self.sampling).cpu()
        rows.append(q_1R.new_zeros(1, self.vocabulary).index_copy(1, self.tokens_R, q_1R))
        return int(self.tokens_R[draw(q_1R[0], self.generator)])

    def settle(self, outcome: Outcome) -> None:
        kept = self.kept(outcome)
        decided = self.roots + self.drafted[:kept]
        cached = min(self.decoder.length - self.base, len(decided))
        self.base += cached
        self.decoder.truncate(self.base)
        self.roots = [*decided[cached:], *outcome.tokens[kept:]]
        super().settle(outcome)

    def confirm(self, outcome: Outcome) -> None:
        self.roots += outcome.tokens
        super().confirm(outcome)


class SelfDrafter(ModelDrafter):
    """A draft that is made of the target's own layers, and works in the target's cache (LayerSkip, Elhoushi et al.
    2024, section 4.3): it needs no prefill, and sees decided tokens as the target has seen them. The rows that it
    writes are behind the target's committed ones, where the next pass of the target writes its own."""

    def __init__(self, decoder: Decoder, target: Decoder, vocabulary: int) -> None:
        """`decoder`: of the draft, `target` its host."""
        super().__init__(decoder, vocabulary)
        self.target = target

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.sampling, self.generator = sampling, sampling.generator("draft")
        self.base = self.decoder.length = self.target.length
        self.roots, self.drafted = [], []

    def settle(self, outcome: Outcome) -> None:
        self.decoder.length = self.target.length
        super().settle(outcome)


def build(models: Models) -> ModelDrafter:
    """The pair's draft model; one of the target's own layers works in the target's cache where that is on this rank."""
    if models.draft_is_target and not models.drafts_only:
        return SelfDrafter(Decoder(draft_model(models), host=models.target), models.target, models.vocabulary)
    return ModelDrafter(draft_decoder(models), models.vocabulary)
