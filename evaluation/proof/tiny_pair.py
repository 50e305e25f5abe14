"""A random model of three tokens and a draft for it, to enumerate all answers of a method: see enumeration.py.

They are written as folders and loaded as any other pair, so that every method is built as in a run.
"""

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evaluation.proof.enumeration import enumerated
from evaluation.proof.goodness import all_answers, next_token
from methods import MethodSpec
from methods.base import Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.engine.config import ModelConfig
from methods.engine.int8 import EMBEDDING
from methods.engine.sampling import Sampling
from methods.engine.trained_draft import FORMAT
from methods.engine.weights import expected_shapes
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.pearl.messages import Ready
from methods.pearl.target import Pearl

PROMPT, TOKENS = (0, 1, 2, 0, 1), 3  # the prompt repeats itself, so that it can be looked up
SMALL = {"gamma": 2, "branches": 2, "depth": 2, "nodes": 4}  # options that the number of runs depends on
CONFIG = {
    "model_type": "llama",
    "vocab_size": 3,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
DRAFT = {"format": FORMAT, "target": "tiny", "exits": [1, 2]}
SPREAD = 0.6  # of the weights: large enough for distributions that are neither flat nor certain


@dataclass(frozen=True)
class Enumeration:
    """`answers`: how many can occur; `runs`: how many went through all random choices; `difference`: the largest one
    between the probability of an answer under the method and under the target."""

    answers: int
    runs: int
    difference: float


def enumerate_method(spec: MethodSpec, chosen: Mapping[str, Any], sampling: Sampling) -> Enumeration:
    """All answers of the method on the tiny pair; of the options `chosen` the words hold, sizes are as in SMALL."""
    words = {name: word for name, word in chosen.items() if isinstance(word, str) and word != "auto"}
    options = {name: size for name, size in SMALL.items() if name in spec.options} | words
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        models = tiny_models(Path(folder))
        expected = all_answers(next_token(models.target, PROMPT, sampling), TOKENS)
        ready: dict[str, Ready] = {}
        if spec.loop == "pearl":
            drafters = {spec.name: build_chain_drafter(spec, models, options)}
            models.link, ready = stack.enter_context(local_draft_rank(drafters))

        def answer() -> list[int]:
            method = build_method(spec, models, options)  # anew: it may learn from its answers
            if isinstance(method, Pearl):
                method.meet(ready[spec.name])
            return generate(method, PROMPT, sampling, Limits(frozenset(), TOKENS)).token_ids

        found, runs = enumerated(answer)
    difference = max(abs(found[a] - expected.get(a, 0.0)) for a in found | expected)
    return Enumeration(len(expected), runs, difference)


def tiny_models(folder: Path) -> Models:
    """The pair, written below `folder`; the draft is one with exits, so that it serves every method."""
    target = _write(folder / "target", 0, CONFIG)
    draft = _write(folder / "draft", 1, CONFIG | {"draft": DRAFT})
    return Models(str(target), str(draft), "float32", [torch.device("cpu")])


def _write(folder: Path, seed: int, config: dict[str, Any]) -> Path:
    folder.mkdir()
    random = torch.Generator().manual_seed(seed)
    shapes = expected_shapes(ModelConfig.from_dict(config))
    weights = {
        name: torch.ones(shape) if len(shape) == 1 else SPREAD * torch.randn(shape, generator=random)
        for name, shape in shapes.items()
        if not (name == EMBEDDING and "draft" in config)  # a draft has the target's
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
