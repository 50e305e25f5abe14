"""The operators that a Transformer runs on: native ones on CPUs, Triton's kernels on CUDA, else PyTorch's. `linear` and
`choose` decide which, and nobody else asks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.engine.backends import cpu, cuda, pytorch
from methods.engine.backends.base import LayerParts, LinearLayer, Stack
from methods.engine.backends.joined import Gather, Joined
from methods.engine.config import ModelConfig
from methods.engine.int4 import Int4
from methods.engine.int8 import Int8


def linear(
    weight_OI: Tensor | Int8 | Int4, bias_O: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> LinearLayer:
    """A linear layer of these weights. `out_dtype` of its outputs, by default that of the weights."""
    arguments = weight_OI, bias_O, out_dtype or weight_OI.dtype
    if cuda.usable(weight_OI.device):
        from methods.engine.backends.cuda.linear import CudaLinear

        return CudaLinear(*arguments)
    return cpu.NativeLinear(*arguments) if cpu.takes(weight_OI) else pytorch.TorchLinear(*arguments)


def joined_linear(weight_OI: Tensor | Int8 | Int4, gather: Gather, out_dtype: torch.dtype) -> Joined:
    """A linear layer of which these weights are one rank's part. `gather`: of the partial sums of all ranks."""
    partial = linear(weight_OI, out_dtype=torch.float32)
    if cuda.usable(weight_OI.device):
        from methods.engine.backends.cuda.linear import added

        return Joined(partial, gather, out_dtype, added)
    return Joined(partial, gather, out_dtype)


def choose(
    config: ModelConfig,
    layers: Sequence[LayerParts],
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    whole: bool = True,
) -> Stack:
    """The layers, one per device of `devices`, on the fastest operators that can run them. Not `whole`: parts of layers
    that are split among ranks, which wait for each other within a layer: the native operators cannot."""
    if all(cuda.usable(device) for device in devices):
        from methods.engine.backends.cuda.stack import CudaStack

        return CudaStack(config, layers, dtype, devices)
    if whole and cpu.runs_layers(config, dtype, devices):
        return cpu.LayerStack(config, layers, dtype)
    return pytorch.TorchStack(config, layers, dtype, devices)
