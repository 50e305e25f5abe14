"""The Transformer against Transformers' own models: every family and kind of RoPE, native and PyTorch's operators."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from methods.engine.decoder import Decoder
from methods.engine.loader import find_checkpoint
from methods.engine.tree import TokenTree

SHAPE: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
LLAMA3: Any = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama-tied": LlamaConfig(**SHAPE | {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-linear": LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "llama-llama3": LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**SHAPE, head_dim=48, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32),
    "qwen3-odd": Qwen3Config(**SHAPE, head_dim=24),  # not for the native layers: PyTorch's run around native linears
}
PROMPT = [(37 * i) % 199 for i in range(50)]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=MODELS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A random model of Transformers, every weight and bias of it, and the folder that it was saved to."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(MODELS[request.param], attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # else 1 and 0, where mistakes do not show
                weight.add_(0.3 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder, model


def load(folder: Path, dtype: str = "float32") -> Decoder:
    return Decoder(find_checkpoint(str(folder)).transformer(dtype, [torch.device("cpu")]))


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((got - expected).abs().max() / expected.abs().max())


def test_logits_and_hidden_states_are_transformers(operators: str, reference: tuple[Path, Any]) -> None:
    folder, model = reference
    decoder = load(folder)
    assert (decoder.model.stack.operators == "native") == (
        operators == "native" and decoder.model.config.head_dim != 24
    )
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT]), output_hidden_states=True)
    scores = decoder.prefill(PROMPT[:30])
    assert difference(scores.logits_NV[0], expected.logits[0, 29]) < 1e-4
    scores = decoder.score(TokenTree.chain(PROMPT[30:]), taps=(0, 1))
    assert difference(scores.logits_NV, expected.logits[0, 30:]) < 1e-4
    assert scores.features_NF is not None
    for tap, features_ND in enumerate(scores.features_NF.chunk(2, 1)):
        assert difference(features_ND, expected.hidden_states[tap + 1][0, 30:]) < 1e-4


def test_greedy_continuations_are_transformers(operators: str, reference: tuple[Path, Any]) -> None:
    folder, model = reference
    prompt = torch.tensor([PROMPT[:20]])
    with torch.no_grad():
        expected = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, eos_token_id=None
        )
    decoder = load(folder)
    tokens = [int(decoder.prefill(PROMPT[:20]).logits_NV.argmax())]
    while len(tokens) < 64:
        tokens.append(int(decoder.score(TokenTree.chain(tokens[-1:])).logits_NV.argmax()))
        decoder.commit([0])
    assert tokens == expected[0, 20:].tolist()


def test_bf16_is_fp32_rounded(operators: str, reference: tuple[Path, Any]) -> None:
    folder, model = reference
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1]
        theirs = model.to(torch.bfloat16)(torch.tensor([PROMPT])).logits[0, -1]
    model.float()
    ours = load(folder, "bfloat16").prefill(PROMPT).logits_NV[0]
    assert difference(ours, expected) < 2 * difference(theirs, expected)
