"""A smaller language model as drafter (Leviathan et al. 2023; Chen et al. 2023).

Legend: T prompt tokens, G drafted tokens, V target vocabulary, R rows of the draft's head.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from methods.drafters.base import Draft
from methods.drafters.choosing import ChoosingDrafter
from methods.drafters.draft_model import draft_decoder, draft_model, recorded
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree
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
    def branch(self, tree: TokenTree, known: int, committed: int) -> Tensor: ...
    def truncate(self, length: int) -> None: ...


def head_tokens(model: Transformer, vocabulary: int) -> Tensor:
    """The target's token for each row of the draft's head, ascending rows; rows behind these are padding."""
    if model.tokens_R is not None:
        return model.tokens_R
    return torch.arange(min(model.config.vocab_size, vocabulary))


class ModelDrafter(ChoosingDrafter):
    """Its cache holds what it has read: decided tokens, then drafts."""

    def __init__(self, decoder: LanguageModel, vocabulary: int) -> None:
        """`vocabulary`: the target's size V. Models of one tokenizer may be padded to different sizes, and a draft's
        head may know part of the vocabulary only: what it does not know, it never drafts."""
        super().__init__(head_tokens(decoder.model, vocabulary), vocabulary)
        self.decoder = decoder
        self.base = 0  # tokens in the draft's cache that are decided
        self.roots: list[int] = []  # decided tokens after those, the pending one last; `drafted` follows them

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.restart(sampling)
        # A prompt longer than the draft's context leaves no room, so nothing is drafted for it.
        self.decoder.prefill(prompt_T[-self.decoder.max_length :])
        self.base, self.roots = self.decoder.length, []

    def draft(self, n: int) -> Draft:
        tokens: list[int] = []
        rows: list[Tensor] = []
        while len(tokens) < n:
            unread = self.unread
            if self.decoder.room < len(unread):
                break
            tokens.append(self.add(self.decoder.extend(unread), rows))
        return Draft(tokens, torch.cat(rows) if rows else None)

    @property
    def unread(self) -> list[int]:
        """What is decided or drafted and not yet in the cache."""
        return (self.roots + self.drafted)[self.decoder.length - self.base :]

    @property
    def spare(self) -> int:
        return self.decoder.room

    def logits_behind(self, tree: TokenTree, known: int) -> Tensor:
        pending = self.base + len(self.roots) - 1
        return self.decoder.branch(tree, known, self.decoder.length - pending)

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
        self.restart(sampling)
        self.base = self.decoder.length = self.target.length
        self.roots = []

    def settle(self, outcome: Outcome) -> None:
        """The target has read all but the pending token, be it drafted here or by another. None is read again: a draft
        in fewer bits would leave other keys and values in committed rows."""
        self.base = self.decoder.length = self.target.length
        self.roots = [outcome.tokens[-1]]
        ChoosingDrafter.settle(self, outcome)


def build(models: Models) -> ModelDrafter:
    """The pair's draft model; one of the target's own layers works in the target's cache where all that is on this
    rank."""
    if models.draft_is_target and models.has_whole_target:
        decoder = recorded(Decoder(draft_model(models), host=models.target, exact=False))
        return SelfDrafter(decoder, models.target, models.vocabulary)
    return ModelDrafter(draft_decoder(models), models.vocabulary)
