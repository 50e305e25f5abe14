"""Layers of a head against the same sums written out, on native and on PyTorch's operators: with and without a norm
before the attention, with rows beside the stream, as a chain and as a tree that grows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.config import ModelConfig, Rope
from methods.engine.head import Head
from methods.engine.int8 import Int8
from methods.engine.transformer import Layers, rope_frequencies, rope_rotation, rotate
from methods.engine.tree import TokenTree

WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP = 32, 4, 2, 16, 64
CONFIG = ModelConfig(
    "llama", 96, WIDTH, 1, HEADS, KV_HEADS, HEAD_DIM, MLP, 1e-5, 64, Rope(10000.0), False, False, False
)
KINDS = ["plain", "no norm", "beside", "beside without norm"]


def weights_of(kind: str, dtype: torch.dtype, bias: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(len(kind))
    inputs = 2 * WIDTH if kind.startswith("beside") else WIDTH
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"self_attn.q_proj": (q, inputs), "self_attn.k_proj": (kv, inputs), "self_attn.v_proj": (kv, inputs)}
    shapes |= {"self_attn.o_proj": (WIDTH, q), "mlp.gate_proj": (MLP, WIDTH), "mlp.up_proj": (MLP, WIDTH)}
    shapes |= {"mlp.down_proj": (WIDTH, MLP)}
    found = {f"{name}.weight": torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    found["post_attention_layernorm.weight"] = torch.rand(WIDTH) + 0.5
    if "no" not in kind.removesuffix("norm").split() and "without" not in kind:
        found["input_layernorm.weight"] = torch.rand(WIDTH) + 0.5
    if kind.startswith("beside"):
        found["beside_norm.weight"] = torch.rand(WIDTH) + 0.5
    return {f"model.layers.0.{name}": tensor.to(dtype) for name, tensor in found.items()}


def written_out(weights: dict[str, Tensor], x_ND: Tensor, beside_NE: Tensor, positions: Tensor, sees: Tensor) -> Tensor:
    """The layer over all rows at once, in fp64; sees[i, j]: row i sees row j."""
    w = {name.removeprefix("model.layers.0."): tensor.double() for name, tensor in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (WIDTH,), w[f"{name}.weight"], 1e-5) if f"{name}.weight" in w else x

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T

    x = x_ND.double()
    read = norm(x, "input_layernorm")
    if "beside_norm.weight" in w:
        read = torch.cat((norm(beside_NE.double(), "beside_norm"), read), 1)
    rotation = rope_rotation(positions, rope_frequencies(CONFIG.rope, HEAD_DIM), torch.device("cpu"))
    q, k, v = (linear(read, f"self_attn.{n}_proj").view(len(x), -1, HEAD_DIM) for n in "qkv")
    q, k = (rotate(part, rotation).double().transpose(0, 1) for part in (q, k))
    k, v = k.repeat_interleave(2, 0), v.transpose(0, 1).repeat_interleave(2, 0)
    scores = (q @ k.transpose(1, 2) / HEAD_DIM**0.5).masked_fill(~sees, -torch.inf)
    x = x + linear((torch.softmax(scores, -1) @ v).transpose(0, 1).flatten(1), "self_attn.o_proj")
    read = norm(x, "post_attention_layernorm")
    return x + linear(F.silu(linear(read, "mlp.gate_proj")) * linear(read, "mlp.up_proj"), "mlp.down_proj")


def head_of(weights: dict[str, Tensor], dtype: torch.dtype) -> Head:
    return Head(Layers(CONFIG, weights, dtype, [torch.device("cpu")]), 40)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chain_is_the_same_fed_at_once_and_in_parts(operators: str, kind: str, dtype: torch.dtype) -> None:
    weights = weights_of(kind, dtype)
    x, beside = torch.randn(12, WIDTH).to(dtype), torch.randn(12, WIDTH).to(dtype)
    expected = written_out(weights, x, beside, torch.arange(12), torch.ones(12, 12, dtype=torch.bool).tril())
    head = head_of(weights, dtype)
    assert head.layers.stack.operators == operators
    parts = torch.cat([head.feed(x[a:b], beside[a:b]) for a, b in ((0, 5), (5, 6), (6, 12))])
    head.truncate(0)
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    for got in (parts, head.feed(x, beside)):
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", ["plain", "beside"])
def test_a_tree_grows_behind_the_last_fed_row(operators: str, kind: str) -> None:
    """Nodes 1 and 2 are children of the root, 3 of 1, 4 of 2; in two calls, and again behind a truncation."""
    weights = weights_of(kind, torch.float32)
    x, beside = torch.randn(9, WIDTH), torch.randn(9, WIDTH)
    tree = TokenTree([0] * 5, [-1, 0, 0, 1, 2])
    small = tree.first(3)
    sees = torch.zeros(9, 9, dtype=torch.bool)
    sees[:5, :5] = torch.ones(5, 5, dtype=torch.bool).tril()
    sees[5:, :5], sees[5:, 5:] = True, tree.visible_NN[1:, 1:]
    expected = written_out(weights, x, beside, torch.tensor([0, 1, 2, 3, 4, 5, 5, 6, 6]), sees)[5:]
    head = head_of(weights, torch.float32)
    for _ in range(2):
        head.feed(x[head.length : 5], beside[head.length : 5])
        first = head.branch(small, 1, x[5:7], beside[5:7])
        second = head.branch(tree, 3, x[7:9], beside[7:9])
        torch.testing.assert_close(torch.cat((first, second)).double(), expected, atol=1e-4, rtol=1e-4)
        head.truncate(3)


def test_an_int8_head_reads_its_wide_inputs(operators: str) -> None:
    weights = weights_of("beside", torch.float32)
    stored = dict(weights)
    for name, tensor in weights.items():
        if tensor.dim() == 2:
            int8 = Int8.of(tensor)
            stored[name], stored[f"{name}.scale"] = int8.values_OI, int8.scales_O
            weights[name] = int8.widened()
    x, beside = torch.randn(7, WIDTH), torch.randn(7, WIDTH)
    expected = written_out(weights, x, beside, torch.arange(7), torch.ones(7, 7, dtype=torch.bool).tril())
    torch.testing.assert_close(head_of(stored, torch.float32).feed(x, beside).double(), expected, atol=2e-3, rtol=2e-3)


def test_what_does_not_fit_is_refused() -> None:
    head = head_of(weights_of("beside", torch.float32), torch.float32)
    with pytest.raises(ValueError, match="at most 40 rows"):
        head.feed(torch.zeros(41, WIDTH), torch.zeros(41, WIDTH))
    head.feed(torch.zeros(39, WIDTH), torch.zeros(39, WIDTH))
    with pytest.raises(ValueError, match="at most 2 nodes"):
        head.branch(TokenTree.chain([0, 0, 0]), 1, torch.zeros(2, WIDTH), torch.zeros(2, WIDTH))
    with pytest.raises(ValueError, match="0 to 39"):
        head.truncate(40)


def test_rows_beside_must_be_there_for_layers_that_read_them() -> None:
    native = Layers(CONFIG, weights_of("beside", torch.float32), torch.float32, [torch.device("cpu")])
    if native.stack.operators != "native":
        pytest.skip("PyTorch refuses the shapes by itself")
    with pytest.raises(ValueError):
        Head(native, 8).feed(torch.zeros(2, WIDTH))
    with pytest.raises(ValueError, match="2 rows"):
        Head(native, 8).feed(torch.zeros(2, WIDTH), torch.zeros(1, WIDTH))
