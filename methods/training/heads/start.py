"""A head that training goes on from: what export.py wrote, or what others publish under the same names."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from methods.engine.int8 import SCALE
from methods.engine.weights import TOKENS
from methods.errors import UserError, one_line
from methods.training.heads.base import Head

OFFSETS, KNOWN = "d2t", "t2d"  # EAGLE-3's tokens: how far each is from its row, and which of the target's are known


class StoredHead:
    """The tensors of the one safetensors file in a folder."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(f"expected a folder with a head in one safetensors file at {folder}, found {len(files)}")
        try:
            self.folder, self.tensors = folder, load_file(files[0])
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {files[0]}: {one_line(error)}; fetch or export it again") from None

    def tokens_N(self, vocabulary: int) -> Tensor:
        """The tokens that it knows, of so many."""
        if TOKENS in self.tensors:
            return self.tensors[TOKENS].long()
        offsets_N = self.tensors.get(OFFSETS)
        return torch.arange(vocabulary) if offsets_N is None else offsets_N.long() + torch.arange(len(offsets_N))

    @torch.no_grad()
    def copy_to(self, head: Head) -> None:
        """Raises UserError where the head is another kind's, or of another shape."""
        for name, tensor in head.tensors().items():
            if name in (OFFSETS, KNOWN):
                continue
            stored = self._widened(name)
            if stored is None or stored.shape != tensor.shape:
                found = "none" if stored is None else list(stored.shape)
                raise UserError(
                    f"expected {name} {list(tensor.shape)} in {self.folder}, found {found}: start from a head of the "
                    "same kind, target and recipe"
                )
            tensor.copy_(stored)

    def _widened(self, name: str) -> Tensor | None:
        stored, scales_O = self.tensors.get(name), self.tensors.get(name + SCALE)
        return stored if stored is None or scales_O is None else stored * scales_O[:, None]
