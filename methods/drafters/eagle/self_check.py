"""Whether an EAGLE head is read as it was trained: what it keeps of the target's own answers under other readings.

Published files are known to be wrong about the layers that a head's taps count, the base of its RoPE and which residual
it has; all of that only costs acceptance, silently.

Legend: T tokens of an answer with its prompt, F feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from methods.drafters.eagle.files import EAGLE3, Reading, load
from methods.drafters.eagle.head import EagleHead
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.target import Target

DEPTHS = 4
PLACES = 24  # of an answer at which drafts begin
CLEARLY = 0.02  # accept length by which another reading must be better to be told


@dataclass(frozen=True)
class Found:
    """A reading, and the acceptance of its drafts at depths 1, 2, ..., each given that the ones before were kept."""

    reading: Reading
    acceptances: list[float]

    @property
    def accept_length(self) -> float:
        """Of a chain as long: 1 and the chances that so many are kept."""
        length, kept = 1.0, 1.0
        for acceptance in self.acceptances:
            kept *= acceptance
            length += kept
        return length


def readings(kind: str) -> list[Reading]:
    """As the head's files say, then all others that are known to be mistaken for it."""
    shifts, residuals = ((0, -1, 1), (None, False, True)) if kind == EAGLE3 else ((0,), (None,))
    ropes: tuple[int | str, ...] = ("config", 10000, "target")
    return [Reading(rope, shift, residual) for shift, rope, residual in product(shifts, ropes, residuals)]


def compare(models: Models, kind: str, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Found]:
    """What the pair's head keeps of the target's greedy answers to these prompts, by each reading that fits the
    target; the first is that of its files."""
    texts = [(len(prompt), _answered(models, prompt, new_tokens)) for prompt in prompts]
    found: list[Found] = []
    for reading in readings(kind):
        try:
            head, taps = load(models, kind, reading)
        except UserError:
            if not found:
                raise
            continue  # its taps would lie beside the target's layers
        found.append(Found(reading, _acceptances(models, head, taps, texts)))
    return found


def _answered(models: Models, prompt_T: Sequence[int], new_tokens: int) -> list[int]:
    """The prompt and the target's greedy answer, as far as there is room."""
    target, tokens = Target(models.target), list(prompt_T)
    target.start(prompt_T, Sampling())
    while target.room and len(tokens) < len(prompt_T) + new_tokens:
        tokens.append(target.pending)
        target.judge(TokenTree.chain([target.pending]))
    return tokens


def _acceptances(
    models: Models, head: EagleHead, taps: Sequence[int], texts: Sequence[tuple[int, list[int]]]
) -> list[float]:
    tried, kept = [0] * DEPTHS, [0] * DEPTHS
    for start, tokens_T in texts:
        features_TF = models.target.prefill(tokens_T[:-1], taps).features_NF
        models.target.truncate(0)
        assert features_TF is not None, "taps were asked for"
        head.forget()
        states_TD = head.read(features_TF, tokens_T[1:])
        last = len(tokens_T) - 2 - DEPTHS  # of the pairs behind which all depths are known
        places = range(start - 1, last + 1, max((last - start) // PLACES, 1))
        for place in reversed(places):  # rows behind the last one are dropped, those before stay
            head.head.truncate(place + 1)
            state_1D = states_TD[place : place + 1]
            for depth, token in enumerate(tokens_T[place + 2 : place + 2 + DEPTHS]):
                tried[depth] += 1
                best = int(head.parts.lm_head.tokens_R[int(head.logits(state_1D).argmax())])
                if best != token:
                    break
                kept[depth] += 1
                state_1D = head.go_on(state_1D, [token])
    return [right / max(count, 1) for right, count in zip(kept, tried, strict=True)]


def warning(found: Sequence[Found]) -> str | None:
    """A sentence where another reading than the files' is clearly better; None where theirs is as good as any."""
    own, best = found[0], max(found, key=lambda one: one.accept_length)
    if best.accept_length <= own.accept_length + CLEARLY:
        return None
    return (
        f"read as its files say, this head keeps {own.accept_length:.2f} tokens per pass in a chain of {DEPTHS}; with "
        f"{told(best.reading)} it keeps {best.accept_length:.2f}"
    )


def told(reading: Reading) -> str:
    """A reading in words."""
    words = [f"taps {reading.shift:+d}"] if reading.shift else []
    words += [f"rope {reading.rope}"] if reading.rope != "config" else []
    words += [f"norm_before_residual {reading.norm_before_residual}".lower()] * (
        reading.norm_before_residual is not None
    )
    return ", ".join(words) or "its files' settings"
