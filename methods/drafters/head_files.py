"""Files of a head: from where the pair has it to tensors that are known to fit the target.

What a head is, its tensors' names and shapes say; of its config.json, which may be wrong about it or missing, a drafter
reads only what they cannot tell. Beside what others publish, heads may be stored as scripts/train.py stores
drafts: any matrix NAME in int8 with a scale per row in NAME.scale, and an LM head over part of the vocabulary with the
token of each row in `lm_head.tokens`. A head without an LM head of its own has the target's.

Legend: N states, D width, V vocabulary, R tokens that an LM head knows.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from methods.engine.backends import linear
from methods.engine.backends.base import LinearLayer
from methods.engine.backends.best import likeliest
from methods.engine.int8 import EMBEDDING, HEAD, SCALE, Int8, ScaledWeights
from methods.engine.loader import DTYPES
from methods.engine.schema import enough_memory, read_table
from methods.engine.trained_draft import check_tokens
from methods.engine.transformer import matrix
from methods.engine.weights import SAFETENSORS, TOKENS, Shapes, Weights, check_tensors, listed
from methods.errors import UserError
from methods.models import Models

ELSE = "choose a head of this target"
Made = TypeVar("Made")
BLOCK = re.compile(r"(\d{1,6})\.(\d{1,6})\.linear\.weight")  # as drafters rename them
KINDS = {  # what weights are, by a name that only they have
    "Hydra heads": r"hydra_mlp\.",
    "Medusa heads": r"medusa_heads?\.|\d+\.\d+\.linear\.weight|blocks\.\d+\.layers\.",
    "an EAGLE-3 head": r"d2t|midlayer\.|.*\bhidden_norm\.",
    "an EAGLE head": r"fc\.weight",
    "a language model": r"model\.layers\.|model\.embed_tokens\.",
}


@dataclass(frozen=True)
class HeadFiles:
    """A head as it is stored. `weights`: by the names that its drafter gives them; `config`: {} where it has none."""

    source: str
    config: Mapping[str, Any]
    weights: ScaledWeights

    @property
    def int8(self) -> bool:
        """Whether its matrices are."""
        return any(tensor.dtype == torch.int8 for tensor in self.weights.stored.values())

    @property
    def blocks(self) -> tuple[int, list[str]]:
        """Of heads made of blocks HEAD.PLACE.linear: how many heads there are, and the places of the blocks in each."""
        found = [match for name in self.weights if (match := BLOCK.fullmatch(name))]
        if not found:
            raise UserError(f"{self.source} misses weights: it holds no block of a head; fetch it again")
        return len({match[1] for match in found}), sorted({match[2] for match in found}, key=int)

    def rows_of(self, ending: str) -> int | None:
        """Rows of the first matrix whose name ends so; None where there is none."""
        found = (tensor for name, tensor in self.weights.stored.items() if name.endswith(ending) and tensor.dim())
        return next((len(tensor) for tensor in found), None)

    @property
    def tokens_R(self) -> Tensor | None:
        """Of the rows of its LM head; None: every token of the target."""
        return self.weights[TOKENS].long() if TOKENS in self.weights else None

    def check(self, needed: Shapes, optional: Shapes) -> None:
        """Every needed tensor is there in its shape, and nothing else but the optional ones. What does not fit is a
        UserError that names it. Nothing but names and shapes is read."""
        check_tensors(self.weights, needed, optional, self.source, "fetch it again", int8=True)

    def linear(self, names: Sequence[str], models: Models, out_dtype: torch.dtype | None = None) -> LinearLayer:
        """NAME.weight of all the names, one below the other, with NAME.bias where there are any: as one matrix, in the
        run's dtype."""
        device, dtype = models.draft_device, DTYPES[models.dtype]
        matrices = [f"{name}.weight" for name in names]
        if len({self.weights[name].dtype == torch.int8 for name in matrices}) > 1:
            raise UserError(f"{self.source}: expected {listed(matrices)} all in int8, or none; export it again")
        biases = [self.weights[f"{name}.bias"] for name in names if f"{name}.bias" in self.weights]
        bias = torch.cat(biases).to(device, dtype) if biases else None
        return linear(matrix(self.weights, matrices, dtype, device), bias, out_dtype)

    def check_numbers(self) -> None:
        """All of them are finite."""
        for name, tensor in self.weights.stored.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                got = f"expected finite numbers in {name} of {self.source}, got NaN or infinite ones"
                raise UserError(f"{got}; fetch it again, or train it anew")


def read_head(models: Models, kind: str, files: Iterable[str], rename: Callable[[str], str | None]) -> HeadFiles:
    """The pair's head of that kind (of KINDS). `files`: names under which others publish such heads, the first that is
    there is read; else a model's own names. `rename`: from a stored name to the drafter's; None: of no concern.

    Raises UserError where the files hold nothing of the kind."""
    checkpoint = models.draft_checkpoint
    folder, source = checkpoint.folder, checkpoint.source
    stored = _stored(folder, list(files), kind)
    renamed = {new: name for name in stored if (new := _renamed(name, rename)) is not None}
    if looks_like(stored) != kind or not renamed:
        raise UserError(f"expected {source} to be {kind}, but it looks like {looks_like(stored)}; {ELSE}")
    config = folder / "config.json"
    table = read_table(config) if config.is_file() else {}
    return HeadFiles(source, table, ScaledWeights({new: stored[name] for new, name in renamed.items()}))


def loaded(models: Models, key: str, check: Callable[[], HeadFiles], make: Callable[[HeadFiles], Made]) -> Made:
    """The pair's head, made of its files once; `key`: what it is made as. `check` gives the files, whose numbers are
    checked here."""

    def load() -> Made:
        head = check()
        head.check_numbers()
        with enough_memory(f"for the head {head.source}"):
            return make(head)

    return models.once(key, load)


def _stored(folder: Path, files: list[str], kind: str) -> Weights:
    named = next((name for name in files if (folder / name).is_file()), None)
    if named is None and not any(folder.glob("*.safetensors*")) and not any(folder.glob("pytorch_model*.bin")):
        raise UserError(f"expected {kind} in {folder}, a file {' or '.join([*files, SAFETENSORS])}, found none")
    return Weights(folder, named)


def _renamed(name: str, rename: Callable[[str], str | None]) -> str | None:
    matrix_name = name.removesuffix(SCALE)
    new = matrix_name if matrix_name in (TOKENS, HEAD) else rename(matrix_name)
    return None if new is None else new + name[len(matrix_name) :]


def looks_like(names: Iterable[str]) -> str:
    """The kind of weights that has these names."""
    found = list(names)
    kinds = (kind for kind, only in KINDS.items() if any(re.match(only, name) for name in found))
    return next(kinds, "none of those that are known")


def check_target(head: HeadFiles, width: int | None, vocabulary: int | None, models: Models) -> None:
    """The head was made for a model of the target's sizes; None: it does not say."""
    config = models.target_checkpoint.config
    ours = config.width, config.vocab_size
    made = width or ours[0], vocabulary or ours[1]
    if made != ours:
        raise UserError(
            f"{head.source} was made for a model of width {made[0]} and vocabulary {made[1]}, not for this target "
            f"(width {ours[0]}, vocabulary {ours[1]}); {ELSE}"
        )


def lm_head_shapes(head: HeadFiles, models: Models) -> tuple[Shapes, Shapes]:
    """What `LmHead.of` takes from the files, needed and optional. The tokens of a head over part of the vocabulary are
    checked."""
    config = models.target_checkpoint.config
    if TOKENS not in head.weights:
        return {}, {HEAD: (config.vocab_size, config.width)}
    check_tokens(head.weights[TOKENS], config.vocab_size, head.source)
    rows = len(head.weights[TOKENS])
    return {TOKENS: (rows,)}, {HEAD: (rows, config.width)}


def known_tokens(head: HeadFiles, models: Models) -> Tensor:
    """The tokens of an LM head's rows."""
    return torch.arange(models.vocabulary) if head.tokens_R is None else head.tokens_R


class LmHead:
    """Logits of states over the tokens that it knows: column r of the logits is of token tokens_R[r]."""

    def __init__(self, layer: LinearLayer, tokens_R: Tensor) -> None:
        self.layer, self.tokens_R = layer, tokens_R
        self._token_of = tokens_R.numpy().data  # of which one is looked up faster

    @classmethod
    def of(cls, head: HeadFiles, models: Models) -> "LmHead":
        """The file's own; else the rows of the target's LM head, in int8 where the head's matrices are."""
        device, dtype = models.draft_device, DTYPES[models.dtype]
        tokens_R, known_R = head.tokens_R, known_tokens(head, models)
        if HEAD in head.weights:
            return cls(head.linear([HEAD.removesuffix(".weight")], models, torch.float32), known_R)
        if tokens_R is None and not head.int8 and not models.drafts_only and models.target.model.devices[-1] == device:
            return cls(models.target.model.head, known_R)
        weights = models.target_checkpoint.weights
        rows_VD = weights[HEAD] if HEAD in weights else weights[EMBEDDING]
        rows_RD = (rows_VD if tokens_R is None else rows_VD[tokens_R]).to(device, dtype)
        return cls(linear(Int8.of(rows_RD) if head.int8 else rows_RD, None, torch.float32), known_R)

    def __call__(self, states_ND: Tensor) -> Tensor:
        """Logits in fp32, [N, R]."""
        return self.layer(states_ND)

    def best(self, states_ND: Tensor, count: int) -> list[list[int]]:
        """The `count` most likely tokens behind each state, the best first; fewer where it knows fewer."""
        return self.tokens(likeliest(self(states_ND), count)[0])

    def tokens(self, places_NC: Sequence[Sequence[int]]) -> list[list[int]]:
        """Whose logits have these places."""
        return [[self._token_of[place] for place in places] for places in places_NC]


def lm_heads_of(head: HeadFiles, count: int, models: Models) -> list[LmHead]:
    """The LM head of each of several heads, as HEAD.lm_head in the file; else the one that they share."""
    if "0.lm_head.weight" not in head.weights:
        return [LmHead.of(head, models)] * count
    tokens_R = known_tokens(head, models)
    return [LmHead(head.linear([f"{i}.lm_head"], models, torch.float32), tokens_R) for i in range(count)]
