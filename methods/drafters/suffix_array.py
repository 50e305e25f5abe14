"""A suffix array: where every suffix of a text begins, in order of the suffixes (Manber and Myers 1993). Pure.

So all places where a sequence occurs stand side by side, and two binary searches find them.

Legend: N tokens of the text, S suffixes, O suffixes whose place is still open.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]  # of any width


def suffix_array(tokens_N: Ints, separator: int) -> Ints:
    """The starts of all suffixes but those that begin with a separator, in order, [S].

    A text is documents with a separator behind each, which is greater than any token, and no two are equal: so nothing
    that matches goes beyond a document. By prefix doubling: once suffixes are in order by their first k tokens, two
    ranks tell the order by 2k; only those that share their rank are sorted again."""
    place_N = _first_ranks(tokens_N, separator)
    order_N = np.argsort(place_N, kind="stable")
    rank_N = np.empty(len(place_N), np.int64)
    open_O = np.arange(len(order_N))
    keys_O, width = place_N[order_N], 1
    while len(open_O):
        changes_O = np.append(True, keys_O[1:] != keys_O[:-1])
        rank_N[order_N[open_O]] = open_O[np.maximum.accumulate(np.where(changes_O, np.arange(len(open_O)), 0))]
        shared_O = ~(changes_O & np.append(changes_O[1:], True))
        open_O = open_O[shared_O]
        # No suffix that shares its rank has a separator in its first tokens, so there is one behind them.
        starts_O = order_N[open_O]
        keys_O = rank_N[starts_O] * len(rank_N) + rank_N[starts_O + width]
        by_O = np.argsort(keys_O, kind="stable")
        order_N[open_O], keys_O, width = starts_O[by_O], keys_O[by_O], 2 * width
    return order_N[: np.count_nonzero(tokens_N != separator)]


def _first_ranks(tokens_N: Ints, separator: int) -> Ints:
    """In the order of single tokens, each separator with a number of its own, [N]."""
    is_separator_N = tokens_N == separator
    if not len(tokens_N) or not is_separator_N[-1]:
        raise ValueError("expected a text that ends with a separator")
    return np.where(is_separator_N, separator + np.cumsum(is_separator_N), tokens_N.astype(np.int64))
