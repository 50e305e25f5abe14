"""An EAGLE head at work: from pairs of a target's state and the token that it chose, to the states that follow.

Pair t is (f_t, x_{t+1}): the target's features of the row that read x_t, and the token which that row chose. It has
position t and row t in the head's cache; from it the head predicts f_{t+1}, and so x_{t+2} (EAGLE, section 3). Behind
the decided tokens it goes on from its own predictions.

Legend: N pairs, K new nodes of a tree, F feature width of all taps, D width, E embedding width, R rows of the LM head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.drafters.head_files import LmHead
from methods.engine.backends.base import LinearLayer
from methods.engine.head import Head
from methods.engine.tree import TokenTree


@dataclass(frozen=True)
class Parts:
    """What an EAGLE head is made of, beside its layers.

    fc: of EAGLE-1 from embedding and state to the layer's input, of EAGLE-3 from the taps to a state (`from_taps`).
    tap_norms: RMS norms of the taps before fc, one for each or one for all (EAGLE-3.1). stream_norm_D: the state is
    normed before the layer, residual included ("norm_before_residual"). out_norm_D: before the LM head. `feed_normed`:
    what is fed back has that norm too."""

    embedding_VE: Tensor
    fc: LinearLayer
    from_taps: bool
    lm_head: LmHead
    eps: float
    tap_norms: Sequence[Tensor] = ()
    stream_norm_D: Tensor | None = None
    out_norm_D: Tensor | None = None
    feed_normed: bool = False


class EagleHead:
    """The pairs of decided tokens are `read` once, with the target's true features. What is predicted behind them is
    provisional: the next `read` drops it."""

    def __init__(self, parts: Parts, head: Head) -> None:
        self.parts, self.head = parts, head
        self.decided = 0  # pairs that were read

    @property
    def room(self) -> int:
        """Pairs that the cache can still hold, predicted ones included."""
        return self.head.rows - self.decided

    @property
    def spare(self) -> int:
        """Nodes that a tree can still have, those not counted that `branch` finds read."""
        return self.head.room

    def read(self, features_NF: Tensor, tokens_N: Sequence[int]) -> Tensor:
        """The predicted states behind N more decided pairs, [N, D]. All that was predicted before is dropped."""
        self.head.truncate(self.decided)
        p = self.parts
        states_ND = p.fc(self._normed_taps(features_NF)) if p.from_taps else features_NF
        out_ND = self.head.feed(*self._inputs(states_ND, tokens_N))
        self.decided = self.head.length
        return self._fed_back(out_ND)

    def go_on(self, states_ND: Tensor, tokens_N: Sequence[int]) -> Tensor:
        """The predicted states behind N drafted tokens in a chain, [N, D]. Row i of states_ND is the predicted state
        that chose token i."""
        return self._fed_back(self.head.feed(*self._inputs(states_ND, tokens_N)))

    def branch(self, tree: TokenTree, known: int, states_KD: Tensor) -> Tensor:
        """The same for the nodes of a tree behind its first `known`, [K, D]. Its root is the last decided token, and
        the nodes behind it are the drafted tokens that `go_on` has read since then, if any."""
        inputs = self._inputs(states_KD, tree.tokens[known:])
        return self._fed_back(self.head.branch(tree, known, *inputs, fed=1 + self.head.length - self.decided))

    def logits(self, states_ND: Tensor) -> Tensor:
        """Next-token logits in fp32 of predicted states, [N, R], of the tokens `parts.lm_head.tokens_R`."""
        p = self.parts
        normed_ND = states_ND if p.out_norm_D is None or p.feed_normed else self._norm(states_ND, p.out_norm_D)
        return p.lm_head(normed_ND)

    def forget(self) -> None:
        """A new prompt begins."""
        self.head.truncate(0)
        self.decided = 0

    def _inputs(self, states_ND: Tensor, tokens_N: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        p = self.parts
        embedded_NE = p.embedding_VE[torch.tensor(list(tokens_N), device=p.embedding_VE.device)]
        if not p.from_taps:
            return p.fc(torch.cat((embedded_NE, states_ND), 1)), None
        return states_ND if p.stream_norm_D is None else self._norm(states_ND, p.stream_norm_D), embedded_NE

    def _norm(self, x_ND: Tensor, weight_D: Tensor) -> Tensor:
        return self.head.layers.stack.norm(x_ND, weight_D, self.parts.eps)

    def _normed_taps(self, features_NF: Tensor) -> Tensor:
        p = self.parts
        if not p.tap_norms:
            return features_NF
        parts = features_NF.split([len(norm) for norm in p.tap_norms], 1)
        return torch.cat([self._norm(x, norm) for x, norm in zip(parts, p.tap_norms, strict=True)], 1)

    def _fed_back(self, out_ND: Tensor) -> Tensor:
        p = self.parts
        return self._norm(out_ND, p.out_norm_D) if p.feed_normed and p.out_norm_D is not None else out_ND
