"""Whether samples come from the target's own distribution: exact probabilities, groups of answers, Pearson's test, and
how many samples it needs.

Legend: V vocabulary, T prompt tokens, G groups.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import brentq
from scipy.stats import chi2, chisquare, ncx2
from torch import Tensor

from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling, probabilities
from methods.engine.tree import TokenTree

Tokens = tuple[int, ...]
NextToken = Callable[[Tokens], Tensor]  # what has been answered so far -> p_V of the next token
FEWEST = 5  # expected samples of a group (Cochran 1954); smaller groups are taken together
IMPOSSIBLE = 0  # the group of what the target never says, as top-k and top-p make it
OPEN = -1  # in the place of a group: the tokens behind this one decide


def next_token(decoder: Decoder, prompt_T: Sequence[int], sampling: Sampling) -> NextToken:
    """The target's distribution after a prompt, by its own passes: bit for bit the one that a method must draw from.

    To be used before the decoder is given another prompt."""
    first_V = probabilities(decoder.prefill(prompt_T).logits_NV, sampling)[0].cpu()

    def after(answer: Tokens) -> Tensor:
        if not answer:
            return first_V
        logits_NV = decoder.score(TokenTree.chain(list(answer))).logits_NV
        return probabilities(logits_NV[-1:], sampling)[0].cpu()

    return after


def all_answers(after: NextToken, tokens: int) -> dict[Tokens, float]:
    """The probability of every answer of so many tokens; for a small vocabulary."""
    chances: dict[Tokens, float] = {(): 1.0}
    for _ in range(tokens):
        chances = {
            (*answer, token): chance * p for answer, chance in chances.items() for token, p in _tokens(after(answer))
        }
    return chances


def _tokens(p_V: Tensor) -> list[tuple[int, float]]:
    return [(token, p) for token, p in enumerate(p_V.tolist()) if p > 0]


@dataclass
class Groups:
    """All answers in groups of known mass, the first being the impossible ones. `places`: answer so far -> group of
    each next token, or OPEN."""

    mass_G: list[float] = field(default_factory=lambda: [0.0])
    places: dict[Tokens, Tensor] = field(default_factory=dict)

    def of(self, answer: Sequence[int]) -> int:
        """The group of an answer."""
        for length, token in enumerate(answer):
            group = int(self.places[tuple(answer[:length])][token])
            if group != OPEN:
                return group
        raise ValueError(f"expected an answer that is finished, got {list(answer)}")

    @property
    def count(self) -> int:
        """How many are possible."""
        return sum(mass > 0 for mass in self.mass_G)

    @property
    def entropy(self) -> float:
        """In nats: how much there is to see."""
        return -sum(mass * math.log(mass) for mass in self.mass_G if mass > 0)


def group(after: NextToken, tokens: int, ends: frozenset[int], least: float) -> Groups:
    """Group the answers of so many tokens, or ended before by one of `ends`, in about 1 / `least` groups.

    An answer of a probability of at least `least` is a group of its own. Where the first tokens of one are that
    probable, but none of the next, the next tokens are put in bands, the most probable first, of about `least` each."""
    groups = Groups()
    reached: list[tuple[Tokens, float]] = [((), 1.0)]
    for answer, chance in reached:  # which grows on the way
        mass_V = chance * after(answer)
        groups.places[answer] = place_V = torch.full_like(mass_V, IMPOSSIBLE, dtype=torch.long)
        ordered_V, order_V = mass_V.sort(descending=True, stable=True)
        large = int((ordered_V >= least).sum())
        for token, mass in zip(order_V[:large].tolist(), ordered_V[:large].tolist(), strict=True):
            if len(answer) + 1 < tokens and token not in ends:
                place_V[token] = OPEN
                reached.append(((*answer, token), mass))
            else:
                _add(groups, place_V, torch.tensor([token]), mass)
        possible = slice(large, int((ordered_V > 0).sum()))
        _add_bands(groups, place_V, order_V[possible], ordered_V[possible], least)
    return groups


def _add_bands(groups: Groups, place_V: Tensor, tokens_V: Tensor, mass_V: Tensor, least: float) -> None:
    band_V = ((mass_V.cumsum(0) - mass_V) / least).long()
    for band in band_V.unique():
        members = band_V == band
        _add(groups, place_V, tokens_V[members], float(mass_V[members].sum()))


def _add(groups: Groups, place_V: Tensor, tokens: Tensor, mass: float) -> None:
    place_V[tokens] = len(groups.mass_G)
    groups.mass_G.append(mass)


def p_value(groups: Groups, answers: Iterable[Sequence[int]]) -> float:
    """Of Pearson's chi-square test that the answers fall into the groups as the masses say; 0 if one is impossible."""
    counts = Counter(groups.of(answer) for answer in answers)
    if counts[IMPOSSIBLE]:
        return 0.0
    cells = pooled(groups.mass_G, counts.total())
    observed = [sum(counts[group] for group in cell) for cell in cells]
    expected = [counts.total() * sum(groups.mass_G[group] for group in cell) for cell in cells]
    scale = sum(observed) / sum(expected)  # 1 up to rounding
    return float(chisquare(observed, [scale * e for e in expected]).pvalue) if len(cells) > 1 else 1.0


def pooled(mass_G: Sequence[float], samples: int) -> list[list[int]]:
    """The possible groups; those of which fewer than 5 samples are expected as one, with the next larger if need be."""
    cells: list[list[int]] = [[]]
    for group in sorted((g for g, mass in enumerate(mass_G) if mass > 0), key=lambda g: mass_G[g]):
        if samples * sum(mass_G[g] for g in cells[0]) < FEWEST:
            cells[0].append(group)
        else:
            cells.append([group])
    return cells


def samples_needed(groups: int, shift: float, power: float, level: float) -> int:
    """How many samples Pearson's test of so many groups needs at `level`, to find with probability `power` a
    distribution that is off by `shift` in total variation.

    Cohen's effect size w is then at least 2 * shift (Cauchy-Schwarz), and the statistic is noncentral chi-square with
    noncentrality samples * w^2 (Cohen 1988, chapter 7)."""
    critical = chi2.isf(level, groups - 1)
    noncentrality = brentq(lambda x: ncx2.sf(critical, groups - 1, x) - power, 1e-9, 1e6)
    return math.ceil(noncentrality / (2 * shift) ** 2)


def uniformity(positions: Sequence[float], bins: int = 20) -> float | None:
    """The p-value of Pearson's test that the numbers are uniform in [0, 1]; None for fewer than 10 of them."""
    bins = min(bins, len(positions) // FEWEST)
    if bins < 2:
        return None
    counts = Counter(min(int(position * bins), bins - 1) for position in positions)
    return float(chisquare([counts[bin_] for bin_ in range(bins)]).pvalue)
