"""The target in 4 bits: the codec, the weights that it gives a draft, and the draft."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from methods import BASELINE, get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.drafters.draft_model import draft_model
from methods.drafters.language_model import build
from methods.engine.backends import cpu as native
from methods.engine.decoder import Decoder
from methods.engine.int4 import GROUP, MINIMUM, Int4
from methods.engine.int8 import HEAD, SCALE
from methods.engine.loader import find_checkpoint
from methods.engine.low_bits import LowBitWeights
from methods.engine.sampling import Sampling
from methods.engine.weights import TOKENS
from methods.errors import UserError
from methods.models import Models
from methods.pairs import get_pair
from tests.tiny import VOCABULARY, save_model

CPU = [torch.device("cpu")]
LIMITS = Limits(frozenset(), 40)
PROMPT = [5, 9, 2, 77, 31, 8, 40]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def q4_1(rows: int, inputs: int) -> Tensor:
    """Weights as they come in such blocks, in fp32: both ends of a group's levels are taken."""
    values = (random(rows, inputs // GROUP, GROUP) * 4 + 8).round().clamp(0, 15)
    values[..., 3], values[..., 30] = 0, 15
    steps = (random(rows, inputs // GROUP, 1, seed=1).abs() / 16).half().float()
    minima = (steps * (random(rows, inputs // GROUP, 1, seed=2) - 7)).half().float()
    return (values * steps + minima).flatten(1)


def min_max(weight: Tensor) -> Tensor:
    """Levels from a group's smallest to its largest weight, as Q4_1 has them, with step and minimum in fp16."""
    groups = weight.unflatten(1, (-1, GROUP))
    minima = groups.amin(2, keepdim=True).half().float()
    steps = ((groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)) / 15).half().float()
    return (((groups - minima) / steps).round().clamp(0, 15) * steps + minima).flatten(1)


def errors(weight: Tensor, other: Tensor) -> Tensor:
    """Squared, of each group."""
    return (weight.float() - other.float()).unflatten(1, (-1, GROUP)).square().sum(2)


def test_a_grid_of_4_bits_is_found_exactly() -> None:
    weight = q4_1(300, 160)
    assert torch.equal(Int4.of(weight).widened(), weight)


@pytest.mark.parametrize("source", ["random", "embedded"])
def test_on_a_grid_that_was_rounded_to_bf16_no_value_is_lost(source: str) -> None:
    """The levels stay the same; steps and minima move by less than bf16 has moved the weights."""
    name = "model.layers.7.mlp.down_proj.weight"
    weights = find_checkpoint(get_pair("smollm2-135m").target).weights if source == "embedded" else {}
    weight = weights[name] if source == "embedded" else q4_1(300, 160)
    exact, rounded = Int4.of(weight), Int4.of(weight.bfloat16())
    assert torch.equal(exact.widened(), weight)
    assert (exact.packed_OJ != rounded.packed_OJ).float().mean() < 1e-4
    wide = Int4(rounded.packed_OJ, rounded.steps_OG, rounded.minima_OG, torch.float32).widened()
    assert errors(wide, weight.bfloat16()).sum() < 1.1 * errors(weight, weight.bfloat16()).sum()


def test_all_matrices_of_the_embedded_target_are_on_the_grid() -> None:
    weights = find_checkpoint(get_pair("smollm2-135m").target).weights
    for layer in (0, 29):
        for part in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"):
            weight = weights[f"model.layers.{layer}.{part}.weight"]
            assert torch.equal(Int4.of(weight).widened(), weight)


@pytest.mark.parametrize("size", [1e-3, 0.05, 30])
def test_the_search_is_never_worse_than_the_whole_range_and_better_by_a_tenth(size: float) -> None:
    for weight in (random(100, 640), random(100, 640) ** 3, random(100, 640).bfloat16().float()):
        found, plain = (
            errors(Int4.of(weight * size).widened(), weight * size),
            errors(min_max(weight * size), weight * size),
        )
        assert (found <= plain).all() and found.sum() < 0.9 * plain.sum()


def test_what_has_no_step_keeps_its_number() -> None:
    weight = torch.cat((torch.zeros(1, 32), torch.full((1, 32), -0.75), torch.full((1, 32), 3e-8)))
    assert torch.allclose(Int4.of(weight).widened(), weight, atol=3e-8)


def test_values_are_packed_in_order_and_shapes_are_the_matrixs() -> None:
    weight = q4_1(3, 64)
    int4 = Int4.of(weight.double())
    assert int4.shape == (3, 64) and int4.packed_OJ.shape == (3, 32) and int4.steps_OG.shape == (3, 2)
    assert int4.widened().dtype == int4.dtype == torch.float64
    assert torch.equal(int4.packed_OJ[:, 5], int4.values_OI[:, 10] + 16 * int4.values_OI[:, 11])


def test_one_that_is_no_number_spoils_its_group_only() -> None:
    weight = q4_1(3, 64)
    weight[1, 40] = float("nan")
    wide = Int4.of(weight).widened()
    assert wide[1, 32:].isnan().all() and torch.equal(wide[:, :32], weight[:, :32]) and torch.equal(wide[2], weight[2])


# The weights of a draft -----------------------------------------------------------------------------------------------


def test_matrices_of_other_widths_are_in_8_bits_and_so_is_the_head() -> None:
    weights = {"a.weight": random(6, 48), "b.weight": random(6, 64), "c.bias": random(6), "d.weight": random(6)}
    low = LowBitWeights(weights, random(10, 64), 4)
    types = [low[name].dtype for name in ("a.weight", "b.weight", "c.bias", "d.weight", HEAD)]
    assert types == [torch.int8, torch.uint8, torch.float32, torch.float32, torch.int8]
    assert low["a.weight" + SCALE].shape == (6,) and low["b.weight" + SCALE].shape == (6, 2)
    assert "b.weight" + MINIMUM in low and "a.weight" + MINIMUM not in low and "c.bias" + SCALE not in low
    assert TOKENS not in low and set(low) == {*weights, HEAD} and len(low) == 5


@pytest.mark.parametrize("bits", [4, 8])
def test_a_reduced_head_has_the_rows_of_its_tokens(bits: int) -> None:
    embedding, tokens = random(10, 64), torch.tensor([0, 3, 9])
    for weights in ({}, {HEAD: embedding * 2}):  # tied, and not
        low, whole = (LowBitWeights(weights, embedding, bits, kept) for kept in (tokens, None))
        assert torch.equal(low[HEAD], whole[HEAD][tokens]) and torch.equal(
            low[HEAD + SCALE], whole[HEAD + SCALE][tokens]
        )
        assert torch.equal(low[TOKENS], tokens) and set(low) == {HEAD, TOKENS}


# The draft ------------------------------------------------------------------------------------------------------------


def on_the_grid(folder: Path, **changes: int) -> Path:
    """A random model of layers that 4 bits hold."""
    file = save_model(folder, layers=3, **changes) / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    for name, tensor in weights.items():
        if tensor.dim() > 1 and tensor.shape[1] % GROUP == 0 and name.startswith("model.layers"):
            weights[name] = Int4.of(tensor).widened()
    save_file(weights, file)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("source, least", [("int4", 0.7), ("int4-60", 0.1), ("int8-60", 0.1)])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"hidden_size": 48}], ids=str)
def test_the_target_in_low_bits_drafts_and_changes_nothing(
    operators: str, tmp_path: Path, changes: dict[str, int], source: str, least: float, dtype: str
) -> None:
    pair = Models(str(on_the_grid(tmp_path, **changes)), source, dtype, CPU)
    got = generate(build_method(get_method("sps"), pair, {"gamma": 3}), PROMPT, Sampling(), LIMITS)
    own = generate(build_method(get_method(BASELINE), pair, {}), PROMPT, Sampling(), LIMITS)
    assert got.token_ids == own.token_ids
    assert sum(got.accepted) > least * sum(got.drafted)  # by chance one in 96
    assert len(build(pair).tokens_R) == (60 if source.endswith("60") else VOCABULARY)


def test_layers_on_the_grid_give_the_targets_own_states(operators: str, tmp_path: Path) -> None:
    """But for the inputs, which native operators round to 8 bits; so nothing lies in another place."""
    pair = Models(str(on_the_grid(tmp_path)), "int4", "float32", CPU)
    states = []
    for model in (draft_model(pair), pair.target.model):
        tokens = torch.tensor(PROMPT)
        view = model.new_cache(16).prompt()
        states.append(model(tokens, torch.arange(len(tokens)), view)[0])
    assert (states[0] - states[1]).norm() < 0.05 * states[1].norm()


def test_drafts_are_the_same_again_and_on_a_rank_of_their_own(operators: str, tiny: Path) -> None:
    shared, own = (Models(str(tiny), "int4-60", "bfloat16", CPU, drafts_only=only) for only in (False, True))
    shared.target.prefill(PROMPT)
    logits = []
    for pair in (shared, own, own):
        decoder = Decoder(draft_model(pair))
        decoder.prefill(PROMPT)
        logits.append(decoder.extend([7, 8]).logits_NV)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[1], logits[2])
    assert build(shared).tokens_R.tolist() == list(range(60))


@pytest.mark.skipif(native.library() is None, reason="no native operators")
def test_it_reads_five_bits_a_weight_and_eight_of_the_head(tiny: Path) -> None:
    whole, low, reduced = (draft_model(Models(str(tiny), f"int{kind}", "bfloat16", CPU)) for kind in ("8", "4", "4-50"))
    width = whole.config.width
    layers = whole.weight_bytes - VOCABULARY * width
    assert low.weight_bytes == 0.625 * layers + VOCABULARY * width
    assert reduced.weight_bytes == 0.625 * layers + 50 * width


@pytest.mark.parametrize("source", ["int4-0", "int4-97", "int8-97", "int4-99999999999999999999"])
def test_a_head_of_no_tokens_or_of_more_than_there_are_is_refused(tiny: Path, source: str) -> None:
    with pytest.raises(UserError, match=f"expected a draft that knows 1 to 96 of the target's tokens, got {source}$"):
        draft_model(Models(str(tiny), source, "float32", CPU))


@pytest.mark.parametrize("source", ["int4-", "int4-some", "int4-5-5", "int5", "int4@head=50", "INT4"])
def test_what_is_spelt_in_another_way_is_no_draft(tiny: Path, source: str) -> None:
    with pytest.raises(UserError, match=f"expected a model folder, a .gguf file or a hub id .*, got '{source}'$"):
        draft_model(Models(str(tiny), source, "float32", CPU))
