"""GPUs that are pretended, for tests without one: tensors that say they are on a GPU, and compute on the CPU.

What CUDA refuses is refused: operands on two devices, a device that is not there, an index on another GPU. What a
method waits for is counted: values that the host reads, copies to a device, copies between devices. And a matrix
product sums in an order that depends on its number of rows, as cuBLAS's may: only who keeps that number fixed gets the
same bits. There is no asynchrony: what runs is done when it is called.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
HOST_READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal", "numpy"}
FROM_HOST = {"tensor", "as_tensor"}  # what the host has is copied when these make a tensor on a device
INDEXING = {"__getitem__", "__setitem__"}
PLENTY = 1 << 40


class GpuTensor(Tensor):
    """A tensor that says it is on a GPU. Its functions go through `PretendedGpus`."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    place: torch.device

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def place_of(x: Tensor) -> torch.device:
    return x.place if isinstance(x, GpuTensor) else CPU


def plain(x: Tensor) -> Tensor:
    """The same numbers as a tensor of the CPU."""
    return x.as_subclass(Tensor) if isinstance(x, GpuTensor) else x


def on(place: torch.device, x: Tensor) -> Tensor:
    """The same numbers as a tensor of that device."""
    if place == CPU:
        return plain(x)
    tensor = x.as_subclass(GpuTensor)
    tensor.place = place
    return tensor


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The arguments or the result of a function, each tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        changed = [mapped(change, item) for item in value]
        return changed if isinstance(value, list) else tuple(changed) if type(value) is tuple else type(value)(changed)
    if isinstance(value, dict):
        return {key: mapped(change, item) for key, item in value.items()}
    return value


def tensors_in(*values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(*value)
        elif isinstance(value, dict):
            found += tensors_in(*value.values())
    return found


def orders_of_hostile_sums(rows: int) -> int:
    """4 and 64 rows are summed alike, none of 1, 2, 8, 16, 32, 65 and 128 as they are."""
    return 1 + rows % 5


class PretendedGpus(TorchFunctionMode):
    """While it is entered, in this thread, there are `count` GPUs. `parts`: in how many parts a product of so many rows
    sums. `log`: "read", "send" and "peer" count what crosses, "wait" synchronisations; `rows`: of matrix products."""

    def __init__(self, count: int = 1, parts: Callable[[int], int] = orders_of_hostile_sums) -> None:
        super().__init__()
        self.count, self.parts = count, parts
        self.log, self.rows = Counter[str](), Counter[int]()
        self.memory = dict.fromkeys(range(count), PLENTY)  # bytes that are free on each
        self.capability = (7, 5)  # of GPUs that are too old for Triton's kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("to", "cpu", "cuda"):
            return self._moved(name, *args, **kwargs)
        tensors = tensors_in(args, kwargs)
        place = self._place_of(name, args, tensors)
        if kwargs.get("device") is not None:
            place = self._there(kwargs.pop("device"))
            self.log["send"] += place != CPU and name in FROM_HOST
        if place != CPU:
            self.log["read"] += name in HOST_READS
            assert name != "numpy", "numpy() of a tensor on a GPU"
        run = self._on_gpu(func, name) if place != CPU else func
        return self._placed(place, run(*mapped(plain, args), **mapped(plain, kwargs)))

    def _placed(self, place: torch.device, result: Any) -> Any:
        if isinstance(result, Iterator):
            return iter([on(place, x) for x in result])
        return mapped(partial(on, place), result)

    def _place_of(self, name: str, args: Any, tensors: list[Tensor]) -> torch.device:
        """Where an operation runs: all its operands are there. Numbers of no dimension may be on the host, and so may
        an index, and what is copied."""
        if name == "copy_" and place_of(tensors[0]) != place_of(tensors[1]):
            self._count(place_of(tensors[1]), place_of(tensors[0]))
            tensors = tensors[:1]
        if name in INDEXING:
            first, *others = tensors
            from_host = [index for index in tensors_in(args[1]) if place_of(index) == CPU]
            listed = any(isinstance(part, list) for part in (args[1], *(args[1] if isinstance(args[1], tuple) else ())))
            self.log["send"] += place_of(first) != CPU and bool(listed or from_host)
            tensors = [first, *(x for x in others if not any(x is index for index in from_host))]
        places = {place_of(x) for x in tensors if x.dim() or place_of(x) != CPU}
        assert len(places) < 2, f"{name}: tensors on {', '.join(sorted(map(str, places)))}"
        return next(iter(places), CPU)

    def _there(self, device: Any) -> torch.device:
        device = torch.device(device)
        if device.type == "cpu":
            return CPU
        assert (device.index or 0) < self.count, f"there is no device {device}"
        return torch.device("cuda", device.index or 0)

    def _count(self, source: torch.device, target: torch.device) -> None:
        self.log["read" if target == CPU else "send" if source == CPU else "peer"] += 1

    def _moved(self, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`to`, `cpu` and `cuda`: to another device, another dtype, or both."""
        others = [arg for arg in args if isinstance(arg, Tensor)]
        devices = [arg for arg in (*args, kwargs.pop("device", None)) if isinstance(arg, str | torch.device)]
        rest = [arg for arg in args if not isinstance(arg, Tensor | str | torch.device)]
        target = {"cpu": CPU, "cuda": torch.device("cuda", 0)}.get(name, place_of(x))
        target = next(map(self._there, devices), next(map(place_of, others), target))
        rest += [other.dtype for other in others]
        moved = plain(x).to(*rest, **kwargs) if rest or kwargs else plain(x)
        if target == place_of(x):
            return x if moved is plain(x) or moved.data_ptr() == x.data_ptr() else on(target, moved)
        self._count(place_of(x), target)
        if target != CPU and place_of(x) == CPU:
            self.memory[target.index] -= moved.nbytes
        return on(target, moved.clone())

    def _on_gpu(self, func: Any, name: str) -> Any:
        """What is done otherwise there than on a CPU."""
        if name in ("linear", "mm"):
            return partial(self._product, transposed=name == "mm")
        if name == "scaled_dot_product_attention":
            return partial(self._attention, func)
        return func

    def _product(
        self,
        x_NI: Tensor,
        weight: Tensor,
        bias_O: Tensor | None = None,
        transposed: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """x W^T + b, or of the transposed weight: in so many parts, each exact but for one rounding to fp32, which are
        added in fp32."""
        weight_OI = weight.T if transposed else weight
        self.rows[len(x_NI)] += 1
        parts = self.parts(len(x_NI))
        pairs = zip(x_NI.double().chunk(parts, -1), weight_OI.double().chunk(parts, -1), strict=True)
        y_NO = torch.zeros(len(x_NI), len(weight_OI))
        for x, w in pairs:
            y_NO += x @ w.T
        y_NO = y_NO if bias_O is None else y_NO + bias_O.float()
        return y_NO.to(out_dtype or x_NI.dtype)

    def _attention(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        grouped = kwargs.get("enable_gqa") and args[0].shape[1] != args[1].shape[1]
        assert not (grouped and args[0].dtype == torch.float32), "fp32 and GQA: only the kernel that stores all scores"
        return func(*args, **kwargs)

    def wait(self, device: Any = None) -> None:
        """In place of torch.cuda.synchronize."""
        self.log["wait"] += 1

    def free(self, device: Any = None) -> tuple[int, int]:
        """In place of torch.cuda.mem_get_info: bytes that are free, and all."""
        return self.memory[self._there(device or "cuda").index], PLENTY


@contextmanager
def pretended(gpus: PretendedGpus) -> Iterator[PretendedGpus]:
    """In this thread and its like there are these GPUs; another thread enters the mode itself."""
    with (
        mock.patch.object(torch.cuda, "synchronize", gpus.wait),
        mock.patch.object(torch.cuda, "mem_get_info", gpus.free),
        mock.patch.object(torch.cuda, "device_count", lambda: gpus.count),
        mock.patch.object(torch.cuda, "get_device_capability", lambda device=None: gpus.capability),
        gpus,
    ):
        yield gpus
