"""Compiles the CUDA kernels of a pass of an 8B model for a GPU that is not here, and prints what they became as JSON:
python -m tests.compile_kernels 80 (its compute capability). Tensors have shapes and no numbers."""

import json
import re
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from methods.engine.backends import cuda
from methods.engine.backends.cuda import attention, linear, stack
from methods.engine.config import ModelConfig
from methods.engine.int4 import GROUP, MINIMUM
from methods.engine.int8 import SCALE
from methods.engine.transformer import Transformer
from methods.engine.tree import TokenTree
from methods.engine.weights import expected_shapes

KINDS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8", torch.uint8: "u8"}
OPTIONS = {"num_stages", "num_warps"}
META = torch.device("meta")
CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
found: dict[str, dict[str, Any]] = {}


def kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + KINDS.get(value.dtype, "i32")
    return "i32" if isinstance(value, int) else "fp32"


def compiled(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """In place of a launch."""
    options = {name: constants.pop(name) for name in OPTIONS & set(constants)}
    names = kernel.arg_names
    signature = dict.fromkeys(names, "constexpr") | dict(zip(names, map(kind, arguments), strict=False))
    key = f"{kernel.__name__} {signature} {constants} {options}"
    if key in found:
        return
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, value in enumerate(arguments)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
    }
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    made = triton.compile(source, target=target, options={**options, "enable_fp_fusion": False})
    products = sorted(set(re.findall(r"(?:mma|wgmma|tcgen05)\.[\w.]*mma[\w.]*|mma\.sync[\w.]*", made.asm["ptx"])))
    found[key] = {"name": kernel.__name__, "shared": made.metadata.shared, "products": products}


def weights(config: ModelConfig, bits: int) -> dict[str, Tensor]:
    """Of a model whose matrices are in so many bits."""
    tensors = {}
    for name, shape in expected_shapes(config).items():
        matrix = len(shape) == 2 and not name.startswith("model.embed")
        tensors[name] = torch.empty(shape, dtype=torch.bfloat16, device=META)
        if bits == 8 and matrix:
            tensors[name] = torch.empty(shape, dtype=torch.int8, device=META)
            tensors[name + SCALE] = torch.empty(shape[0], device=META)
        if bits == 4 and matrix:
            tensors[name] = torch.empty(shape[0], shape[1] // 2, dtype=torch.uint8, device=META)
            for part in (SCALE, MINIMUM):
                tensors[name + part] = torch.empty(shape[0], shape[1] // GROUP, dtype=torch.float16, device=META)
    return tensors


def run(bits: int, rows: int, whole: bool = False) -> None:
    """A pass over a chain, or of it what shares most memory."""
    config = ModelConfig.from_dict(CONFIG)
    model = Transformer(config, weights(config, bits), torch.bfloat16, [META])
    x_ND = model.embed(torch.zeros(rows, dtype=torch.long, device=META))
    if whole:
        view = model.new_cache(2048).view(1000, TokenTree.chain([0] * rows))
        rotation = (torch.empty(rows, 1, config.head_dim, device=META),) * 2
        model.logits(model.run(x_ND, rotation, view, 0, 1))
    else:
        gate_up: Any = model.layers[0].gate_up
        gate_up(x_ND, gated=True)


if __name__ == "__main__":
    cuda.usable = lambda device: True
    for module in (attention, linear, stack):
        vars(module)["launch"] = compiled
    run(16, 1, whole=True)
    for bits, rows in ((16, 64), (8, 1), (4, 64)):
        run(bits, rows)
    linear.CudaLinear(torch.empty(1024, 4096, dtype=torch.bfloat16, device=META), None, torch.bfloat16)(
        torch.empty(1, 4096, dtype=torch.bfloat16, device=META)
    )
    print(json.dumps(list(found.values())))
