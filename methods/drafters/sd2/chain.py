"""SD2 as a chain: the exit is chosen anew for every token.

Legend: T prompt tokens, F feature width.
"""

from collections.abc import Sequence

from torch import Tensor

from methods.drafters.draft_model import draft_model
from methods.drafters.language_model import ModelDrafter
from methods.drafters.sd2.exits import StagedDecoder
from methods.engine.sampling import Sampling
from methods.engine.trained_draft import exits_of, is_trained_draft
from methods.errors import UserError
from methods.models import Models


class SortedDrafter(ModelDrafter):
    """A language model that is left at one of its exits."""

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        super().begin(prompt_T, Sampling(), features_TF)


def build(models: Models, threshold: float, exit: int) -> SortedDrafter:
    """The pair's sorted draft."""
    return SortedDrafter(staged_decoder(models, threshold, exit), models.vocabulary)


def exits_here(models: Models) -> tuple[int, ...]:
    """Layers after which the pair's sorted draft can be left, ascending. Raises UserError where it has no exits."""
    if not is_trained_draft(models.draft_checkpoint):
        raise UserError(f"expected a draft with exits, as scripts/train.py makes them; {models.draft_source} has none")
    return exits_of(models.draft_checkpoint)


def staged_decoder(models: Models, threshold: float, exit: int) -> StagedDecoder:
    """The pair's sorted draft, left at one of its exits, or (0) at the first that is confident."""
    if not 0 <= threshold <= 1:
        raise UserError(f"expected a threshold between 0 and 1, got {threshold}")
    exits = exits_here(models)
    if exit not in (0, *exits):
        raise UserError(f"expected exit to be 0 (adaptive) or one of {', '.join(map(str, exits))}, got {exit}")
    return StagedDecoder(draft_model(models), [exit] if exit else exits, threshold, models.max_length)
