"""Whatever is wrong with a model's files: it loads, or is refused in one sentence, and its folder stays as it was."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from methods.engine.loader import find_checkpoint
from methods.errors import UserError
from methods.models import Models
from tests.test_gguf import write_gguf

CPU = [torch.device("cpu")]
FEW = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 7, 10**6, 10**12, 10**40, 0.5, 4.0, 1e-308, float("nan"), float("inf")])
VALUES = st.one_of(
    NUMBERS,
    st.sampled_from([None, True, False, "", "x", "32", "a\nb", "llama", "linear", "llama3", [], {}, [1], {"a": None}]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=3),
)
KEYS = [
    *("model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "sliding_window"),
    *("use_sliding_window", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "attention_bias"),
    *("mlp_bias", "hidden_act", "eos_token_id", "dtype", "draft", "quantization_config", "auto_map"),
]
ROPE = ["rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
TOKENIZER = ["tokenizer_class", "eos_token", "bos_token", "chat_template", "model_max_length", "auto_map", "backend"]


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in every format: single, sharded, pickled, pickled as before 2020, gguf."""
    root = tmp_path_factory.mktemp("formats")
    weights = load_file(tiny / "model.safetensors")
    for name in ("sharded", "pickled", "old"):
        shutil.copytree(tiny, root / name, ignore=shutil.ignore_patterns("model.safetensors"))
    shutil.copytree(tiny, root / "single")
    shutil.copy(tiny / "model.safetensors", root / "sharded" / "shard.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "shard.safetensors")}
    (root / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(weights, root / "pickled" / "pytorch_model.bin")
    torch.save(weights, root / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (root / "gguf").mkdir()
    write_gguf(root / "gguf" / "model.gguf")
    return root


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """A file of other content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_loads_or_is_refused(source: Path) -> None:
    folder = source if source.is_dir() else source.parent
    before = content_of(folder)
    try:
        checkpoint = find_checkpoint(str(source))
        _ = checkpoint.config, checkpoint.eos_token_ids, checkpoint.tokenizer
        _ = Models(str(source), None, "float32", CPU, max_length=40).target
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    assert content_of(folder) == before


@pytest.mark.parametrize("form", ["single", "sharded", "pickled", "old"])
def test_unbroken_they_load(folders: Path, form: str) -> None:
    assert Models(str(folders / form), None, "float32", CPU, max_length=40).target.row_invariant is not None


def edited(path: Path, key: str, value: Any, table: str | None = None) -> bytes:
    whole = json.loads(path.read_text())
    (whole if table is None else whole.setdefault(table, {}))[key] = value
    return json.dumps(whole).encode()


@FEW
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_a_key_of_the_config(folders: Path, key: str, value: Any) -> None:
    path = folders / "single" / "config.json"
    with replaced(path, edited(path, key, value)):
        assert_loads_or_is_refused(path.parent)


@FEW
@given(kind=st.sampled_from(["linear", "llama3"]), key=st.sampled_from(ROPE), value=VALUES)
def test_a_key_of_the_rope_scaling(folders: Path, kind: str, key: str, value: Any) -> None:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    path = folders / "single" / "config.json"
    whole = edited(path, "rope_parameters", {"rope_type": kind, "rope_theta": 1e4, **numbers, key: value})
    with replaced(path, whole):
        assert_loads_or_is_refused(path.parent)


@FEW
@given(key=st.sampled_from(TOKENIZER), value=VALUES)
def test_a_key_of_the_tokenizer(folders: Path, key: str, value: Any) -> None:
    path = folders / "single" / "tokenizer_config.json"
    with replaced(path, edited(path, key, value)):
        assert_loads_or_is_refused(path.parent)


@FEW
@given(
    file=st.sampled_from(
        [
            *(
                "single/model.safetensors",
                "single/config.json",
                "single/tokenizer.json",
                "single/generation_config.json",
            ),
            *("sharded/model.safetensors.index.json", "pickled/pytorch_model.bin", "old/pytorch_model.bin"),
        ]
    ),
    place=st.floats(0, 1),
    flip=st.integers(0, 255),
)
def test_bytes_that_are_cut_off_or_changed(folders: Path, file: str, place: float, flip: int) -> None:
    """`flip` 0: cut off at that place; else its bits are changed there. Half of them near the beginning."""
    path = folders / file
    content = path.read_bytes()
    at = int(place * 2 * min(600, len(content) - 1)) if place < 0.5 else int(place * (len(content) - 1))
    at = min(at, len(content) - 1)
    with replaced(path, content[:at] if not flip else content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]):
        assert_loads_or_is_refused(path.parent)


@FEW
@given(place=st.floats(0, 1), cut=st.booleans())
def test_bytes_of_a_gguf(folders: Path, tmp_path: Path, place: float, cut: bool) -> None:
    path = folders / "gguf" / "model.gguf"
    content = path.read_bytes()
    at = int(place * min(4000, len(content) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEARL_BENCH_CACHE", str(tmp_path))
        with replaced(path, content[:at] if cut else content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]):
            assert_loads_or_is_refused(path)
    assert not list(tmp_path.rglob(".partial-*"))
