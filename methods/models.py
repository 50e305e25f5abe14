"""The models of a pair on a rank: the target, loaded when a method first asks for it, and where a draft's weights are.
What a draft is, its drafter knows; what it loads is shared by all methods of a launch that have the same draft."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.decoder import Decoder
from methods.engine.int8 import EMBEDDING
from methods.engine.link import Link
from methods.engine.loader import DTYPES, Checkpoint, find_checkpoint, roomiest
from methods.engine.team import Team
from methods.engine.tensor_parallel import Follower, LeadingDecoder
from methods.errors import UserError

BITS = {"int8": 8, "int4": 4}  # drafts: the target itself in so many bits
DRAFT_MODEL = "draft model"  # of what is loaded once
Loaded = TypeVar("Loaded")


@dataclass
class Models:
    """`target_source` and `draft_source` as `find_checkpoint` takes them; a draft may also be made of the target:
    "first-K", its own first K layers, or "int4" or "int8", itself in so many bits; "int4-K" has a head over the K most
    frequent tokens only. `max_length`: most tokens per sequence (None: the model's context). `link`: to the draft's
    rank of the pair or from there, if it has one; `team`: of the ranks among which the target is split; `drafts_only`:
    this is the draft rank, which never loads the target. `drafts`: the pair's weights by their kind, for methods that
    need several. `frequent`: the pair's file of the target's tokens, the most frequent first, by which "int4-K" chooses
    its K. `servers`: the URL of each server that rows ask, by its name. `keep_prompts`: target and draft model do not
    read the same prompt again (Decoder.keep_prompts)."""

    target_source: str
    draft_source: str | None
    dtype: str
    devices: list[torch.device]
    max_length: int | None = None
    link: Link | None = None
    team: Team | None = None
    drafts_only: bool = False
    drafts: Mapping[str, str] = field(default_factory=dict)
    frequent: str | None = None
    keep_prompts: bool = False
    servers: Mapping[str, str] = field(default_factory=dict)
    _of_draft: dict[str, Any] = field(default_factory=dict, repr=False)
    _with_drafts: dict[str | None, Self] = field(default_factory=dict, repr=False)

    def with_draft(self, source: str | None) -> Self:
        """These models with another draft, which is loaded once for all that ask for it. The target is shared, and
        loaded now where it belongs to this rank."""
        if source not in self._with_drafts:
            self._with_drafts[source] = self._with_draft(source)
        return self._with_drafts[source]

    def of_kind(self, kind: str) -> Self:
        """These models with the pair's weights of a kind as their draft; "": which needs none."""
        return self.with_draft(self.drafts[kind]) if kind else self

    def _with_draft(self, source: str | None) -> Self:
        _ = self.target_checkpoint if self.drafts_only else self.target
        other = copy.copy(self)
        for found in ("draft_checkpoint", "draft_device"):
            other.__dict__.pop(found, None)
        other.draft_source, other._of_draft = source, {}
        return other

    def once(self, what: str, load: Callable[[], Loaded]) -> Loaded:
        """What `load` gave for this draft when it was first asked for."""
        if what not in self._of_draft:
            self._of_draft[what] = load()
        loaded: Loaded = self._of_draft[what]
        return loaded

    @property
    def vocabulary(self) -> int:
        """The target's size V."""
        return self.target_checkpoint.config.vocab_size

    @cached_property
    def target_checkpoint(self) -> Checkpoint:
        return find_checkpoint(self.target_source)

    @cached_property
    def draft_checkpoint(self) -> Checkpoint:
        """The files of the draft; of one that is made of the target, the target's."""
        if self.draft_source is None:
            raise UserError("this method needs a draft model; pass --draft PATH, or choose a pair that has one")
        return self.target_checkpoint if self.draft_is_target else find_checkpoint(self.draft_source)

    @property
    def draft_is_target(self) -> bool:
        """Whether the draft is made of the target's own layers, so that it can work in the target's cache."""
        return self.draft_layers is not None or self.draft_bits is not None

    @property
    def draft_layers(self) -> int | None:
        """K of a "first-K" draft."""
        kind, count = self._draft_parts
        return count if kind == "first" else None

    @property
    def draft_bits(self) -> int | None:
        """4 or 8, of a draft that is the target in so many bits."""
        kind, count = self._draft_parts
        return BITS.get(kind) if count is not None or self.draft_source in BITS else None

    @property
    def draft_head(self) -> int | None:
        """K of an "int4-K" or "int8-K" draft."""
        return self._draft_parts[1] if self.draft_bits else None

    @property
    def _draft_parts(self) -> tuple[str, int | None]:
        """KIND and K of a draft KIND-K; None for what is no number."""
        kind, _, count = (self.draft_source or "").partition("-")
        return kind, int(count[:9]) if count.isdecimal() else None

    @cached_property
    def target(self) -> Decoder:
        """The target, its row-invariance probed."""
        checkpoint, team = self.target_checkpoint, self.team
        model = checkpoint.transformer(self.dtype, self.devices, self.rows_of(checkpoint.config), team)
        decoder = LeadingDecoder(model, team, self.max_length) if team else Decoder(model, self.max_length)
        decoder.probe(self.target_checkpoint.source)
        if self.keep_prompts:
            decoder.keep_prompts()
        return decoder

    @cached_property
    def follower(self) -> Follower:
        """This rank's part of the target, where another rank leads."""
        checkpoint = self.target_checkpoint
        if self.team is None:
            raise ValueError("expected a team, got none")
        rows = self.rows_of(checkpoint.config)
        follower = checkpoint.follower(self.dtype, self.devices, rows, self.team)
        follower.load(rows)
        return follower

    @property
    def has_whole_target(self) -> bool:
        """Whether the target's layers are all on this rank, so that a draft may share them."""
        return not self.drafts_only and self.team is None

    @property
    def embedding_VD(self) -> Tensor:
        """The target's embedding: where the target has it, or on the draft's rank with the draft."""
        if not self.drafts_only:
            return self.target.model.embedding_VD
        return self.target_checkpoint.weights[EMBEDDING].to(self.draft_device, DTYPES[self.dtype])

    @cached_property
    def draft_device(self) -> torch.device:
        """Where a draft goes that one device holds: with the most room left when it is loaded."""
        self.target_first()
        return roomiest(self.devices)

    def target_first(self) -> None:
        """On GPUs, what comes behind the target goes by the room that it leaves."""
        if self.devices[0].type == "cuda" and not self.drafts_only:
            _ = self.target

    @property
    def used_devices(self) -> list[torch.device]:
        """Those on which the target lies, and the draft where one is loaded."""
        drafts: list[torch.device] = []
        if self._of_draft:
            model = self._of_draft.get(DRAFT_MODEL)
            drafts = [self.draft_device] if model is None else model.devices
        return list(dict.fromkeys([*self.target.model.devices, *drafts]))

    def rows_of(self, config: ModelConfig) -> int:
        """Rows of the cache of such a model, but for a few."""
        return config.max_length if self.max_length is None else min(config.max_length, self.max_length)
