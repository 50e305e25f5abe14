"""llama.cpp as rows, where llama-cpp-python is installed: the same weights bit for bit, the same tokens in fp32 by both
loops, and our stop rules. The file of the weights is tested without it."""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from methods import get_method
from methods.base import Generation, Limits, generate
from methods.build import build_method
from methods.engine.loader import find_checkpoint
from methods.engine.sampling import Sampling
from methods.errors import UserError
from methods.models import Models
from methods.peers import gguf_file
from methods.peers.gguf_file import gguf_of, write
from tests.tiny import VOCABULARY, save_tokenizer

GREEDY = Sampling()
PROMPT = [40, 41, 42, 43, 40, 41, 42, 43, 40, 41, 42]
LOOPS = ("llama-cpp", "llama-cpp@loop=binding", "llama-cpp-lookup", "llama-cpp-lookup@loop=binding")
ROPE = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24}  # fmt: skip
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama3": (LlamaConfig, {"rope_parameters": ROPE}),
    "linear": (LlamaConfig, {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True, "head_dim": 8}),
    "qwen3": (Qwen3Config, {}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEARL_BENCH_CACHE", str(tmp_path / "cache"))


def save(folder: Path, kind: str = "llama") -> Models:
    """A random model of a family, of which every tensor is random, norms and biases too."""
    torch.manual_seed(3)
    shape, changes = KINDS[kind]
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 0}
    sizes |= {"max_position_embeddings": 96, "tie_word_embeddings": False, "bos_token_id": None} | changes
    model = AutoModelForCausalLM.from_config(shape(**sizes))
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, 1.0 if tensor.dim() == 1 and tensor.min() == 1 else 0.0, 0.5)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return Models(str(folder), None, "float32", [torch.device("cpu")])


def answer(
    models: Models, name: str, limits: Limits, prompt: list[int] = PROMPT, sampling: Sampling = GREEDY
) -> Generation:
    return generate(build_method(get_method(name), models, {}), prompt, sampling, limits)


def test_the_file_holds_the_same_bits(tmp_path: Path) -> None:
    """But for the order of the rows that are rotated in pairs; vectors are the same numbers in fp32."""
    checkpoint = find_checkpoint(str(save(tmp_path / "model").target_source))
    write(tmp_path / "model.gguf", checkpoint, "bfloat16")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    names = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    names |= {"model.layers.1.mlp.up_proj": "blk.1.ffn_up", "model.layers.0.self_attn.v_proj": "blk.0.attn_v"}
    for ours, theirs in names.items():
        rounded = checkpoint.weights[f"{ours}.weight"].to(torch.bfloat16)
        tensor = found[f"{theirs}.weight"]
        if rounded.dim() == 1:
            assert tensor.data.dtype == np.float32 and np.array_equal(tensor.data, rounded.float().numpy())
        else:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.BF16
            assert tensor.data.tobytes() == rounded.view(torch.uint8).numpy().tobytes()
    key = checkpoint.weights["model.layers.0.self_attn.k_proj.weight"].to(torch.bfloat16).view(torch.int16).numpy()
    stored = np.frombuffer(found["blk.0.attn_k.weight"].data.tobytes(), np.int16).reshape(key.shape)
    assert not np.array_equal(stored, key) and sorted(map(bytes, stored)) == sorted(map(bytes, key))
    assert np.array_equal(stored[:4], key[[0, 8, 1, 9]])


def test_the_file_is_written_once_for_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(save(tmp_path / "model").target_source)
    path = gguf_of(find_checkpoint(str(folder)), "float32")
    before = path.stat().st_mtime_ns
    assert gguf_of(find_checkpoint(str(folder)), "float32") == path and path.stat().st_mtime_ns == before
    save(folder, "linear")
    assert gguf_of(find_checkpoint(str(folder)), "float32") != path
    path.chmod(0o666)
    monkeypatch.setattr(gguf_file, "_digest", lambda _: path.stem.rpartition("-")[2])
    with pytest.raises(UserError, match=r"not to be trusted: .* can be written by others"):
        gguf_of(find_checkpoint(str(folder)), "float32")


def test_without_the_package_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for name in LOOPS:
        with pytest.raises(UserError, match="expected llama-cpp-python for this method, found none: pip install"):
            build_method(get_method(name), save(tmp_path / "model"), {})


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_the_baseline_says_of_every_family(kind: str, tmp_path: Path, one_thread: None) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    models, limits = save(tmp_path / "model", kind), Limits(frozenset(), 40)
    expected = answer(models, "autoregressive", limits).token_ids
    assert len(set(expected)) > 3 and answer(models, "llama-cpp", limits).token_ids == expected


@pytest.mark.parametrize("name", LOOPS)
def test_the_stop_rules_are_ours(name: str, tmp_path: Path, one_thread: None) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    models = save(tmp_path / "model")
    free = answer(models, "autoregressive", Limits(frozenset(), 60)).token_ids
    method = build_method(get_method(name), models, {})
    for limits in (Limits(frozenset(), 1), Limits(frozenset({free[7]}), 60), Limits(frozenset(), 999)):
        expected = answer(models, "autoregressive", limits)
        got = generate(method, PROMPT, GREEDY, limits)
        assert (got.token_ids, got.finish) == (expected.token_ids, expected.finish)
        assert 0 < got.prefill_time <= got.wall_time
        assert sum(got.accept_lengths) == (0 if "binding" in name else len(expected.token_ids))
    assert generate(method, [1] * 97, GREEDY, limits).finish == "context"
    assert len(generate(method, [1] * 96, GREEDY, limits).token_ids) == 1


def test_lookup_accepts_what_the_model_says_and_nothing_else(tmp_path: Path, one_thread: None) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    models, limits = save(tmp_path / "model"), Limits(frozenset(), 60)
    got = answer(models, "llama-cpp-lookup", limits)
    assert got.token_ids == answer(models, "llama-cpp", limits).token_ids
    assert 0 < sum(got.accepted) < sum(got.drafted) and len(got.accept_lengths) < 60
    assert [accepted + 1 for accepted in got.accepted[1:-1]] == got.accept_lengths[1:-1]
    drawn = Sampling(0.9, 8, 0.95, 5)
    assert answer(models, "llama-cpp", limits, sampling=drawn).token_ids != got.token_ids
