"""GGUF files: converted once, whole, by whoever comes first; broken ones, and what killed conversions leave behind."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf as format
import numpy as np
import pytest
import torch

from methods.engine.gguf import converted
from methods.engine.loader import find_checkpoint
from methods.errors import UserError
from methods.paths import ROOT

VOCABULARY, WIDTH, MLP = 96, 32, 64
LAYER = {
    "attn_norm": (WIDTH,),
    "ffn_norm": (WIDTH,),
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (16, WIDTH),
    "attn_v": (16, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (MLP, WIDTH),
    "ffn_up": (MLP, WIDTH),
    "ffn_down": (WIDTH, MLP),
}


def write_gguf(path: Path, layers: int = 1, without: str = "", arch: str = "llama") -> Path:
    """A random Llama of one layer that says it has `layers`, with a tokenizer of characters."""
    random, writer = np.random.default_rng(0), format.GGUFWriter(str(path), arch)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<eos>", *(chr(33 + i) for i in range(VOCABULARY - 2)), "ab"])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH)}
    shapes |= {"output_norm": (WIDTH,)} | {f"blk.0.{name}": shape for name, shape in LAYER.items()}
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder for converted models, which is not there yet."""
    monkeypatch.setenv("PEARL_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_a_gguf_becomes_a_folder_of_its_owner_alone(models: Path, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(write_gguf(tmp_path / "tiny.gguf")))
    checkpoint.transformer("float32", [torch.device("cpu")])
    assert checkpoint.tokenizer("abc")["input_ids"] == [95, 67]
    assert checkpoint.folder.parent == models
    assert checkpoint.folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in models.iterdir()} == {checkpoint.folder.name, f"{checkpoint.folder.name}.lock"}


@pytest.mark.parametrize("size", [0, 3, 4, 8, 100, 2000, -100])
def test_a_torn_file_is_one_sentence(models: Path, tmp_path: Path, size: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="GGUF") as caught:
        converted(path)
    assert "\n" not in str(caught.value)
    assert not list(models.glob("[!t]*")) and not [path for path in models.glob("*") if path.is_dir()]


def test_what_is_no_gguf_is_one_sentence(models: Path, tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"expected .*page\.gguf to begin with GGUF"):
        find_checkpoint(str(tmp_path / "page.gguf"))


def test_weights_that_are_missing_are_not_drawn_at_random(models: Path, tmp_path: Path) -> None:
    for path in (write_gguf(tmp_path / "a.gguf", layers=2), write_gguf(tmp_path / "b.gguf", without="blk.0.ffn_up")):
        with pytest.raises(UserError, match=r"misses weights: model\.layers\.[01]\."):
            converted(path)


def test_a_model_that_could_not_be_run_is_not_written(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gemma|cannot read the GGUF file"):
        converted(write_gguf(tmp_path / "tiny.gguf", arch="gemma"))
    assert not [path for path in models.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEARL_BENCH_CACHE", "/proc")
    with pytest.raises(UserError, match=r"cannot write the converted model .* set PEARL_BENCH_CACHE"):
        converted(write_gguf(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("how", ["writable", "foreign"])
def test_a_converted_model_that_others_may_have_written_is_refused(models: Path, tmp_path: Path, how: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    folder, _ = converted(path)
    if how == "writable":
        folder.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    else:
        pytest.skip("only root can give folders away")
    with pytest.raises(UserError, match=r"not to be trusted: .*(by others|another user)"):
        converted(path)


def test_what_killed_conversions_left_is_removed_and_what_is_in_use_is_kept(models: Path, tmp_path: Path) -> None:
    models.mkdir(parents=True)
    for name in ("dead", "alive", "ancient"):
        (models / f".partial-{name}").mkdir()
        (models / f".partial-{name}" / "model.safetensors").write_bytes(b"half")
    (models / "dead.lock").touch()
    with (models / "alive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        converted(write_gguf(tmp_path / "tiny.gguf"))
        assert [path.name for path in models.glob(".partial-*")] == [".partial-alive"]
    converted(write_gguf(tmp_path / "other.gguf"))
    assert not list(models.glob(".partial-*"))


def test_a_killed_conversion_is_begun_anew(models: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    code = f"""
import time
from pathlib import Path
from methods.engine import gguf
def stall(source, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    time.sleep(60)
gguf._convert = stall
gguf.converted(Path({str(path)!r}))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(models.glob(".partial-*/model.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.05)
        converted(write_gguf(tmp_path / "other.gguf", without=""))  # the same content under another name
        assert list(models.glob(".partial-*/model.safetensors")), "a live conversion keeps its folder"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    folder, _ = converted(path)
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert not list(models.glob(".partial-*"))
