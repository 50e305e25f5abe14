"""The CUDA kernels: a row has the same bits alone, among others, in a chain and in a tree, and they are right ones.

Without a GPU they run in Triton's interpreter, in which a product of two blocks is exact but for one rounding: what it
shows is the order of sums, masks and indices. That they compile is shown apart."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from methods.engine.backends import joined
from methods.engine.backends.cuda.attention import SPLIT, PositionCache, TreeView
from methods.engine.backends.cuda.linear import LEAST_STEPS, STEPS, CudaLinear, added, span_of
from methods.engine.backends.cuda.stack import rms_norm
from methods.engine.config import ModelConfig
from methods.engine.int4 import Int4
from methods.engine.int8 import Int8
from methods.engine.tree import TokenTree
from methods.paths import ROOT

pytestmark = pytest.mark.usefixtures("one_thread", "even_products")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NEAR = {"bf16": 1.5e-2, "fp16": 1e-3, "fp32": 2e-6}  # of the largest, by the rounding of a result
PATH = 3  # nodes
NAMES = ("linear", "added", "norm", "rotate", "paths", "partial", "merge")
INSTRUCTION = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
CONFIG = ModelConfig.from_dict(
    {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,  # fills no block
    }
)


def of(weight_OI: Tensor, bits: str) -> tuple[Any, Tensor]:
    """The weights in these bits, and the numbers that they stand for."""
    if bits == "int8":
        int8 = Int8.of(weight_OI)
        return int8, int8.values_OI.double() * int8.scales_O.double()[:, None]
    if bits == "int4":
        int4 = Int4.of(weight_OI)
        return int4, int4.widened().double()
    return weight_OI, weight_OI.double()


def close(found: Tensor, expected: Tensor, near: float) -> bool:
    return float((found.double() - expected).abs().max()) <= near * float(expected.abs().max())


@pytest.mark.parametrize("bits", ["whole", "int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_linear_layer_is_the_same_beside_any_others(dtype: str, bits: str) -> None:
    torch.manual_seed(0)
    inputs, outputs, rows = 3 * STEPS[4] // 2, 40, 37  # half a step is left
    weight, numbers = of((torch.randn(outputs, inputs) / inputs**0.5).to(DEVICE, DTYPES[dtype]), bits)
    bias, residual = (
        torch.randn(outputs).to(DEVICE, DTYPES[dtype]),
        torch.randn(rows, outputs).to(DEVICE, DTYPES[dtype]),
    )
    x = torch.randn(rows, inputs).to(DEVICE, DTYPES[dtype])
    linear = CudaLinear(weight, bias, torch.float32)
    y, gated = linear(x, residual), CudaLinear(weight, None, DTYPES[dtype])(x, gated=True)
    near = 6e-3 if (dtype, bits) == ("bf16", "int4") else 1e-5  # the interpreter cuts bf16 off where it should round
    assert close(y, x.double() @ numbers.T + bias.double() + residual.double(), near)
    gate, up = (x.double() @ numbers.T).chunk(2, 1)
    assert close(gated, F.silu(gate) * up, NEAR[dtype])
    for first, stop in ((0, 1), (36, 37), (3, 20)):  # in tiles of 16, 16 and 32 columns; together there are 64
        assert torch.equal(linear(x[first:stop], residual[first:stop]), y[first:stop])


@pytest.mark.parametrize("bits", ["whole", "int8", "int4"])
def test_a_matrix_of_few_outputs_is_summed_in_parts(bits: str) -> None:
    """The same ones for any number of rows, with the bias once."""
    torch.manual_seed(0)
    outputs, rows, step = 40, 19, STEPS[{"whole": 32, "int8": 8, "int4": 4}[bits]]
    inputs = 2 * LEAST_STEPS * step + step // 2
    weight, numbers = of((torch.randn(outputs, inputs) / inputs**0.5).to(DEVICE), bits)
    bias, residual = torch.randn(outputs, device=DEVICE), torch.randn(rows, outputs, device=DEVICE)
    x, linear = torch.randn(rows, inputs, device=DEVICE), CudaLinear(weight, bias, torch.float32)
    assert 0 < inputs - linear.span < linear.span and linear.span % step == 0
    y = linear(x, residual)
    assert close(y, x.double() @ numbers.T + bias.double() + residual.double(), 2e-6)
    assert torch.equal(linear(x[:1], residual[:1]), y[:1]) and torch.equal(linear(x[7:], residual[7:]), y[7:])


def test_the_parts_of_a_matrix_are_a_matter_of_its_shape() -> None:
    """Those of 7B and more have tiles enough, so they have one part; of 135M and 68M the last ones have several."""
    for outputs, inputs, parts in ((4096, 14336, 1), (2560, 9728, 1), (2048, 8192, 2), (768, 3072, 5), (576, 1536, 3)):
        assert -(-inputs // span_of(outputs, inputs, STEPS[16])) == parts
    for outputs in range(1, 600, 7):
        for inputs in range(1, 3000, 31):
            span = span_of(outputs, inputs, 64)
            assert span % 64 == 0 and (span >= inputs or span >= 64 * LEAST_STEPS)


def test_partial_sums_are_added_from_the_first_up() -> None:
    """As PyTorch's operators add those of several ranks."""
    torch.manual_seed(0)
    parts, residual = torch.randn(5, 30, 40, device=DEVICE), torch.randn(30, 40, device=DEVICE).bfloat16()
    for beside in (residual, None):
        assert torch.equal(added(parts, beside, torch.float32), joined.added(parts, beside, torch.float32))


def test_weights_take_the_bytes_of_their_bits() -> None:
    weight = torch.randn(64, 512, dtype=torch.bfloat16)
    sizes = {bits: CudaLinear(of(weight, bits)[0], None, weight.dtype) for bits in ("whole", "int8", "int4")}
    assert [linear.weight_size for linear in sizes.values()] == [2, 1, 0.625]
    assert [linear.weight_bytes / weight.numel() for linear in sizes.values()] == [2, 1 + 4 / 512, 0.625]


def test_many_rows_go_another_way_to_the_same_numbers() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 64), torch.randn(70, 64)
    for bits in ("whole", "int8"):
        part, numbers = of(weight.to(DEVICE), bits)
        found = CudaLinear(part, None, torch.float32)(x.to(DEVICE), gated=True)
        gate, up = (x.to(DEVICE).double() @ numbers.T).chunk(2, 1)
        assert close(found, F.silu(gate) * up, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm(dtype: str) -> None:
    x, weight = torch.randn(5, 72).to(DEVICE, DTYPES[dtype]), torch.randn(72).to(DEVICE, DTYPES[dtype])
    y = rms_norm(x, weight, 1e-5)
    assert close(y, F.rms_norm(x.double(), (72,), weight.double(), 1e-5), NEAR[dtype])
    assert torch.equal(rms_norm(x[3:4], weight, 1e-5), y[3:4])


def reference(q_Hd: Tensor, keys_KPd: Tensor, values_KPd: Tensor) -> Tensor:
    """Attention of one row to the keys of its path, in fp64, [H d]."""
    keys, values = (part.double().repeat_interleave(2, 0) for part in (keys_KPd, values_KPd))
    weights_HP = torch.softmax((keys @ q_Hd.double()[:, :, None])[..., 0] * q_Hd.shape[-1] ** -0.5, -1)
    return (weights_HP[:, None] @ values).flatten()


class Keys:
    """The keys, values and queries of a path behind `length` tokens, wherever they lie in a cache."""

    def __init__(self, length: int, dtype: torch.dtype) -> None:
        torch.manual_seed(length)
        c, self.length, self.dtype = CONFIG, length, dtype
        self.data = torch.randn(2, c.kv_heads, length + PATH, c.head_dim).to(DEVICE, dtype)
        self.q = torch.randn(PATH, c.heads, c.head_dim).to(DEVICE, dtype)

    def attend(self, start: int, tree: TokenTree, nodes: list[int], known: int = 0) -> Tensor:
        """What the path's nodes see, [nodes, H d]: the tree follows `start` tokens of the path, which goes on as its
        `nodes`. All other rows hold something else, those behind the tree what is no number."""
        count = len(tree.tokens_N)
        cache = PositionCache(CONFIG, start + count + 9, self.dtype, [DEVICE])
        rows = cache.layers[0]
        rows.copy_(torch.randn(rows.shape).to(rows))
        rows[:, :, start + count :] = torch.nan
        rows[:, :, :start] = self.data[:, :, :start]
        places = torch.tensor(nodes, device=DEVICE)
        rows[:, :, start + places] = self.data[:, :, start : start + len(nodes)]
        q = torch.randn(count, *self.q.shape[1:]).to(DEVICE, self.dtype)
        q[places] = self.q[start - self.length : start - self.length + len(nodes)]
        found = cache.view(start, tree, known).attend(0, q[known:])
        return found[[node - known for node in nodes if node >= known]]


FORKED = TokenTree([0] * 5, [-1, 0, 0, 2, 2])
PLACES = [0, 2, 4]  # of the path, each behind a sibling


# Within a split of positions, across a border of two, behind it, across the next.
@pytest.mark.parametrize(
    "dtype, length", [("fp32", 60), ("fp32", 254), ("fp32", 256), ("fp32", 510), ("bf16", 60), ("bf16", 254)]
)
def test_a_row_sees_the_same_alone_in_a_chain_and_in_a_tree(dtype: str, length: int) -> None:
    path = Keys(length, DTYPES[dtype])
    alone = torch.cat([path.attend(length + i, TokenTree.chain([0]), [0]) for i in range(PATH)])
    for i in range(PATH):
        keys, values = path.data[:, :, : length + i + 1]
        assert close(alone[i], reference(path.q[i], keys, values), NEAR[dtype])
    assert torch.equal(path.attend(length, TokenTree.chain([0] * PATH), list(range(PATH))), alone)
    assert torch.equal(path.attend(length, FORKED, PLACES), alone)


def test_a_tree_that_grows_sees_the_rows_that_it_has() -> None:
    path = Keys(254, torch.float32)
    assert torch.equal(path.attend(254, FORKED, PLACES, known=3), path.attend(254, FORKED, PLACES)[2:])


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the kernels that Triton's interpreter runs have written to each address."""
    from triton.runtime.interpreter import InterpreterBuilder

    written, store = Counter[int](), InterpreterBuilder.create_masked_store

    def counted(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        written.update(pointers.data[mask.data].tolist())
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted)
    return written


def addresses(tensor: Tensor, numbers: Tensor) -> set[int]:
    return {tensor.data_ptr() + tensor.element_size() * number for number in numbers.flatten().tolist()}


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU does not tell what it writes")
@pytest.mark.parametrize("length", [254, 256, 511])
def test_programs_write_each_partial_sum_once(length: int, stores: Counter[int]) -> None:
    """Two that wrote one would race, and what none has written would be merged: so all are written, of every row those
    of the splits that it sees, and no other."""
    cache = PositionCache(CONFIG, 600, torch.float32, [DEVICE])
    view: TreeView = cache.view(length, FORKED)
    working = view._of[DEVICE]
    rows = len(FORKED.tokens_N)
    assert set(stores.values()) == {1}, "depths and paths"
    stores.clear()
    y = view.attend(0, torch.randn(rows, CONFIG.heads, CONFIG.head_dim))
    assert set(stores.values()) == {1}
    seen_N = (length + FORKED.depth_N) // SPLIT + 1
    at = torch.arange(rows * CONFIG.heads * working.splits).view(rows, CONFIG.heads, working.splits)
    slots = at[torch.arange(working.splits).expand_as(at) < seen_N[:, None, None]]
    of_sums = slots[:, None] * CONFIG.head_dim + torch.arange(CONFIG.head_dim)
    of_tops = slots[:, None] * 2 + torch.arange(2)
    expected = addresses(working.sums_NHSd, of_sums) | addresses(working.tops_NHS2, of_tops)
    assert stores.keys() == expected | addresses(y, torch.arange(y.numel()))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU does not tell what it writes")
def test_programs_write_each_output_once(stores: Counter[int]) -> None:
    linear = CudaLinear(torch.randn(72, 600), None, torch.float32)
    assert linear.span < 600
    for gated, rows in ((True, 35), (False, 3)):
        stores.clear()
        y = linear(torch.randn(rows, 600), gated=gated)
        assert set(stores.values()) == {1} and addresses(y, torch.arange(y.numel())) <= stores.keys()


def test_every_kernel_of_a_pass_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """For the first generation that is supported, whose programs share least memory but for its smaller kin."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.compile_kernels", "80"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {kernel["name"] for kernel in found} == {f"{name}_kernel" for name in NAMES}
    assert all(kernel["shared"] <= 99 << 10 for kernel in found)
    products = [kernel["products"] for kernel in found if kernel["name"] in ("linear_kernel", "partial_kernel")]
    assert all(product == [INSTRUCTION] for product in products), "one instruction, whatever the number of rows"
