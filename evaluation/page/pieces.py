"""The text of each token of an answer, as far as a token has one: characters may be spread over several."""

from collections.abc import Iterable
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """The tokens of one answer, as they come. `tokenizer`: a PreTrainedTokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.ids = tokenizer, list[int]()
        self.special = frozenset(tokenizer.all_special_ids)
        self._known, self._shown = 0, 0  # tokens before these are not decoded again; these have been given

    def add(self, ids: Iterable[int]) -> list[str]:
        """What each adds to the text: nothing where a character goes on in the next; of a special token its name."""
        return [self._add(token) for token in ids]

    def _add(self, token: int) -> str:
        self.ids.append(token)
        if token in self.special:
            self._known = self._shown = len(self.ids)
            return str(self.tokenizer.convert_ids_to_tokens(token))
        before, now = self._decode(self.ids[self._known : self._shown]), self._decode(self.ids[self._known :])
        if now.endswith(UNFINISHED) or len(now) < len(before):
            return ""
        self._known, self._shown = self._shown, len(self.ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def alone(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of single tokens, which follow nothing."""
    return [str(tokenizer.decode([token], clean_up_tokenization_spaces=False)) for token in ids]
