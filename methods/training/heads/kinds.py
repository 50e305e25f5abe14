"""The head that a recipe is of."""

from torch import Tensor

from methods.training.heads.base import Head
from methods.training.heads.eagle import EagleHead
from methods.training.heads.eagle3 import Eagle3Head
from methods.training.heads.hydra import HydraHead
from methods.training.heads.medusa import MedusaHead
from methods.training.heads.target import HeadTarget
from methods.training.recipe import Eagle3Recipe, EagleRecipe, HeadRecipe, HydraRecipe, MedusaRecipe


def new_head(recipe: HeadRecipe, target: HeadTarget, tokens_N: Tensor) -> Head:
    """Untrained, for the tokens `tokens_N`."""
    match recipe:
        case MedusaRecipe():
            return MedusaHead(target, tokens_N, recipe)
        case HydraRecipe():
            return HydraHead(target, tokens_N, recipe)
        case EagleRecipe():
            return EagleHead(target, tokens_N, recipe)
        case Eagle3Recipe():
            return Eagle3Head(target, tokens_N, recipe)
    raise TypeError(f"no head has a {type(recipe).__name__}")
