"""A target of several ranks: the decoder of the one that leads, and what the others do.

The leader has the whole embedding, final norm and head, so it alone gives logits and features; whatever drafts on its
rank reads these as those of a target of one rank. A follower has an embedding and its part of the layers.

Legend: N nodes of a tree, T prompt tokens, A accepted.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.decoder import Decoder, cache_rows, new_cache
from methods.engine.int8 import EMBEDDING
from methods.engine.link import Close
from methods.engine.team import Loaded, Pack, Pass, Prompt, Rest, Team
from methods.engine.transformer import Layers, Transformer
from methods.engine.tree import TokenTree


class LeadingDecoder(Decoder):
    """The decoder of a target whose layers are split; it gives the orders for whatever touches them."""

    def __init__(self, model: Transformer, team: Team, max_length: int | None = None) -> None:
        """Returns when all others have loaded their parts too."""
        super().__init__(model, max_length)
        self.team = team
        self._theirs: list[list[int]] = []
        for link in team.links:
            loaded = link.receive("its part of the target", None)
            if not isinstance(loaded, Loaded):
                raise link.unexpected(loaded, "its part of the target")
            self._theirs.append(loaded.row_counts)

    def _measure_rows(self) -> None:
        """A number of rows gives the same bits where it does so on every rank."""
        super()._measure_rows()
        stack = self.model.stack
        if stack.row_counts is not None:
            stack.row_counts = tuple(n for n in stack.row_counts if all(n in counts for counts in self._theirs))

    def _read_prompt(self, tokens_T: list[int], taps: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        self.team.tell(Prompt(tokens_T))
        return super()._read_prompt(tokens_T, taps)

    def _read(self, tree: TokenTree, known: int, taps: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        parents_N = None if tree.is_chain else list(tree.parents)
        self.team.tell(Pass(self.length, known, list(tree.tokens), parents_N))
        return super()._read(tree, known, taps)

    def _pack(self, path_A: list[int]) -> None:
        self.team.tell(Pack(self.length, path_A))
        super()._pack(path_A)


class Follower:
    """A rank's part of the layers, with its part of the keys and values."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        team: Team,
    ) -> None:
        """`config` and `weights` of the part; `devices`: one per layer."""
        self.layers = Layers(config, weights, dtype, devices, team.gather)
        self.embedding_VD = weights[EMBEDDING].to(devices[0], dtype)
        self.team = team

    def load(self, max_length: int) -> None:
        """Make room for so many tokens, and tell the leader that it may begin."""
        self.cache = new_cache(self.layers, cache_rows(self.layers, max_length))
        self.layers.stack.measure_rows()
        self.team.tell(Loaded(list(self.layers.stack.row_counts or ())))

    @torch.inference_mode()
    def follow(self) -> None:
        """Do what the leader orders, until it rests or has no more orders."""
        (link,) = self.team.links
        while True:
            match link.receive("an order", None):
                case Prompt(tokens_T):
                    self._run(torch.tensor(tokens_T), torch.arange(len(tokens_T)), self.cache.prompt())
                case Pass(start, known, tokens_N, parents_N):
                    tree = TokenTree.chain(tokens_N) if parents_N is None else TokenTree(tokens_N, parents_N)
                    view = self.cache.view(start, tree, known)
                    self._run(tree.tokens_N[known:], start + tree.depth_N[known:], view)
                case Pack(start, path_A):
                    self.cache.pack(start, torch.tensor(path_A))
                case Rest() | Close():
                    return
                case other:
                    raise link.unexpected(other, "an order")

    def _run(self, tokens_N: Tensor, positions_N: Tensor, view: object) -> None:
        tokens_N, positions_N = self.layers.sent(tokens_N, positions_N)
        x_ND = F.embedding(tokens_N, self.embedding_VD)
        self.layers.run(x_ND, self.layers.rotation_of(positions_N), view, 0, len(self.layers.layers))
