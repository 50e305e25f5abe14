"""NaN, infinities and numbers at the edge: refused, told or computed rightly, and never an answer."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.proof.audit import distribution
from methods import get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.drafters.draft_model import draft_model
from methods.engine.decoder import PROBE_TOKENS, Decoder, probe_tokens
from methods.engine.sampling import Sampling, draw, probabilities
from methods.engine.tree import TokenTree
from methods.engine.verify import verify
from methods.errors import RunError, UserError
from methods.models import Models
from tests.tiny import VOCABULARY

CPU = [torch.device("cpu")]
EMBEDDING, MATRIX = "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"
GREEDY, SAMPLED = Sampling(), Sampling(1.0, seed=1)

pytestmark = pytest.mark.usefixtures("one_thread")


def spoilt(folder: Path, to: Path, name: str, value: float, row: int | slice = slice(None)) -> Path:
    """A copy of a model with a row of a tensor set to a value."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    weights[name][row] = value
    save_file(weights, to / "model.safetensors")
    return to


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_target_without_finite_logits_is_refused_by_name(tiny: Path, tmp_path: Path, value: float) -> None:
    folder = spoilt(tiny, tmp_path / "spoilt", MATRIX, value)
    with pytest.raises(UserError, match=f"expected {folder} to give finite logits"):
        _ = Models(str(folder), None, "float32", CPU).target


@pytest.mark.parametrize("kind", ["model", "sorted", "first-2", "int8", "int4"])
def test_so_is_a_draft(tiny: Path, tiny_draft: Path, tiny_sorted: Path, tmp_path: Path, kind: str) -> None:
    if kind in ("model", "sorted"):
        name = "model.layers.0.input_layernorm.weight"
        draft = spoilt(tiny_draft if kind == "model" else tiny_sorted, tmp_path / "spoilt", name, float("nan"))
        pair = Models(str(tiny), str(draft), "float32", CPU)
    else:
        target = spoilt(tiny, tmp_path / "spoilt", "model.norm.weight", float("nan"))
        pair = Models(str(target), kind, "float32", CPU, drafts_only=True)
    with pytest.raises(UserError, match=f"expected the draft {pair.draft_source} to give finite logits"):
        _ = draft_model(pair)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["autoregressive", "sps", "pld"])
def test_a_pass_without_finite_logits_ends_the_run(
    tiny: Path, tiny_draft: Path, tmp_path: Path, name: str, sampling: Sampling
) -> None:
    """The embedding of one token, which no probe asks for, is no number."""
    asked = set(probe_tokens(Decoder(Models(str(tiny), None, "float32", CPU).target.model, PROBE_TOKENS)))
    token = next(token for token in range(VOCABULARY) if token not in asked)
    folder = spoilt(tiny, tmp_path / "spoilt", EMBEDDING, float("nan"), token)
    method = build_method(get_method(name), Models(str(folder), str(tiny_draft), "float32", CPU, max_length=80), {})
    with pytest.raises(RunError, match="logits that are not finite"):
        generate(method, [1, 2, token, 3], sampling, Limits(frozenset(), 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_no_token_is_chosen_by_what_is_no_number(value: float, sampling: Sampling) -> None:
    logits = torch.zeros(1, 5)
    logits[0, 2] = value
    with pytest.raises(RunError, match="not finite"):
        verify(TokenTree.chain([0]), logits, sampling, sampling.generator("verify"))
    with pytest.raises(RunError, match="not finite"):
        verify(TokenTree.chain([0]), torch.full((1, 5), -torch.inf), sampling, sampling.generator("verify"))


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-300, 1e-5])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.9), (2, 0.5)])
def test_the_smallest_temperatures_are_greedy(temperature: float, top_k: int, top_p: float) -> None:
    """And two equal logits share what there is; the second implementation, of the audit, agrees."""
    logits = torch.tensor([[1.0, 90.0, -3e38, 89.0], [7.0, -7.0, 7.0, 0.0]])
    sampling = Sampling(temperature, top_k, top_p)
    p = probabilities(logits, sampling)
    expected = torch.tensor([[0, 1, 0, 0], [0.5, 0, 0.5, 0]], dtype=torch.float64)
    if top_p == 0.5:
        expected[1] = torch.tensor([1, 0, 0, 0])
    assert torch.equal(p, expected)
    assert draw(p[0], sampling.generator("verify")) == 1
    for row, expected_V in zip(logits.numpy(), expected.numpy(), strict=True):
        assert (distribution(row, sampling) == expected_V).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_other_temperatures_are_a_softmax(temperature: float) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 20
    expected = torch.softmax(logits.double() / temperature, -1)
    torch.testing.assert_close(probabilities(logits, Sampling(temperature)), expected, rtol=1e-12, atol=0)


def test_sampling_at_the_smallest_temperature_is_lossless(tiny: Path, tiny_draft: Path) -> None:
    pair, limits = Models(str(tiny), str(tiny_draft), "float32", CPU, max_length=80), Limits(frozenset(), 24)
    greedy = generate(build_method(get_method("autoregressive"), pair, {}), [1, 2, 3], GREEDY, limits).token_ids
    for name in ("autoregressive", "sps"):
        method = build_method(get_method(name), pair, {})
        assert generate(method, [1, 2, 3], Sampling(1e-308), limits).token_ids == greedy
