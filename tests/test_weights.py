"""Weights of a folder: which files are read, what is wrong with one, and formats old and new."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods.engine.loader import find_checkpoint
from methods.engine.weights import Weights
from methods.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def single(tiny: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny / SINGLE)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model without its weights."""
    shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns(SINGLE))
    return tmp_path / "model"


def write_shards(folder: Path, weights: dict[str, torch.Tensor], form: str = "safetensors", index: bool = True) -> None:
    """Two of them, of every other tensor, as Transformers writes and names them."""
    stem = "model" if form == "safetensors" else "pytorch_model"
    file_of = {name: f"{stem}-0000{i % 2 + 1}-of-00002.{form}" for i, name in enumerate(sorted(weights))}
    for file in set(file_of.values()):
        shard = {name: weights[name] for name in weights if file_of[name] == file}
        save_file(shard, folder / file) if form == "safetensors" else torch.save(shard, folder / file)
    if index:
        (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    table = json.loads((folder / INDEX).read_text())
    edit(table["weight_map"])
    (folder / INDEX).write_text(json.dumps(table))


def assert_same(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    weights = find_checkpoint(str(folder)).weights
    assert sorted(weights) == sorted(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_read_as_the_single_file(
    folder: Path, single: dict[str, torch.Tensor], form: str, index: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(folder, single, form, index)
    assert_same(folder, single)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("old", [True, False])
def test_pickles_of_any_age_read_as_the_single_file(folder: Path, single: dict[str, torch.Tensor], old: bool) -> None:
    torch.save(single, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    assert zipfile.is_zipfile(folder / "pytorch_model.bin") != old
    assert_same(folder, single)


@pytest.mark.parametrize(
    "left_over", ["zzz.safetensors", "consolidated.safetensors", "model-00003-of-00003.safetensors"]
)
@pytest.mark.parametrize("sharded", [True, False])
def test_files_left_over_are_not_read_and_told_once(
    folder: Path,
    single: dict[str, torch.Tensor],
    sharded: bool,
    left_over: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if sharded:
        write_shards(folder, single)
    else:
        save_file(single, folder / SINGLE)
    save_file({name: torch.zeros_like(w) for name, w in single.items()} | {"more": torch.ones(1)}, folder / left_over)
    for _ in range(2):
        assert_same(folder, single)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.rstrip().endswith(f"not {left_over}") and told.startswith("note: ")


def test_the_index_goes_before_a_single_file(folder: Path, single: dict[str, torch.Tensor]) -> None:
    write_shards(folder, single)
    save_file({name: torch.zeros_like(w) for name, w in single.items()}, folder / SINGLE)
    assert_same(folder, single)


def test_safetensors_go_before_pickles_and_their_index(folder: Path, single: dict[str, torch.Tensor]) -> None:
    save_file(single, folder / SINGLE)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    torch.save({}, folder / "pytorch_model.bin")
    assert_same(folder, single)


def test_files_that_contradict_each_other_are_refused(folder: Path, single: dict[str, torch.Tensor]) -> None:
    save_file(single, folder / "a.safetensors")
    save_file(single, folder / "b.safetensors")
    with pytest.raises(UserError, match=r"once, got .* in a\.safetensors and b\.safetensors; remove"):
        Weights(folder)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda index: index.update({"model.norm.weight": "gone.safetensors"}), "names the file 'gone.safetensors'"),
        (lambda index: index.update({"model.norm.weight": "../x.safetensors"}), "names the file '../x.safetensors'"),
        (lambda index: index.update({"extra": index["model.norm.weight"]}), "expects extra in model-0000"),
        (
            lambda index: index.update({"model.norm.weight": 7}),
            "expected weight_map.model.norm.* string, got 7",
        ),
        (lambda index: index.clear(), "expected weight_map in .* at least 1"),
        (lambda index: index.pop("model.norm.weight"), "misses weights: model.norm.weight"),
    ],
)
def test_an_index_that_is_wrong_says_so(
    folder: Path, single: dict[str, torch.Tensor], edit: Callable[[dict[str, str]], object], message: str
) -> None:
    write_shards(folder, single)
    edit_index(folder, edit)
    with pytest.raises(UserError, match=message):
        find_checkpoint(str(folder)).transformer("float32", [torch.device("cpu")])


def write_pickle_in_a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"w": print}))
        file.writestr("archive/version", "3")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"w": print}, path),
        lambda path: torch.save({"w": 1}, path),
        lambda path: torch.save([torch.ones(1)], path),
        lambda path: torch.save({"model": {"w": torch.ones(1)}}, path),
        lambda path: torch.save({1: torch.ones(1)}, path),
        lambda path: path.write_bytes(pickle.dumps({"w": print})),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\3\4"),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
        write_pickle_in_a_zip,
    ],
)
def test_a_pickle_of_anything_else_is_refused_in_our_own_words(folder: Path, write: Callable[[Path], object]) -> None:
    write(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"expected .*pytorch_model\.bin to ") as caught:
        Weights(folder)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 4, 100, -100])
def test_a_torn_file_says_so(folder: Path, tiny: Path, size: int) -> None:
    (folder / SINGLE).write_bytes((tiny / SINGLE).read_bytes()[:size])
    with pytest.raises(UserError, match=r"cannot read weights from .*fetch it again"):
        Weights(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_real_numbers_are_refused(
    folder: Path, single: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(single | {name: single[name].to(dtype)}, folder / SINGLE)
    with pytest.raises(UserError, match=f"expected {name} in float32, bfloat16 or float16, got"):
        find_checkpoint(str(folder)).transformer("float32", [torch.device("cpu")])


def test_sparse_weights_are_refused(folder: Path, single: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    torch.save(single | {name: single[name].to_sparse()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="got a sparse tensor"):
        find_checkpoint(str(folder)).transformer("float32", [torch.device("cpu")])
