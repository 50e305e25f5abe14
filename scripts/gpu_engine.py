"""What first_gpu_day.py measures of the engine alone, on models of random weights that are made on the device.

Legend: O outputs, I inputs, N rows of a pass, D width.
"""

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from statistics import median
from typing import Any

import torch
from torch import Tensor

from evaluation.launch.provenance import read_bandwidth
from methods.engine.backends import linear
from methods.engine.backends.base import LinearLayer
from methods.engine.backends.pytorch import CUDA_ROWS, TorchLinear
from methods.engine.config import ModelConfig
from methods.engine.decoder import Decoder
from methods.engine.int4 import Int4
from methods.engine.int8 import Int8
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree
from methods.engine.weights import expected_shapes
from methods.errors import UserError


def _llama(width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> ModelConfig:
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": vocabulary}
    own = {"model_type": "llama", "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return ModelConfig.from_dict(own | sizes | {"max_position_embeddings": 16384, "tie_word_embeddings": False})


LARGE = {  # sizes of published models: Vicuna 7B, Llama 3 8B, a draft of 68M
    "7B": _llama(4096, 11008, 32, 32, 32, 32000),
    "8B": _llama(4096, 14336, 32, 32, 8, 128256),
    "68M": _llama(768, 3072, 2, 12, 12, 32000),
}
TINY = {"tiny": _llama(64, 128, 2, 4, 2, 96)}
SHAPES = {  # and of Llama 3 70B one layer, for its matrices
    "70B": _llama(8192, 28672, 1, 64, 8, 128256),
}


@dataclass(frozen=True)
class Sizes:
    """What is measured: on a GPU models of published sizes, in tests tiny ones. `models` run; of `shapes` only the
    matrices are made. `rows` of a pass, behind `lengths` tokens, by so many `rounds`; `heads`: numbers of key/value
    heads that the first model may have; `held`: bytes of weights that are read in turn, more than caches hold."""

    models: Mapping[str, ModelConfig]
    shapes: Mapping[str, ModelConfig]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    rounds: int
    heads: tuple[int, ...]
    held: int
    dtypes: tuple[torch.dtype, ...]

    @property
    def most(self) -> int:
        """Tokens that a cache must hold."""
        return max(self.lengths) + 2 * max(self.rows)


GPU = Sizes(
    LARGE,
    LARGE | SHAPES,
    (128, 1024, 8192),
    (1, 8, 64),
    10,
    (32, 8, 4),
    1 << 30,
    (torch.bfloat16, torch.float16),
)
CPU = Sizes(TINY, TINY, (16, 40), (1, 4), 3, (4, 2), 1 << 16, (torch.bfloat16,))


class RandomWeights(Mapping[str, Tensor]):
    """Weights of a model that nobody has trained, each made on the device when it is asked for: matrices that keep the
    size of what they multiply, norms of ones."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.shapes, self.dtype, self.device = expected_shapes(config), dtype, device

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=self.dtype, device=self.device)
        return torch.randn(shape, dtype=self.dtype, device=self.device) * shape[1] ** -0.5

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@dataclass(frozen=True)
class Came:
    """What a step found, in words and in figures. `good`: whether it is what was expected."""

    text: str
    good: bool
    figures: dict[str, Any] = field(default_factory=dict)


@contextmanager
def decoder_of(config: ModelConfig, device: torch.device, rows: int) -> Iterator[Decoder]:
    """A random model in bf16; its memory is given back."""
    model = Transformer(config, RandomWeights(config, torch.bfloat16, device), torch.bfloat16, [device] * config.layers)
    try:
        yield Decoder(model, rows)
    finally:
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()


def seconds(action: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median of the wall clock's times, each until the device is done; the first is not counted."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def equal_rows(layer: LinearLayer, inputs: int, dtype: torch.dtype, device: torch.device) -> list[int]:
    """The numbers of rows at which the layer gives its last rows the bits that they have among 64."""
    most = CUDA_ROWS[-1]
    x_NI = torch.randn(most, inputs, device=device).to(dtype)
    y_NO = layer(x_NI)
    return [count for count in CUDA_ROWS if torch.equal(layer(x_NI[-count:]), y_NO[-count:])]


def matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the matrices that a pass multiplies with, as they are fused."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "qkv": (queries + 2 * keys, config.width),
        "out": (config.width, queries),
        "gate-up": (2 * config.mlp_width, config.width),
        "down": (config.width, config.mlp_width),
        "head": (config.vocab_size, config.width),
    }


def rows_with_equal_bits(sizes: Sizes, device: torch.device) -> Came:
    """Of every matrix, by the engine's own operators and by PyTorch's."""
    found: dict[str, dict[str, list[int]]] = {"engine": {}, "torch": {}}
    for dtype in sizes.dtypes:
        for name, config in sizes.shapes.items():
            for part, (outputs, inputs) in matrices(config).items():
                weight_OI = torch.randn(outputs, inputs, dtype=dtype, device=device) * inputs**-0.5
                key = f"{name} {part} {str(dtype).removeprefix('torch.')}"
                for kind, layer in (("engine", linear(weight_OI)), ("torch", TorchLinear(weight_OI, None, dtype))):
                    found[kind][key] = equal_rows(layer, inputs, dtype, device)
    common = {kind: sorted(set(CUDA_ROWS).intersection(*several.values())) for kind, several in found.items()}
    text = f"{_counts(common['engine'])} by the engine's operators, {_counts(common['torch'])} by PyTorch's"
    return Came(f"for all matrices {text}", len(common["engine"]) > 1, {"common": common, "by matrix": found})


def _counts(counts: Iterable[int]) -> str:
    return ", ".join(map(str, counts)) or "none"


def passes(name: str, sizes: Sizes, device: torch.device, bandwidth: float, most_floors: float) -> Came:
    """Milliseconds of a pass by its rows and by the context before it. Expected: bits that do not depend on rows, and
    one row at the second length within so many floors."""
    config = sizes.models[name]
    with decoder_of(config, device, sizes.most) as decoder:
        invariant = decoder.probe(f"random {name}")
        floor = decoder.model.weight_bytes / bandwidth
        table = {length: _by_rows(decoder, length, sizes, device) for length in sizes.lengths}
        launches = kernels_of(decoder) if device.type == "cuda" else None
        counts, operators = decoder.model.stack.row_counts, decoder.model.stack.operators
    at = sizes.lengths[1]
    one, most = table[at][1], table[at][sizes.rows[-1]]
    text = f"{1e3 * one:.2f} ms at {at} tokens, {one / floor:.2f} floors; {sizes.rows[-1]} rows {1e3 * most:.2f} ms"
    text += f"; {'the same bits' if invariant else 'OTHER BITS'} at any number of rows; operators: {operators}"
    figures = {
        "ms": {length: {n: 1e3 * value for n, value in row.items()} for length, row in table.items()},
        "floor ms": 1e3 * floor,
        "row_invariant": invariant,
        "row_counts": counts,
        "operators": operators,
        "kernels per pass": launches,
    }
    return Came(text, invariant and one <= most_floors * floor, figures)


def _by_rows(decoder: Decoder, length: int, sizes: Sizes, device: torch.device) -> dict[int, float]:
    vocabulary = decoder.model.config.vocab_size
    decoder.prefill([(7 * i + 1) % vocabulary for i in range(length)])
    chains = {rows: TokenTree.chain([(11 * i + 1) % vocabulary for i in range(rows)]) for rows in sizes.rows}
    return {rows: seconds(lambda t=tree: decoder.score(t), device, sizes.rounds) for rows, tree in chains.items()}  # type: ignore[misc]


def kernels_of(decoder: Decoder) -> int:
    """The kernels that a pass of one row launches on a GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        decoder.score(TokenTree.chain([1])).wait()
    return sum(event.device_type.name == "CUDA" for event in recorded.events() or ())


def exact_kernels(sizes: Sizes, device: torch.device) -> Came:
    """Models of two layers for each grouping of heads: which operators run, and whether a row has the same bits alone,
    in a chain and in a tree."""
    some = next(iter(sizes.models.values()))
    found = {}
    for kv_heads in sizes.heads:
        with decoder_of(replace(some, kv_heads=kv_heads, layers=2), device, sizes.most) as decoder:
            invariant = decoder.probe("a random model")
            found[f"{some.heads // kv_heads} queries to a key"] = (decoder.model.stack.operators, invariant)
    text = "; ".join(f"{name}: {kind}, {'exact' if same else 'NOT EXACT'}" for name, (kind, same) in found.items())
    return Came(text, all(same for _, same in found.values()), {"probed": found})


def reading(sizes: Sizes, device: torch.device, bandwidth: float, least: float) -> Came:
    """Bytes per second of one model's matrices in 16, 8 and 4 bits, by rows, as a share of what the device reads.
    Expected: at least so much of it for up to 16 rows in 16 bits."""
    config = next(iter(sizes.models.values()))
    found: dict[str, dict[str, dict[int, float]]] = {}
    # Each layer has weights of its own: the same ones would be read from the GPU's cache.
    for bits, made in (("16", Tensor.clone), ("8", Int8.of), ("4", Int4.of)):
        found[bits] = {}
        for part, (outputs, inputs) in matrices(config).items():
            weight_OI = torch.randn(outputs, inputs, dtype=torch.bfloat16, device=device)
            layers = [linear(made(weight_OI)) for _ in range(max(1, min(8, ceil(sizes.held / weight_OI.nbytes))))]
            found[bits][part] = {rows: _rate(layers, rows, inputs, device, sizes) / bandwidth for rows in sizes.rows}
    worst = min(value for part in found["16"].values() for rows, value in part.items() if rows <= 16)
    widest = {bits: min(part[1] for part in parts.values()) for bits, parts in found.items()}
    text = ", ".join(f"{value:.2f} in {bits} bits" for bits, value in widest.items())
    return Came(f"of the bandwidth at 1 row, at least: {text}", worst >= least, {"share of bandwidth": found})


def _rate(layers: list[LinearLayer], rows: int, inputs: int, device: torch.device, sizes: Sizes) -> float:
    """Bytes of weights per second, one layer behind the other."""
    x_NI = torch.randn(rows, inputs, dtype=torch.bfloat16, device=device)
    taken = seconds(lambda: [layer(x_NI) for layer in layers], device, sizes.rounds)
    return sum(layer.weight_bytes for layer in layers) / taken


Recorded = Callable[[], object]  # runs again what was recorded; what it gives lies where it lay


def cuda_graph(action: Callable[[], Tensor]) -> tuple[Recorded, Tensor]:
    """What `action` does on the current GPU, as a graph, and its result."""
    if not torch.cuda.is_available():
        raise UserError("CUDA graphs are a GPU's: there is none here")
    action()  # kernels are compiled and memory is found before
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = action()
    return graph.replay, result


@torch.inference_mode()
def graph_gain(
    name: str,
    sizes: Sizes,
    device: torch.device,
    record: Callable[[Callable[[], Tensor]], tuple[Recorded, Tensor]] = cuda_graph,
) -> Came:
    """The layers of a pass of one row, launched one by one and as a graph."""
    config, length = sizes.models[name], sizes.lengths[0]
    with decoder_of(config, device, sizes.most) as decoder:
        model = decoder.model
        cache = model.new_cache(sizes.most)
        tokens = torch.arange(length) % config.vocab_size
        model(tokens, torch.arange(length), cache.prompt())
        tree = TokenTree.chain([1] * model.stack.min_rows)
        x_ND, rotation = model.embed(tree.tokens_N), model.rotation(length + tree.depth_N)
        view = cache.view(length, tree)

        def run() -> Tensor:
            return model.run(x_ND, rotation, view, 0, config.layers)

        expected = run().clone()
        replay, result = record(run)
        result.zero_()
        replay()
        same = torch.equal(result, expected)
        eager, graph = (seconds(action, device, sizes.rounds) for action in (run, replay))
    text = f"{1e3 * eager:.3f} ms launched, {1e3 * graph:.3f} ms as a graph, {eager / graph:.2f} times as fast"
    figures = {"launched ms": 1e3 * eager, "graph ms": 1e3 * graph, "gain": eager / graph, "equal bits": same}
    return Came(f"{text}; {'the same bits' if same else 'OTHER BITS'}", same and eager > graph, figures)


def versions() -> dict[str, str]:
    """Of the GPU's driver and of Triton, where these say."""
    try:
        import triton

        kernels = str(triton.__version__)
    except ImportError:
        kernels = "not installed"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        driver = next(iter(done.stdout.split()), "unknown")
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    return {"driver": driver, "triton": kernels, "torch": torch.__version__}


def machine(device: torch.device, threads: int, known: Mapping[str, float]) -> Came:
    """The device's name, memory and bandwidth, and the versions of what runs it. `known`: bytes per second of GPUs'
    data sheets, by a part of their names."""
    bandwidth = read_bandwidth(threads, device)
    figures: dict[str, Any] = {"read_bandwidth": bandwidth} | versions()
    if device.type != "cuda":
        return Came(f"a CPU that reads {bandwidth / 1e9:.1f} GB/s with {threads} threads", True, figures)
    told = torch.cuda.get_device_properties(device)
    sheet = next((rate for part, rate in known.items() if part in told.name), None)
    figures |= {"name": told.name, "memory": told.total_memory, "data sheet": sheet}
    figures |= {"capability": torch.cuda.get_device_capability(device), "cuda": torch.version.cuda}
    share = f"{bandwidth / sheet:.2f} of its data sheet" if sheet else "no data sheet known here"
    text = f"{told.name}, {told.total_memory / 1e9:.0f} GB, reads {bandwidth / 1e12:.2f} TB/s ({share})"
    text += f"; driver {figures['driver']}, Triton {figures['triton']}"
    return Came(text, sheet is None or bandwidth >= 0.75 * sheet, figures)
