"""A smaller language model as drafter (Leviathan et al. 2023; Chen et al. 2023).

Legend: T prompt tokens, G drafted tokens, V target vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.drafters.base import Draft
from methods.engine.decoder import Decoder, Scores
from methods.engine.sampling import Sampling, draw, probabilities
from methods.engine.tree import TokenTree


class ModelDrafter:
    """Greedy where the target is greedy; else draws from its own distribution under the same sampling rules."""

    def __init__(self, decoder: Decoder, vocabulary: int) -> None:
        """`vocabulary`: the target's size V. Models of one tokenizer may be padded to different sizes."""
        self.decoder, self.vocabulary = decoder, vocabulary
        self.sampling = Sampling()
        self.generator = self.sampling.generator("draft")
        self.base = 0  # tokens in the draft's cache that are confirmed
        self.roots: list[int] = []  # confirmed tokens after those, the target's pending token last
        self.drafted: list[int] = []  # drafts after the roots

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features: Scores) -> None:
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
            logits_1V = self.decoder.score(TokenTree.chain(unseen)).logits_NV[-1:, : self.vocabulary]
            self.decoder.commit(range(len(unseen)))
            tokens.append(self._choose(logits_1V, rows))
            self.drafted.append(tokens[-1])
        return Draft(tokens, torch.cat(rows) if rows else None)

    def _choose(self, logits_1V: Tensor, rows: list[Tensor]) -> int:
        """The next draft token; when sampling, its q, padded to the target's vocabulary, is added to `rows`."""
        if self.sampling.greedy:
            return int(logits_1V.argmax(-1))
        q_1V = probabilities(logits_1V, self.sampling).cpu()
        rows.append(torch.nn.functional.pad(q_1V, (0, self.vocabulary - q_1V.shape[1])))
        return draw(q_1V[0], self.generator)

    def settle(self, accepted: int, next_token: int, features: Scores) -> None:
        confirmed = self.roots + self.drafted[:accepted]
        cached = min(self.decoder.length - self.base, len(confirmed))
        self.base += cached
        self.decoder.truncate(self.base)
        self.roots, self.drafted = [*confirmed[cached:], next_token], []
