"""A model in 8 or 4 bits: its own weights, each matrix rounded when it is asked for. So a target drafts for itself.

Legend: O outputs (rows), I inputs, V vocabulary, D width, R rows of a reduced head.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from methods.engine.int4 import GROUP, MINIMUM, Int4
from methods.engine.int8 import EMBEDDING, HEAD, SCALE, Int8
from methods.engine.weights import TOKENS


class LowBitWeights(Mapping[str, Tensor]):
    """A model's weights with its matrices in 8 or 4 bits, but for the embedding, which is looked up and not read. The
    head, a tied one too, is always in 8: what it rounds goes into the logits as it is. A matrix whose inputs do not
    fill groups of 4 bits is in 8 as well. Scales and minima are found, but not listed."""

    def __init__(
        self, weights: Mapping[str, Tensor], embedding_VD: Tensor, bits: int, tokens_R: Tensor | None = None
    ) -> None:
        """`tokens_R`: those that the head knows, ascending; None: all."""
        self.weights, self.embedding_VD, self.bits, self.tokens_R = weights, embedding_VD, bits, tokens_R
        # Values are asked for first, then scales: of q, k and v together.
        self._parts = lru_cache(maxsize=4)(self._read)

    def __getitem__(self, name: str) -> Tensor:
        if name == EMBEDDING:
            return self.embedding_VD
        if name == TOKENS and self.tokens_R is not None:
            return self.tokens_R
        matrix = name.removesuffix(SCALE).removesuffix(MINIMUM)
        return self._parts(matrix)[name.removeprefix(matrix)]

    def _read(self, name: str) -> dict[str, Tensor]:
        """The tensors that stand for one of the model's, by what is behind its name."""
        tensor = self.embedding_VD if name == HEAD and HEAD not in self.weights else self.weights[name]
        if tensor.dim() < 2:
            return {"": tensor}
        if name == HEAD and self.tokens_R is not None:
            tensor = tensor[self.tokens_R]
        if self.bits == 4 and name != HEAD and tensor.shape[1] % GROUP == 0:
            int4 = Int4.of(tensor)
            return {"": int4.packed_OJ, SCALE: int4.steps_OG, MINIMUM: int4.minima_OG}
        int8 = Int8.of(tensor)
        return {"": int8.values_OI, SCALE: int8.scales_O}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.weights, HEAD, *([TOKENS] if self.tokens_R is not None else [])]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def frequent_tokens(vocabulary: int, count: int, also: Sequence[int], ranked: Sequence[int] = ()) -> Tensor:
    """About the `count` most frequent tokens of a vocabulary of V, and those of `also`, ascending, [R]: the first of
    `ranked`, which were counted, then the lowest numbers.

    For these no text is needed. A tokenizer of byte pairs numbers its tokens in the order in which they were merged,
    most frequent pairs first, behind the bytes; one of SentencePiece does so or sorts by probability. So the lowest
    numbers are the most frequent in the text that the tokenizer was made of, at least nearly. EOS may have any."""
    chosen = list(dict.fromkeys([*ranked, *range(vocabulary)]))[:count]
    return torch.unique(torch.tensor([*chosen, *(token for token in also if token < vocabulary)]))
