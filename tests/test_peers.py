"""Another library's loops, at the edges of what can be asked of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from methods import get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.engine.sampling import Sampling
from methods.models import Models

TOKENS = 5  # of an answer
PROMPT = [3, 1, 4, 1, 5, 9, 2]


@pytest.mark.parametrize("padded", [True, False])
def test_a_window_beyond_the_answer_is_as_long_as_the_answer(
    padded: bool, tiny: Path, tiny_draft: Path, one_thread: None
) -> None:
    """Where the draft's vocabulary has another size, Transformers itself knows no bound."""
    models = Models(str(tiny), str(tiny_draft) if padded else "first-1", "float32", [torch.device("cpu")])
    method: Any = build_method(get_method("hf-assisted"), models, {"gamma": 10**9})
    drafted = []

    def count(*_: object) -> None:
        drafted.append(1)
        assert len(drafted) <= 4 * TOKENS**2, "drafts what no answer can use"

    method.arguments["assistant_model"].register_forward_pre_hook(count)
    answer = generate(method, PROMPT, Sampling(), Limits(frozenset(), TOKENS))
    assert len(answer.token_ids) == TOKENS and drafted
    drafted.clear()
    method.gamma = 3
    generate(method, PROMPT, Sampling(), Limits(frozenset(), 2))
    generate(method, PROMPT, Sampling(), Limits(frozenset(), 20))
    assert method.draft.num_assistant_tokens == 3, "a window that fits is taken as it is, also behind a shorter answer"
