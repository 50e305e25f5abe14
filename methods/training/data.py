"""Training answers of a draft: reading, the held-out split, the draft vocabulary and batches. Used by train.py.

Shapes: B documents of a batch, L positions, N tokens of the draft vocabulary.
"""

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.errors import UserError


@dataclass(frozen=True)
class Document:
    """One prompt and its answer as token ids; `start` is where the answer begins. `greedy`: every token of the answer
    is the target's most probable one."""

    prompt: str
    tokens: list[int]
    start: int
    greedy: bool = False

    @property
    def positions(self) -> int:
        """Positions whose next token is known."""
        return len(self.tokens) - 1


def read_answers(paths: Iterable[Path], length: int) -> list[Document]:
    """The answers in JSONL files (.gz too) written by distill.py, each cut at `length` tokens."""
    return [document for path in paths for document in _read_file(Path(path), length)]


def _read_file(path: Path, length: int) -> Iterator[Document]:
    if not path.is_file():
        raise UserError(f"expected a file of answers at {path}, found none; write one with scripts/distill.py")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _document(json.loads(line), length)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: expected JSON with prompt, prompt_ids and output_ids as distill.py writes"
                    f" them, found an error: {error!r}"
                ) from None


def _document(row: dict[str, Any], length: int) -> Document:
    prompt_ids, output_ids = row["prompt_ids"], row["output_ids"]
    greedy = row.get("temperature") == 0
    return Document(row["prompt"], (prompt_ids + output_ids)[:length], len(prompt_ids), greedy)


def split(documents: Sequence[Document], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """(training, held-out) documents. The prompt's hash decides, so all answers to one prompt are on one side."""
    held = [_share(document.prompt, seed) < fraction for document in documents]
    training = [document for document, out in zip(documents, held, strict=True) if not out]
    return training, [document for document, out in zip(documents, held, strict=True) if out]


def _share(text: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def frequent_tokens(documents: Iterable[Document], count: int, always: Iterable[int]) -> Tensor:
    """tokens_N, ascending: the ids in `always` (end of sequence) and the most frequent ones of the answers.

    Ids that no answer holds fill up from the prompts, then from the smallest ids: common pieces in a BPE vocabulary.
    """
    ranked = [*always, *ranked_tokens(documents), *range(count)]
    return torch.tensor(sorted(list(dict.fromkeys(ranked))[:count]))


def ranked_tokens(documents: Iterable[Document]) -> list[int]:
    """The ids that occur: those of answers, the most frequent first, then those of prompts alone."""
    answers, prompts = Counter[int](), Counter[int]()
    for document in documents:
        answers.update(document.tokens[document.start :])
        prompts.update(document.tokens[: document.start])
    return list(dict.fromkeys([*_ranked(answers), *_ranked(prompts)]))


def _ranked(counts: Counter[int]) -> list[int]:
    return sorted(counts, key=lambda token: (-counts[token], token))


def length_batches(lengths: Sequence[int], batch_tokens: int, seed: int | str) -> list[list[int]]:
    """Indices of the documents of each batch: like lengths together, at most `batch_tokens` with padding, shuffled.

    Causal attention never sees the padding on the right, so the batches need no attention mask.
    """
    order = random.Random(seed)
    indices = list(range(len(lengths)))
    order.shuffle(indices)
    indices.sort(key=lambda index: lengths[index])  # stable: documents of one length stay shuffled
    batches: list[list[int]] = []
    for index in indices:
        if not batches or lengths[index] * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    order.shuffle(batches)
    return batches


def pad(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """tokens_BL: the rows filled up on the right with zeros."""
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
