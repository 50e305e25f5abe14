"""The exact probability of every answer of a method: all random choices, those of both ranks, one run after the other.

The engine draws its random numbers in two functions only, `sampling.draw` and `sampling.uniform`. Here a run takes the
choices that it is told to and multiplies their probabilities; the next run takes the next choices, until there are no
more. No Monte Carlo, so no tolerance to hide in.

Legend: V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evaluation.proof.patching import substituted
from methods.engine import sampling

Tokens = tuple[int, ...]


@dataclass
class Choices:
    """One run's random choices: those of `path`, then the first possible ones. `probability`: of the run so far."""

    path: list[int]
    taken: list[tuple[int, list[int]]] = field(default_factory=list)  # what was chosen, and what could have been
    probability: float = 1.0

    def choose(self, weights: Sequence[float]) -> int:
        """The index of one of the (unnormalised) weights that are not 0."""
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        chosen = self.path[len(self.taken)] if len(self.taken) < len(self.path) else possible[0]
        if chosen not in possible:
            raise AssertionError(f"a run cannot be repeated: choice {len(self.taken)} was {chosen}, now {possible}")
        self.taken.append((chosen, possible))
        self.probability *= weights[chosen] / sum(weights)
        return chosen

    def next_path(self) -> list[int] | None:
        """The choices of the run that comes next, None behind the last."""
        for depth in reversed(range(len(self.taken))):
            chosen, possible = self.taken[depth]
            later = possible[possible.index(chosen) + 1 :]
            if later:
                return [*(choice for choice, _ in self.taken[:depth]), later[0]]
        return None


@dataclass(frozen=True)
class _Coin:
    """Stands for a uniform number in [0, 1): below a rate it is or is not, and both are gone through."""

    choices: Choices

    def __lt__(self, rate: float) -> bool:
        return self.choices.choose([1 - rate, rate]) == 1


def enumerated(answer: Callable[[], Sequence[int]]) -> tuple[Counter[Tokens], int]:
    """The probability of each answer over all random choices, and how many runs that took.

    `answer` runs the method once, in this process; with the same choices it must do the same."""
    found: Counter[Tokens] = Counter()
    run, runs = Choices([]), 0
    path: list[int] | None = []

    def draw(p_V: Tensor, generator: torch.Generator) -> int:
        return run.choose(p_V.tolist())

    def uniform(generator: torch.Generator) -> _Coin:
        return _Coin(run)

    with substituted(sampling.draw, draw), substituted(sampling.uniform, uniform):
        while path is not None:
            run, runs = Choices(path), runs + 1
            found[tuple(answer())] += run.probability  # type: ignore[assignment]
            path = run.next_path()
    return found, runs
