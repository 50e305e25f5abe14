"""A pass of PyTorch's operators, recorded once and replayed at another length, as a CUDA graph is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from methods.engine.backends.pytorch import Cache, View
from methods.engine.loader import find_checkpoint
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree

CPU = torch.device("cpu")
TREE = TokenTree([5, 6, 7, 8, 9], [-1, 0, 0, 1, 3])


class Recorder(TorchDispatchMode):
    """Keeps every operation. `replay` runs them again: what was an operation's result is now its new result, all other
    tensors are read as they are by then, and numbers stay what they were."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self, output: Tensor) -> Tensor:
        """What has become of `output`."""
        made: dict[int, Tensor] = {}
        for func, args, kwargs, result in self.calls:
            args, kwargs = tree_map_only(Tensor, lambda tensor: made.get(id(tensor), tensor), (args, kwargs))
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                made[id(old)] = new
        return made[id(output)]


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


class Pass:
    """A pass over TREE behind so many tokens, whose inputs keep their places: `behind` moves it to another length."""

    def __init__(self, model: Transformer, cache: Cache, length: int) -> None:
        self.model, self.cache = model, cache
        self.x_ND = model.embed(TREE.tokens_N)
        self.rotation = model.rotation(length + TREE.depth_N)
        self.view = cache.view(length, TREE)

    def behind(self, length: int) -> None:
        other = Pass(self.model, self.cache, length)
        for place, value in zip(self.rotation, other.rotation, strict=True):
            place.copy_(value)
        self.view.rows_N[CPU].copy_(other.view.rows_N[CPU])
        self.view.mask_ML[CPU].copy_(other.view.mask_ML[CPU])

    def __call__(self) -> Tensor:
        return self.model.run(self.x_ND, self.rotation, self.view, 0, len(self.model.layers))


@pytest.mark.parametrize("operators", ["torch"], indirect=True)
@pytest.mark.usefixtures("operators", "one_thread")
@torch.inference_mode()
def test_a_recorded_pass_replays_at_another_length(tiny: Path) -> None:
    model = find_checkpoint(str(tiny)).transformer("float32", [CPU])
    cache = model.new_cache(100)
    assert isinstance(cache, Cache)
    tokens = torch.arange(1, 41)
    model(tokens, torch.arange(40), cache.prompt())
    recorded = Pass(model, cache, 20)
    assert isinstance(recorded.view, View)
    with Recorder() as recorder:
        output = recorded()
    model(tokens, torch.arange(40), cache.prompt())  # what the pass wrote is overwritten
    recorded.behind(40)
    replayed = recorder.replay(output)
    assert torch.equal(replayed, Pass(model, cache, 40)())
    assert not torch.equal(replayed, output)
