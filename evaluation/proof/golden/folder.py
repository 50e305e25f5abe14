"""A folder of goldens: README.md, whose title names the method, the published head in head/, and what its code made of
the target beside the folder: tensors, and traces of whole greedy generations."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.engine.weights import Weights
from methods.errors import UserError, one_line
from methods.models import Models
from methods.target import Target


@dataclass(frozen=True)
class Golden:
    """`folder`/../target is the target."""

    folder: Path

    @property
    def title(self) -> str:
        """The first line of README.md."""
        try:
            return (self.folder / "README.md").read_text(encoding="utf-8").split("\n")[0]
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {self.folder}/README.md: {one_line(error)}; name a folder of goldens"
            ) from None

    @cached_property
    def models(self) -> Models:
        """The target and the head, in fp32."""
        target, head = self.folder.parent / "target", self.folder / "head"
        return Models(str(target), str(head), "float32", [torch.device("cpu")])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Of the file NAME.safetensors."""
        return dict(Weights(self.folder, f"{name}.safetensors"))

    def table(self, name: str) -> dict[str, Any]:
        """The JSON object in a file."""
        table: dict[str, Any] = self._read(name)[0]
        return table

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON objects in a file, one a line."""
        return self._read(name)

    def _read(self, name: str) -> list[Any]:
        path = self.folder / name
        try:
            text = path.read_text(encoding="utf-8")
            return [json.loads(part) for part in (text.splitlines() if name.endswith(".jsonl") else [text]) if part]
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {one_line(error)}; name a whole folder of goldens") from None

    def greedy(self, prompt_T: list[int], count: int) -> Iterator[int]:
        """Our target's own tokens."""
        target = Target(self.models.target)
        target.start(prompt_T, Sampling())
        for _ in range(count):
            yield target.pending
            target.judge(TokenTree.chain([target.pending]))
