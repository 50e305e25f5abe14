"""The models of a pair, each loaded when a method first asks for it, and shared by all methods of a launch."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from methods.engine.decoder import PROBE_TOKENS, Decoder
from methods.engine.int8 import EMBEDDING, Int8Weights
from methods.engine.link import Link
from methods.engine.loader import DTYPES, Checkpoint, find_checkpoint
from methods.engine.transformer import Transformer
from methods.engine.schema import enough_memory
from methods.engine.trained_draft import is_trained_draft, load_draft
from methods.errors import UserError

INT8 = "int8"  # a draft: the target itself in 8 bits


@dataclass
class Models:
    """`target` and `draft` sources as `find_checkpoint` takes them; a draft may also be "first-K", the target's own
    first K layers, "int8", the target itself in 8 bits, or what scripts/train_draft.py exports. `max_length`: most
    tokens per sequence (None: the model's context). `link`: to the other rank of the pair, if there is one;
    `drafts_only`: this is the draft rank, which never loads the target."""

    target_source: str
    draft_source: str | None
    dtype: str
    devices: list[torch.device]
    max_length: int | None = None
    link: Link | None = None
    drafts_only: bool = False

    def with_draft(self, source: str | None) -> Self:
        """These models with another draft. The target is shared, and loaded now where it belongs to this rank."""
        _ = self.target_checkpoint if self.drafts_only else self.target
        other = copy.copy(self)
        for loaded in ("draft_checkpoint", "draft", "draft_model"):
            other.__dict__.pop(loaded, None)
        other.draft_source = source
        return other

    @property
    def vocabulary(self) -> int:
        """The target's size V."""
        return self.target_checkpoint.config.vocab_size

    @cached_property
    def target_checkpoint(self) -> Checkpoint:
        return find_checkpoint(self.target_source)

    @cached_property
    def draft_checkpoint(self) -> Checkpoint:
        if self.draft_source is None:
            raise UserError("this method needs a draft model; pass --draft PATH, or choose a pair that has one")
        if self.draft_layers is not None:
            self._check_layers(self.draft_layers)
        if self.draft_is_target:
            return self.target_checkpoint
        checkpoint = find_checkpoint(self.draft_source)
        if is_trained_draft(checkpoint):  # it has the target's own tokens
            return checkpoint
        check_same_tokenizer(self.target_checkpoint, checkpoint)
        return checkpoint

    @property
    def draft_is_target(self) -> bool:
        """Whether the draft is made of the target's own layers, so that it can work in the target's cache."""
        return self.draft_layers is not None or self.draft_source == INT8

    @property
    def draft_layers(self) -> int | None:
        """K of a "first-K" draft."""
        prefix, _, count = (self.draft_source or "").partition("-")
        return int(count[:9]) if prefix == "first" and count.isdecimal() else None

    @cached_property
    def target(self) -> Decoder:
        """The target, its row-invariance probed."""
        decoder = Decoder(self.target_checkpoint.transformer(self.dtype, self.devices), self.max_length)
        decoder.probe(self.target_checkpoint.source)
        return decoder

    @cached_property
    def draft(self) -> Decoder:
        return Decoder(self.draft_model, self.max_length)

    @cached_property
    def draft_model(self) -> Transformer:
        """The draft on the target's (first) device; where both are loaded it shares what it can."""
        with enough_memory(f"for the draft {self.draft_source}"):
            model = self._load_draft()
        Decoder(model, PROBE_TOKENS).probe_numbers(f"the draft {self.draft_source}")
        return model

    def _load_draft(self) -> Transformer:
        checkpoint = self.draft_checkpoint
        if self.draft_layers is not None:
            return self._first_layers(self.draft_layers)
        if self.draft_source == INT8:
            weights, layers = Int8Weights(checkpoint.weights, self._embedding_VD), checkpoint.config.layers
            devices = self.devices[:1] * layers if self.drafts_only else self.target.model.devices
            return Transformer(checkpoint.config, weights, DTYPES[self.dtype], devices)
        if is_trained_draft(checkpoint):
            config, embedding_VD = self.target_checkpoint.config, self._embedding_VD
            return load_draft(checkpoint, config, embedding_VD, self.dtype, self.devices[0])
        return checkpoint.transformer(self.dtype, self.devices[:1])

    @property
    def _embedding_VD(self) -> Tensor:
        if not self.drafts_only:
            return self.target.model.embedding_VD
        return self.target_checkpoint.weights[EMBEDDING].to(self.devices[0], DTYPES[self.dtype])

    def _check_layers(self, count: int) -> None:
        most = self.target_checkpoint.config.layers - 1
        if not most:
            raise UserError("a target of one layer has no first layers to draft with; choose another draft")
        if not 0 < count <= most:
            raise UserError(f"expected a draft of 1 to {most} of the target's layers, got {self.draft_source}")

    def _first_layers(self, count: int) -> Transformer:
        config = self.target_checkpoint.config
        if not self.drafts_only:
            return first_layers(self.target.model, count)
        short = replace(config, layers=count)
        return Transformer(short, self.target_checkpoint.weights, DTYPES[self.dtype], self.devices[:1] * count)


def first_layers(model: Transformer, count: int) -> Transformer:
    """A draft of the target's first layers with its final norm and head; shares the target's weights."""
    short = copy.copy(model)
    short.config = replace(model.config, layers=count)
    short.layers, short.devices = model.layers[:count], model.devices[:count]
    return short


def check_same_tokenizer(target: Checkpoint, draft: Checkpoint) -> None:
    """A draft must know every token of the target by the same id. It may know more (CodeLlama's infilling tokens),
    and the models' sizes may differ (Qwen2.5's padding)."""
    ours, theirs = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    differing = [token for token, number in ours.items() if theirs.get(token) != number]
    if not differing:
        return
    example = min(differing, key=ours.__getitem__)
    raise UserError(
        f"the draft {draft.source} has another vocabulary than the target {target.source}: {len(differing)} tokens "
        f"differ, for example {example!r}; choose a draft of the same tokenizer"
    )
