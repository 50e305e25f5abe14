"""A suffix automaton, built token by token: it knows every substring of a text, and where it occurred (Blumer et al.
1985, "The smallest automaton recognizing the subwords of a text").

A state stands for substrings that end at the same places. There are at most two states a token, and a token costs
constant time on average, however long the text is.
"""

from collections.abc import Iterable, Sequence

ROOT = 0  # the state of the empty string


class SuffixAutomaton:
    """Of state s: `_next[s]`, the state that follows by each token; `_link[s]`, that of its longest suffix which ends
    at more places; `_longest[s]`, the length of its longest substring; `_end[s]`, the index behind an occurrence: the
    first one, or with `latest` the last at which the text had no longer suffix that had occurred before."""

    def __init__(self, latest: bool) -> None:
        self.latest = latest
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link, self._longest, self._end = [-1], [0], [0]
        self._whole = ROOT  # the state of the whole text
        self._found = 0  # the end of what the whole text's longest repeated suffix had before

    @property
    def states(self) -> int:
        """How many there are."""
        return len(self._next)

    def extend(self, tokens: Iterable[int]) -> None:
        """Add tokens to the text."""
        for token in tokens:
            self._append(token)
            repeated, end = self._link[self._whole], len(self.tokens)
            self._found = self._end[repeated]
            if self.latest and repeated != ROOT:
                self._end[repeated] = end

    def match(self, tokens: Iterable[int] = ()) -> tuple[int, int]:
        """Of the text with more tokens behind it, which are not added: the length of the longest suffix that has
        occurred in the text before, and the index behind an occurrence."""
        state = max(self._link[self._whole], ROOT)
        matched, end = self._longest[state], self._found
        for token in tokens:
            state, matched = self._moved(state, matched, token)
            end = self._end[state]
        return matched, end

    def following(self, place: int, count: int, tokens: Sequence[int]) -> list[int]:
        """`count` tokens from that place of the text on, with `tokens` behind it: at their end what was found goes on
        from its own beginning, as a period does."""
        whole = [*self.tokens[place : place + count], *tokens[max(place - len(self.tokens), 0) :]][:count]
        while whole and len(whole) < count:
            whole += whole[: count - len(whole)]
        return whole

    def _moved(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """From the longest suffix that has occurred to that with one token more."""
        while state != ROOT and token not in self._next[state]:
            state = self._link[state]
            matched = self._longest[state]
        following = self._next[state].get(token)
        return (ROOT, 0) if following is None else (following, matched + 1)

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        state, new = self._whole, self._added({}, len(self.tokens), len(self.tokens))
        while state != -1 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        self._link[new] = ROOT if state == -1 else self._behind(state, token)
        self._whole = new

    def _behind(self, state: int, token: int) -> int:
        """The state of a state's longest substring with the token behind it. Where longer ones share it, which do not
        end here, it is split from these."""
        following = self._next[state][token]
        if self._longest[following] == self._longest[state] + 1:
            return following
        split = self._added(dict(self._next[following]), self._longest[state] + 1, self._end[following])
        self._link[split], self._link[following] = self._link[following], split
        while state != -1 and self._next[state].get(token) == following:
            self._next[state][token] = split
            state = self._link[state]
        return split

    def _added(self, following: dict[int, int], longest: int, end: int) -> int:
        self._next.append(following)
        self._link.append(ROOT)
        self._longest.append(longest)
        self._end.append(end)
        return len(self._next) - 1
