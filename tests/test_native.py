"""The native operators: right, and the same bits for every row count and thread count."""

import ctypes
import math
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.engine.backends import best, linear
from methods.engine.backends import build as compiler
from methods.engine.backends import cpu as native
from methods.engine.backends.build import FLAGS
from methods.engine.backends.cpu import NativeLinear
from methods.engine.backends.pytorch import TorchLinear, packs_bf16
from methods.engine.decoder import Decoder
from methods.engine.int4 import Int4
from methods.engine.int8 import Int8
from methods.engine.loader import find_checkpoint
from methods.engine.tree import TokenTree
from tests.tiny import save_model

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
HAS_COMPILER = any(map(shutil.which, compiler.COMPILERS))
X86 = platform.machine() == "x86_64"
WEAKER = {  # the same file for lesser processors: no bf16 products, no byte products, no AVX-512, nothing beyond SSE2
    "avx512": ["-mno-avx512bf16"],
    "no-vnni": ["-mno-avx512vnni"],
    "avx2": ["-mno-avx512f"],
    "sse2": ["-march=x86-64"],
}

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")


@pytest.fixture(scope="module", params=["native", *(WEAKER if X86 else [])])
def operators(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    """The operators as compiled for this processor and for lesser ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEARL_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        lib = native.built([*FLAGS, *WEAKER.get(request.param, [])])
        patch.setattr(native, "library", lambda: lib)
        yield lib


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_machine_with_a_compiler_has_the_operators() -> None:
    assert native.library() is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (34, 7), (64, 64), (146, 33), (576, 97), (1000, 200)])
def test_linear_is_the_sum_of_its_products(
    operators: ctypes.CDLL, dtype: torch.dtype, inputs: int, outputs: int
) -> None:
    weight, bias = random(outputs, inputs, dtype=dtype), random(outputs, dtype=dtype, seed=1)
    for rows in (1, 3, 8, 21):
        x = random(rows, inputs, dtype=dtype, seed=2)
        for b in (None, bias):
            exact = x.double() @ weight.double().T + (0 if b is None else b.double())
            size = x.double().abs() @ weight.double().abs().T + 1
            wide = NativeLinear(weight, b, torch.float32)(x)
            assert wide.dtype == torch.float32
            assert ((wide - exact).abs() / size).max() < 1e-6
            assert torch.equal(NativeLinear(weight, b, dtype)(x), wide.to(dtype))


def random_int8(outputs: int, inputs: int, dtype: torch.dtype) -> Int8:
    return Int8((random(outputs, inputs) * 50).clamp(-127, 127).to(torch.int8), random(outputs, seed=3) / 50, dtype)


def random_int4(outputs: int, inputs: int, dtype: torch.dtype) -> Int4:
    """All bytes come; steps and minima have both signs, and some are too small for fp16's full precision."""
    packed_OJ = random(outputs, inputs // 2).mul(1e4).to(torch.int64).remainder(256).to(torch.uint8)
    steps_OG, minima_OG = ((random(outputs, inputs // 32, seed=seed) ** 9 / 50).half() for seed in (3, 4))
    return Int4(packed_OJ, steps_OG, minima_OG, dtype)


def in_8_bits(x_NI: Tensor) -> Tensor:
    """The numbers of each group of 32 in 127 steps of its largest one, up and down."""
    groups_NGI = x_NI.float().unflatten(1, (-1, 32))
    largest_NG1 = groups_NGI.abs().amax(2, keepdim=True)
    steps_NGI = (groups_NGI * torch.full_like(largest_NG1, 127).div(largest_NG1)).round()
    return (steps_NGI.double() * (largest_NG1 / 127).double()).flatten(1)


LOW: dict[str, Callable[[int, int, torch.dtype], Int8 | Int4]] = {"int8": random_int8, "int4": random_int4}
SHAPES = {"int8": [(4, 1), (36, 7), (148, 33), (576, 97)], "int4": [(32, 1), (96, 7), (160, 33), (576, 97)]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "inputs", "outputs"), [(kind, *one) for kind in LOW for one in SHAPES[kind]])
def test_weights_in_8_and_4_bits_are_multiplied_as_they_are(
    operators: ctypes.CDLL, dtype: torch.dtype, kind: str, inputs: int, outputs: int
) -> None:
    """Not rounded to bf16 once scaled; row o's scales and bias go to output o. Inputs may be rounded to 16 bits;
    those of weights in 4 are to 8."""
    weight, bias = LOW[kind](outputs, inputs, dtype), random(outputs, dtype=dtype, seed=1)
    exact_OI = replace(weight, dtype=torch.float64).widened()
    for rows in (1, 3, 8, 21):
        x = random(rows, inputs, dtype=dtype, seed=2)
        taken = in_8_bits(x) if kind == "int4" else x.double()
        for b in (None, bias):
            exact = taken @ exact_OI.T + (0 if b is None else b.double())
            size = x.double().abs().amax(1, keepdim=True) * exact_OI.abs().sum(1) + 1
            layer = NativeLinear(weight, b, torch.float32)
            assert layer.weight_size == {"int8": 1, "int4": 0.625}[kind]
            assert ((layer(x) - exact).abs() / size).max() < 2**-15


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(
    operators: ctypes.CDLL, dtype: torch.dtype, value: float
) -> None:
    weights = (random(33, 160, dtype=dtype), random_int8(33, 160, dtype), random_int4(33, 160, dtype))
    for weight in weights:
        x = random(4, 160, dtype=dtype, seed=2)
        layer = NativeLinear(weight, None, torch.float32)
        before, x[2, 77] = layer(x), value
        assert not layer(x)[2].isfinite().any()
        assert torch.equal(layer(x)[[0, 1, 3]], before[[0, 1, 3]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_group_of_4_bits_that_is_not_finite_makes_its_outputs_so(operators: ctypes.CDLL, dtype: torch.dtype) -> None:
    """So that such a draft is found out, and not used with other weights."""
    weight = random(33, 160)
    weight[7, 40], weight[32, 159] = float("nan"), 1e6  # the latter is beyond fp16
    y = NativeLinear(replace(Int4.of(weight), dtype=dtype), None, torch.float32)(random(3, 160, dtype=dtype))
    assert (~y.isfinite()).any(0).nonzero().flatten().tolist() == [7, 32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_zeros_and_of_tiny_numbers_stay_what_they_are(operators: ctypes.CDLL, dtype: torch.dtype) -> None:
    layer = NativeLinear(random_int4(33, 160, dtype), None, torch.float32)
    y = layer((random(3, 160) * torch.tensor([[0], [1e-40], [1]])).to(dtype))
    assert y.isfinite().all() and y[0].eq(0).all() and y[1].abs().max() < 1e-30 and y[2].ne(0).any()


@pytest.mark.parametrize("kind", LOW)
def test_low_bits_are_widened_where_no_operator_takes_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = LOW[kind](33, 160, torch.bfloat16), random(4, 160, dtype=torch.bfloat16, seed=1)
    monkeypatch.setattr(native, "library", lambda: None)
    layer = linear(weight, out_dtype=torch.float32)
    assert isinstance(layer, TorchLinear) and layer.weight_size == (2 if packs_bf16() else 4)
    assert torch.allclose(layer(x), x.float() @ weight.widened().float().T, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_divides_by_the_root_mean_square(operators: ctypes.CDLL, dtype: torch.dtype) -> None:
    x, weight = random(5, 48, dtype=dtype), random(48, dtype=dtype, seed=1)
    exact = x.double() / (x.double().square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    precision = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(native.rms_norm(x, weight, 1e-5).double(), exact, rtol=precision, atol=0)


def test_numbers_are_rounded_to_the_nearest_bf16_like_pytorchs(operators: ctypes.CDLL) -> None:
    """Ties to even, overflow, infinities, NaN: a bias passes any fp32 number through."""
    patterns = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001]
    patterns += [0x7FFFFFFF, 0x80000000, 0xC0490FDB]
    values = torch.tensor([p - (1 << 32) if p >> 31 else p for p in patterns], dtype=torch.int32).view(torch.float32)
    linear = NativeLinear(torch.zeros(len(values), 2, dtype=torch.bfloat16), values, torch.bfloat16)
    got, expected = linear(torch.ones(1, 2, dtype=torch.bfloat16))[0], values.to(torch.bfloat16)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("kind", ["whole", *LOW])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_rows_have_the_same_bits_among_others(
    operators: ctypes.CDLL, threads: None, dtype: torch.dtype, kind: str
) -> None:
    inputs = 544 if kind == "int4" else 580
    weight = LOW[kind](300, inputs, dtype) if kind in LOW else random(300, inputs, dtype=dtype)
    layer, x = NativeLinear(weight, None, torch.float32), random(70, inputs, dtype=dtype, seed=1)
    alone = torch.cat([layer(row[None]) for row in x])
    for count in (1, 2):
        torch.set_num_threads(count)
        for rows in range(1, 71):
            assert torch.equal(layer(x[:rows]), alone[:rows])


@pytest.fixture(scope="module", params=[(6, 2, 16), (3, 1, 80)], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model by (query heads, key/value heads, head width), wide enough that several threads share its steps."""
    heads, kv_heads, width = request.param
    return save_model(
        tmp_path_factory.mktemp("model"),
        hidden_size=192,
        intermediate_size=320,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
    )


def native_decoder(folder: Path, dtype: str) -> Decoder:
    model = find_checkpoint(str(folder)).transformer(dtype, [CPU])
    assert model.stack.operators == "native"
    return Decoder(model)


def plain(decoder: Decoder, tokens: list[int], prompt: int) -> Tensor:
    """Logits of tokens[prompt:], decoded one by one after a prefill of the others."""
    decoder.prefill(tokens[:prompt])
    rows = []
    for token in tokens[prompt:]:
        rows.append(decoder.score(TokenTree.chain([token])).logits_NV[0])
        decoder.commit([0])
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chains_and_prompts_have_the_bits_of_plain_decoding(
    operators: ctypes.CDLL, threads: None, folder: Path, dtype: str
) -> None:
    decoder, tokens = native_decoder(folder, dtype), [(11 * i) % 90 + 1 for i in range(110)]
    expected = plain(decoder, tokens, 40)
    for count in (2, 1):
        torch.set_num_threads(count)
        decoder.prefill(tokens[:40])
        for nodes in (*range(1, 12), 23, 40, 70):
            assert torch.equal(decoder.score(TokenTree.chain(tokens[40 : 40 + nodes])).logits_NV, expected[:nodes])
        for length in (41, 42, 50, 97, 110):
            assert torch.equal(decoder.prefill(tokens[:length]).logits_NV[0], expected[length - 41])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("nodes", [2, 9, 60])
def test_tree_paths_have_the_bits_of_plain_decoding(
    operators: ctypes.CDLL, threads: None, folder: Path, dtype: str, nodes: int
) -> None:
    generator = torch.Generator().manual_seed(nodes)
    parents = [-1] + [int(torch.randint(max(0, i - 6), i, (), generator=generator)) for i in range(1, nodes)]
    tree = TokenTree(torch.randint(1, 95, (nodes,), generator=generator).tolist(), parents)
    decoder, prompt = native_decoder(folder, dtype), [(7 * i) % 90 + 1 for i in range(70)]
    decoder.prefill(prompt)
    logits = decoder.score(tree).logits_NV
    torch.set_num_threads(1)
    for leaf in range(nodes - 1, 0, -max(1, nodes // 4)):
        path = tree.path(leaf)
        expected = plain(decoder, prompt + tree.tokens_N[path].tolist(), 70)
        assert torch.equal(logits[path], expected)
        decoder.prefill(prompt)
        decoder.score(tree)
        decoder.commit(path)  # moves the path's rows together, across tiles of the cache
        after = decoder.score(TokenTree.chain([5])).logits_NV[0]
        assert torch.equal(after, plain(decoder, [*prompt, *tree.tokens_N[path].tolist(), 5], 70)[-1])


def test_what_does_not_fit_a_pointer_is_refused(folder: Path) -> None:
    layer = NativeLinear(random(8, 4), None, torch.float32)
    for x in (random(2, 6), random(4), random(2, 4).double()):
        with pytest.raises(ValueError, match=r"CPU tensor \[rows, 4\] of torch.float32"):
            layer(x)
    assert torch.equal(layer(random(4, 2).T), layer(random(4, 2).T.contiguous()))
    decoder = native_decoder(folder, "float32")
    with pytest.raises(ValueError, match="fit the cache"):
        decoder.model(torch.ones(9, dtype=torch.long), torch.arange(9), decoder._cache.view(570, TokenTree.chain([1])))


def test_linear_falls_back_where_inputs_are_odd() -> None:
    weight, x = random(5, 7), random(4, 7, seed=1)
    layer = linear(weight)
    assert isinstance(layer, TorchLinear)
    assert torch.allclose(layer(x), x @ weight.T, atol=1e-5)


def drawn_rows(seed: int) -> Tensor:
    """A few rows, not contiguous, often with equal numbers, sometimes with -inf."""
    drawn, generator = Random(seed), torch.Generator().manual_seed(seed)
    rows, columns = drawn.randint(1, 5), drawn.choice([1, 3, 15, 16, 17, 31, 33, 63, 65, 130, 900, 4097])
    numbers = torch.randn(rows, columns + 3, generator=generator) * drawn.choice([1, 20, 3000])
    if seed % 2:
        numbers = numbers.round()
    if seed % 5 == 0:
        numbers[0, : columns // 2] = -math.inf
    return numbers[:, :columns]


@pytest.mark.parametrize("seed", range(40))
def test_the_largest_of_a_row_is_the_first_of_equals(operators: ctypes.CDLL, seed: int) -> None:
    rows, drawn = drawn_rows(seed), Random(seed)
    if seed % 4 == 0:
        rows[-1, drawn.randrange(rows.shape[1])] = math.nan
    places, numbers = best.largest(rows)
    expected = rows.numpy().argmax(-1)  # which takes a NaN for the largest, too
    assert places == expected.tolist()
    np.testing.assert_array_equal(numbers, rows.numpy()[np.arange(len(rows)), expected])


@pytest.mark.parametrize("seed", range(40))
def test_the_likeliest_of_a_row_come_in_order_with_their_log_probabilities(operators: ctypes.CDLL, seed: int) -> None:
    rows, drawn = drawn_rows(seed), Random(seed)
    count = drawn.randint(1, min(12, rows.shape[1]))
    places, log_p = best.likeliest(rows, count)
    order = torch.sort(rows, descending=True, stable=True).indices[:, :count]
    assert places == order.tolist()
    expected = rows.double().log_softmax(-1).gather(-1, order)
    torch.testing.assert_close(torch.tensor(log_p, dtype=torch.float64), expected, rtol=2e-6, atol=2e-6)


def test_rows_whose_numbers_do_not_lie_side_by_side_are_looked_at_too() -> None:
    rows = torch.randn(7, 3).T
    assert best.largest(rows)[0] == rows.argmax(-1).tolist()
    assert best.likeliest(rows, 2)[0] == rows.topk(2).indices.tolist()
