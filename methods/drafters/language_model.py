"""A smaller language model as drafter (Leviathan et al. 2023; Chen et al. 2023).

It may copy from the text itself and check the copies in one pass of its own: staged speculative decoding (Spector and
Re 2023). Each token is still chosen by the logits behind all before it, so its drafts and their q stay what they were;
there are only fewer passes, which pays where a few rows cost about as much as one.

Legend: T prompt tokens, G drafted tokens, V target vocabulary, R rows of the draft's head.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from methods.drafters.base import Draft
from methods.drafters.choosing import ChoosingDrafter
from methods.drafters.draft_model import draft_decoder, draft_model, recorded
from methods.drafters.suffix_automaton import SuffixAutomaton
from methods.engine.decoder import Decoder, Scores
from methods.engine.sampling import Sampling
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.target import Outcome

COPIED = 2  # most copies for each token that has matched


class LanguageModel(Protocol):
    """What a drafter asks of a decoder: see `Decoder`."""

    model: Transformer
    length: int
    max_length: int

    @property
    def room(self) -> int: ...
    def prefill(self, tokens_T: Sequence[int]) -> object: ...
    def extend(self, tokens_N: Sequence[int]) -> Scores: ...
    def branch(self, tree: TokenTree, known: int, committed: int) -> Tensor: ...
    def truncate(self, length: int) -> None: ...


def head_tokens(model: Transformer, vocabulary: int) -> Tensor:
    """The target's token for each row of the draft's head, ascending rows; rows behind these are padding."""
    if model.tokens_R is not None:
        return model.tokens_R
    return torch.arange(min(model.config.vocab_size, vocabulary))


class ModelDrafter(ChoosingDrafter):
    """Its cache holds what it has read: decided tokens, then drafts."""

    def __init__(self, decoder: LanguageModel, vocabulary: int, copies: int = 0) -> None:
        """`vocabulary`: the target's size V. Models of one tokenizer may be padded to different sizes, and a draft's
        head may know part of the vocabulary only: what it does not know, it never drafts. `copies`: most tokens that it
        copies from the text and checks in a pass."""
        super().__init__(head_tokens(decoder.model, vocabulary), vocabulary)
        self.decoder, self.copies = decoder, copies
        self.base = 0  # tokens in the draft's cache that are decided
        self.roots: list[int] = []  # decided tokens after those, the pending one last; `drafted` follows them

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.restart(sampling)
        # A prompt longer than the draft's context leaves no room, so nothing is drafted for it.
        self.decoder.prefill(prompt_T[-self.decoder.max_length :])
        self.base, self.roots = self.decoder.length, []
        self.remember(prompt_T)

    def remember(self, prompt_T: Sequence[int]) -> None:
        """What can be copied begins anew, with a prompt."""
        self.text = SuffixAutomaton(latest=False)
        self.know(prompt_T)

    def know(self, tokens: Sequence[int]) -> None:
        """The text goes on with these."""
        if self.copies:
            self.text.extend(tokens)

    def draft(self, n: int) -> Draft:
        tokens: list[int] = []
        rows: list[Tensor] = []
        while (left := n - len(tokens)) > 0:
            unread = self.unread
            room = self.decoder.room - len(unread)
            if room < 0:
                break
            tokens += self._chosen(unread, self._copied(min(left - 1, room)), rows)
        return Draft(tokens, torch.cat(rows) if rows else None)

    def _copied(self, most: int) -> list[int]:
        """At most so many tokens that may follow `drafted`."""
        if not self.copies or not most:
            return []
        matched, start = self.text.match(self.drafted)
        return self.text.following(start, min(most, self.copies, COPIED * matched), self.drafted)

    def _chosen(self, unread: Sequence[int], copied: Sequence[int], rows: list[Tensor]) -> list[int]:
        """What is chosen in a pass over the unread tokens and copies behind them: tokens as long as they are the
        copies, and the first that is none."""
        if not copied:
            scores = self.decoder.extend(unread)
            return [self.add(scores.logits_NV, rows, scores.best_N2)]
        logits_NR = self.decoder.branch(TokenTree.chain([*unread, *copied]), 0, 0)
        chosen: list[int] = []
        for logits_1R, copy in zip(logits_NR[len(unread) - 1 :].split(1), [*copied, None], strict=True):
            chosen.append(self.add(logits_1R, rows))
            if chosen[-1] != copy:
                break
        self.decoder.length += len(unread) + len(chosen) - 1  # a chain's provisional rows lie where they belong
        return chosen

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
        self.know(outcome.tokens)
        super().settle(outcome)

    def confirm(self, outcome: Outcome) -> None:
        self.roots += outcome.tokens
        self.know(outcome.tokens)
        super().confirm(outcome)


class SelfDrafter(ModelDrafter):
    """A draft that is made of the target's own layers, and works in the target's cache (LayerSkip, Elhoushi et al.
    2024, section 4.3): it needs no prefill, and sees decided tokens as the target has seen them. The rows that it
    writes are behind the target's committed ones, where the next pass of the target writes its own."""

    def __init__(self, decoder: Decoder, target: Decoder, vocabulary: int, copies: int = 0) -> None:
        """`decoder`: of the draft, `target` its host."""
        super().__init__(decoder, vocabulary, copies)
        self.target = target

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.restart(sampling)
        self.base = self.decoder.length = self.target.length
        self.roots = []
        self.remember(prompt_T)

    def settle(self, outcome: Outcome) -> None:
        """The target has read all but the pending token, be it drafted here or by another. None is read again: a draft
        in fewer bits would leave other keys and values in committed rows."""
        self.base = self.decoder.length = self.target.length
        self.roots = [outcome.tokens[-1]]
        self.know(outcome.tokens)
        ChoosingDrafter.settle(self, outcome)


def build(models: Models, copies: int = 0) -> ModelDrafter:
    """The pair's draft model; one of the target's own layers works in the target's cache where all that is on this
    rank."""
    if models.draft_is_target and models.has_whole_target:
        decoder = recorded(Decoder(draft_model(models), host=models.target, exact=False))
        return SelfDrafter(decoder, models.target, models.vocabulary, copies)
    return ModelDrafter(draft_decoder(models), models.vocabulary, copies)
