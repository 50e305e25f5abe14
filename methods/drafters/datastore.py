"""A datastore: documents as token ids and a suffix array over them, in a folder that is mapped, not read.

    datastore.json   {"format", "vocabulary", "tokenizer", "documents", "tokens"}
    tokens.bin       2 or 4 bytes a token, the high byte first, so that bytes are in the order of tokens; behind each
                     document the highest number, which is no token
    suffixes.bin     the start of each suffix in order, 4 or 8 bytes, the low byte first

Legend: N numbers of tokens.bin, M occurrences that are looked at, L tokens behind each, K nodes of a trie.
"""

import hashlib
import json
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from methods.drafters.suffix_array import Ints, suffix_array
from methods.errors import UserError, one_line, writing

FORMAT = "suffix array 1"
TABLE, TOKENS, SUFFIXES = "datastore.json", "tokens.bin", "suffixes.bin"
SMALL = 2**16 - 1  # of a vocabulary whose tokens take two bytes: one number must be left for the separator


@dataclass(frozen=True)
class Trie:
    """What follows in a datastore, K nodes level by level: parents_K (-1: the root's children), tokens_K, and how many
    of the occurrences that were looked at go on so."""

    parents_K: Ints
    tokens_K: Ints
    counts_K: Ints


class Datastore:
    """Read from a folder. `occurrences` finds, `trie` counts what follows."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        dtype = _token_type(vocabulary)
        self._width, self._vocabulary = dtype.itemsize, vocabulary
        self._text = _mapped(folder / TOKENS)
        self._tokens_N = np.frombuffer(self._text, dtype)
        self._suffixes = np.frombuffer(_mapped(folder / SUFFIXES), _place_type(len(self._tokens_N)))
        self._starts = self._suffixes.data  # of which one is looked up faster

    def occurrences(self, tokens: Sequence[int]) -> range:
        """Rows of the suffix array that begin with these tokens."""
        first = self._first(tokens)
        return range(0) if first is None else self._all(tokens, first)

    def longest(self, tokens: Sequence[int], least: int) -> tuple[int, range]:
        """The length of the longest suffix that occurs, and its rows; 0 where that is shorter than `least`. A suffix of
        what occurs does so too, so the lengths are searched by halves."""
        low, high, found = least - 1, len(tokens), None
        while low < high:
            middle = (low + high + 1) // 2
            if (first := self._first(tokens[len(tokens) - middle :])) is not None:
                low, found = middle, first
            else:
                high = middle - 1
        return (0, range(0)) if found is None else (low, self._all(tokens[len(tokens) - low :], found))

    def _first(self, tokens: Sequence[int]) -> int | None:
        """The first row that begins with these tokens."""
        wanted, beginning = self._sought(tokens)
        row = bisect_left(self._starts, wanted, key=beginning)
        return row if row < len(self._starts) and beginning(self._starts[row]) == wanted else None

    def _all(self, tokens: Sequence[int], first: int) -> range:
        wanted, beginning = self._sought(tokens)
        return range(first, bisect_right(self._starts, wanted, first, key=beginning))

    def _sought(self, tokens: Sequence[int]) -> tuple[bytes, Callable[[int], bytes]]:
        """These tokens as the text has them, and what stands there as many bytes long from a place."""
        wanted, width, text = np.array(tokens, self._tokens_N.dtype).tobytes(), self._width, self._text
        size = len(wanted)
        return wanted, lambda start: text[start * width : start * width + size]

    def trie(self, rows: range, behind: int, length: int, most: int) -> Trie:
        """What follows the first `behind` tokens of these suffixes, up to `length` tokens and their document's end, or
        a number that is no token, as a damaged file may hold. Of more than `most` occurrences as many are taken, at
        equal distances, so that none is preferred by its tokens."""
        chosen_M = rows.start + np.arange(min(len(rows), most)) * len(rows) // min(len(rows), most)
        places_LM = self._suffixes[chosen_M].astype(np.int64) + np.arange(behind, behind + length)[:, None]
        tokens_LM = self._tokens_N.take(places_LM, mode="clip").astype(np.int64)
        inside_LM = np.logical_and.accumulate(tokens_LM < self._vocabulary)
        same_LM = np.zeros_like(inside_LM)  # as the occurrence before, which is next to it in order
        np.logical_and.accumulate((tokens_LM[:, 1:] == tokens_LM[:, :-1]) & inside_LM[:, 1:], out=same_LM[:, 1:])
        return _counted(tokens_LM, inside_LM, same_LM)


def _counted(tokens_LM: Ints, inside_LM: Ints, same_LM: Ints) -> Trie:
    """A node where an occurrence differs from the one before; it has as many as follow until the next does."""
    begins_LM = ~same_LM
    begins = begins_LM.ravel().nonzero()[0]  # level by level; each level begins anew
    sizes = np.empty_like(begins)
    np.subtract(begins[1:], begins[:-1], out=sizes[:-1])
    sizes[-1:] = tokens_LM.size - begins[-1:]
    inside = inside_LM.ravel()[begins]
    nodes = begins[inside]
    count = tokens_LM.shape[1]
    node_of = (begins_LM & inside_LM).ravel().cumsum() - 1  # where an occurrence is inside
    first = np.count_nonzero(nodes < count)  # nodes of the first level, which have no node above
    parents = np.concatenate((np.full(first, -1), node_of[nodes[first:] - count]))
    return Trie(parents, tokens_LM.ravel()[nodes], sizes[inside])


def write(folder: Path, documents: Iterable[Sequence[int]], vocabulary: int, tokenizer: str = "") -> Mapping[str, Any]:
    """Build a datastore. Returns its table. `tokenizer`: what `fingerprint` says of the tokens. Raises UserError for
    documents that have none, and where the folder cannot be written."""
    dtype = _token_type(vocabulary)
    separator = [np.iinfo(dtype).max]
    parts = [part for document in documents for part in (_checked(document, vocabulary), separator)]
    if not any(map(len, parts[::2])):
        raise UserError("expected documents for the datastore, got none that has a token")
    tokens_N = np.concatenate(parts)
    suffixes = suffix_array(tokens_N, separator[0])
    table = {
        "format": FORMAT,
        "vocabulary": vocabulary,
        "tokenizer": tokenizer,
        "documents": len(parts) // 2,
        "tokens": len(suffixes),
    }
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLE).unlink(missing_ok=True)  # last, so that half a datastore is none
        tokens_N.astype(dtype).tofile(folder / TOKENS)
        suffixes.astype(_place_type(len(tokens_N))).tofile(folder / SUFFIXES)
        (folder / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return table


def _checked(document: Sequence[int], vocabulary: int) -> Ints:
    tokens = np.asarray(document, np.int64)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise UserError(f"expected tokens from 0 to {vocabulary - 1}, got {tokens.min()} to {tokens.max()}")
    return tokens


def read_table(folder: Path, source: str) -> dict[str, Any]:
    """Raises UserError where the folder has no whole datastore."""
    try:
        table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
        vocabulary, tokens, documents = (table[name] for name in ("vocabulary", "tokens", "documents"))
        numbers = tokens + documents
        sizes = numbers * _token_type(vocabulary).itemsize, tokens * _place_type(numbers).itemsize
        found = tuple((folder / name).stat().st_size for name in (TOKENS, SUFFIXES))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read a datastore from {source}: {one_line(error)}; make one with scripts/make_datastore.py"
        ) from None
    if table.get("format") != FORMAT or found != sizes or not tokens:
        raise UserError(f"{source} is no whole datastore; make it again with scripts/make_datastore.py")
    return dict(table)


def fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Of a tokenizer: tokens and their numbers."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def _token_type(vocabulary: int) -> np.dtype[Any]:
    return np.dtype(">u2" if vocabulary <= SMALL else ">u4")


def _place_type(numbers: int) -> np.dtype[Any]:
    return np.dtype("<i4" if numbers < 2**31 else "<i8")


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
