"""Medusa's and Hydra's heads: what they draft as chains, layouts of their files, and files that do not fit. Their trees
and forward passes: test_goldens.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from methods import BASELINE, get_method
from methods.base import Generation, Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.drafters import hydra, medusa
from methods.drafters.base import ChainDrafter
from methods.drafters.medusa import heads_of
from methods.engine.int8 import SCALE, Int8
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.engine.weights import TOKENS
from methods.errors import UserError
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.target import Target
from tests.goldens import GOLDENS

CPU = [torch.device("cpu")]
CHAINS = {"medusa": "medusa", "hydra": "hydra_mlp", "hydra++": "hydra_prefix_mlp"}  # drafter -> golden
PROMPT = json.loads((GOLDENS / "medusa/traces.jsonl").read_text().splitlines()[0])["prompt"]
LIMITS = Limits(frozenset(), 60)
Tensors = dict[str, Tensor]
pytestmark = pytest.mark.usefixtures("one_thread")


def golden_models(golden: str, **changes: Any) -> Models:
    return Models(str(GOLDENS / "target"), str(GOLDENS / golden / "head"), "float32", CPU, **changes)


def chain_of(name: str) -> tuple[Models, ChainDrafter]:
    models = golden_models(CHAINS[name])
    return models, build_chain_drafter(get_method(f"{name.rstrip('+')}@shape=chain"), models, {})


def begun(models: Models, *drafters: ChainDrafter) -> Target:
    """Behind the prompt and the first token."""
    target = Target(models.target, drafters[0].taps)
    first, features_TF = target.start(PROMPT, Sampling())
    for drafter in drafters:
        drafter.begin(PROMPT, Sampling(), features_TF)
        drafter.settle(first)
    return target


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_the_trees_best_path_and_ends_with_the_heads(name: str) -> None:
    models, drafter = chain_of(name)
    begun(models, drafter)
    drafted = drafter.draft(2).tokens_G + drafter.draft(1).tokens_G + drafter.draft(9).tokens_G
    assert drafter.drafted == drafted and len(drafted) == drafter.heads.count  # type: ignore[attr-defined]
    assert drafter.draft(3).tokens_G == []
    method: Any = build_method(get_method(name.rstrip("+")), models, {})
    method.start(PROMPT, Sampling())
    tree, node, path = method.drafter.propose(63), 0, []
    while tree.children[node]:
        node = tree.children[node][0]
        path.append(int(tree.tokens_N[node]))
    assert path == drafted[:4]


def alone(target: Target) -> TokenTree:
    """Nothing is drafted."""
    return TokenTree.chain([target.pending])


@pytest.mark.parametrize("name", CHAINS)
def test_behind_confirmed_drafts_it_goes_on_from_the_new_state(name: str) -> None:
    """As a drafter that has settled there, and has drafted the same tokens since."""
    (models, drafter), (_, fresh) = chain_of(name), chain_of(name)
    target = begun(models, drafter, fresh)
    while (drafted := drafter.draft(2).tokens_G)[:1] != (outcome := target.judge(alone(target))).tokens:
        drafter.settle(outcome)  # until a draft is right
        fresh.settle(outcome)
    first, second = drafted
    drafter.confirm(outcome)
    fresh.settle(outcome)
    assert (drafter.pending, drafter.drafted) == (first, [second])
    fresh.drafted = [second]
    assert drafter.draft(9).tokens_G == fresh.draft(9).tokens_G != []


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_kept_in_turns_and_by_pearl(name: str) -> None:
    """Heads that were trained, so that drafts are confirmed too."""
    row, models = name.rstrip("+"), golden_models(CHAINS[name])
    expected = generate(build_method(get_method(BASELINE), models, {}), PROMPT, Sampling(), LIMITS).token_ids
    turns = generate(build_method(get_method(f"{row}@shape=chain@gamma=3"), models, {}), PROMPT, Sampling(), LIMITS)
    pearl = pearl_answer(f"pearl-{row}", models)
    assert turns.token_ids == pearl.token_ids == expected
    assert max(turns.accept_lengths) > 2 and max(pearl.accept_lengths) > 1 and sum(pearl.accepted) > 10


def pearl_answer(name: str, models: Models) -> Generation:
    spec = get_method(f"{name}@gamma=2")
    theirs = Models(models.target_source, models.draft_source, "float32", CPU, drafts_only=True)
    with local_draft_rank({spec.name: build_chain_drafter(spec, theirs, {})}) as (link, ready):
        models.link = link
        method: Any = build_method(spec, models, {})
        method.meet(ready[spec.name])
        return generate(method, PROMPT, Sampling(), LIMITS)


def stored(golden: str) -> Tensors:
    path = next((GOLDENS / golden / "head").glob("*.pt"))
    tensors: Tensors = torch.load(path, weights_only=True)
    return tensors


def best_of(folder: Path) -> list[list[int]]:
    heads = heads_of(Models(str(GOLDENS / "target"), str(folder), "float32", CPU))
    state_1D = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    return heads.best(state_1D, 0, heads.count, 6)


def as_vllm(tensors: Tensors) -> Tensors:
    """Its names, and no biases, which its heads need not have."""
    named: Tensors = {}
    for name, tensor in tensors.items():
        i, place, *_ = name.split(".")
        new = f"medusa_heads.blocks.{i}.layers.0.weight" if place == "0" else f"medusa_heads.lm_heads.{i}.weight"
        named |= {} if name.endswith("bias") else {new: tensor}
    return named


def test_published_layouts_are_read_alike(tmp_path: Path) -> None:
    tensors = stored("medusa")
    target = dict(Models(str(GOLDENS / "target"), None, "float32", CPU).target_checkpoint.weights)
    inside = {f"medusa_head.{name}": tensor for name, tensor in tensors.items()}
    expected = best_of(GOLDENS / "medusa/head")
    for number, (file, content) in enumerate(
        [("medusa_lm_head.safetensors", tensors), ("model.safetensors", target | inside), ("pytorch_model.bin", inside)]
    ):
        assert best_of(write(tmp_path / str(number), content, file)) == expected
    unbiased = {name: torch.zeros_like(t) if name.endswith("bias") else t for name, t in tensors.items()}
    ours, theirs = write(tmp_path / "ours", unbiased), write(tmp_path / "theirs", as_vllm(tensors), "model.safetensors")
    assert best_of(ours) == best_of(theirs) != expected


def test_a_map_of_tokens_as_vllm_has_it_names_the_rows_of_lm_heads(tmp_path: Path) -> None:
    known = torch.tensor([90, 3, 17, 55, 4, 101])
    named = as_vllm(stored("medusa"))
    fewer = {name: tensor[known] if "lm_heads" in name else tensor for name, tensor in named.items()}
    whole = write(tmp_path / "whole", named, "model.safetensors")
    some = write(tmp_path / "some", fewer | {"token_map": known}, "model.safetensors")
    for i, row in enumerate(best_of(some)):
        assert set(row) == set(known.tolist())
        assert row == sorted(row, key=order(whole, i).index)


def test_heads_without_lm_heads_have_the_targets(tmp_path: Path) -> None:
    """Whole or for some tokens; and in int8 with the blocks."""
    target = Models(str(GOLDENS / "target"), None, "float32", CPU).target_checkpoint.weights["lm_head.weight"]
    blocks = {name: tensor for name, tensor in stored("medusa").items() if "linear" in name}
    own = write(tmp_path / "own", blocks | {f"{i}.1.weight": target for i in range(5)})
    whole = best_of(write(tmp_path / "whole", blocks))
    assert whole == best_of(own)
    int8 = {name: Int8.of(tensor) for name, tensor in blocks.items() if tensor.dim() == 2}
    small = blocks | {name: one.values_OI for name, one in int8.items()}
    small |= {name + SCALE: one.scales_O for name, one in int8.items()}
    assert [row[0] for row in best_of(write(tmp_path / "int8", small))] == [row[0] for row in whole]
    known = sorted({token for row in whole for token in row[1:3]}, reverse=True)
    some = best_of(write(tmp_path / "some", blocks | {TOKENS: torch.tensor(known)}))
    for i, row in enumerate(some):
        assert row == sorted(row, key=order(tmp_path / "own", i).index)
    assert all(set(row) <= set(known) for row in some)


def order(folder: Path, i: int) -> list[int]:
    """All tokens as head i has them."""
    heads = heads_of(Models(str(GOLDENS / "target"), str(folder), "float32", CPU))
    return heads.best(torch.randn(1, 64, generator=torch.Generator().manual_seed(1)), i, i + 1, 128)[0]


def write(folder: Path, tensors: Tensors, file: str = "medusa_lm_head.pt", config: str = "{}") -> Path:
    folder.mkdir()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, folder / file) if file.endswith(".safetensors") else torch.save(tensors, folder / file)
    (folder / "config.json").write_text(config)
    return folder


def changed(**tensors: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda stored: stored | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def without(ending: str) -> Callable[[Tensors], Tensors]:
    """Without the first tensor whose name ends so."""
    return lambda stored: {
        name: stored[name] for name in stored if name != next(n for n in stored if n.endswith(ending))
    }


def every(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda stored: {name: change(tensor) for name, tensor in stored.items()}


def doubled(tensor: Tensor) -> Tensor:
    return tensor.repeat(*[2] * tensor.dim())


def first_nan(tensors: Tensors) -> Tensors:
    first = {name: t.clone() for name, t in tensors.items() if name.endswith("linear.bias")}
    next(iter(first.values()))[3] = torch.nan
    return tensors | first


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (without("linear.bias"), r"misses weights: 0\.\d\.linear\.bias; fetch it again"),
    "unexpected": (changed(colour=torch.zeros(2)), "has unexpected weights: colour; fetch it again"),
    "of another target": (
        every(doubled),
        r"width 128 and vocabulary 256, not for this target \(width 64, vocab.* 128\)",
    ),
    "NaN": (first_nan, r"expected finite numbers in \S+ of \S+, got NaN"),
    "EAGLE": (lambda _: {"fc.weight": torch.zeros(64, 128)}, "looks like an EAGLE head; choose a head of this target"),
    "EAGLE-3": (lambda _: {"d2t": torch.zeros(9)}, "looks like an EAGLE-3 head"),
    "a model": (lambda _: {"model.embed_tokens.weight": torch.zeros(9, 4)}, "looks like a language model"),
    "nothing known": (lambda _: {"x": torch.zeros(9)}, "looks like none of those that are known"),
    "integers": (
        every(lambda t: t.int()),
        "expected .* in float32, bfloat16 or float16, or int8 for matrices, got int32",
    ),
    "int8 without scales": (every(lambda t: t.to(torch.int8) if t.dim() == 2 else t), "misses weights"),
    "tokens twice": (changed(lm_head__tokens=torch.zeros(3).int()), "expected different tokens in lm_head.tokens"),
    "tokens beyond": (changed(lm_head__tokens=torch.tensor([500])), "expected tokens below 128 in lm_head.tokens"),
}
MODULES: list[tuple[Any, str]] = [(medusa, "medusa"), (hydra, "hydra_mlp"), (hydra, "hydra_prefix_mlp")]


@pytest.mark.parametrize(("module", "golden"), MODULES, ids=[golden for _, golden in MODULES])
@pytest.mark.parametrize("what", WRONG)
def test_files_that_do_not_fit_are_one_sentence(tmp_path: Path, module: Any, golden: str, what: str) -> None:
    change, sentence = WRONG[what]
    folder = write(tmp_path / "head", change(stored(golden)), module.FILES[1])
    models = Models(str(GOLDENS / "target"), str(folder), "float32", CPU)
    with pytest.raises(UserError, match=sentence) as told:
        module.check(models) if what != "NaN" else module.heads_of(models)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("module", "golden"), MODULES[:2])
def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path, module: Any, golden: str) -> None:
    models = Models(str(GOLDENS / "target"), str(tmp_path), "float32", CPU)
    with pytest.raises(
        UserError, match=f"a file {module.FILES[0]} or {module.FILES[1]} or model.safetensors, found none"
    ):
        module.check(models)
    whole = next((GOLDENS / golden / "head").glob("*.pt")).read_bytes()
    (tmp_path / module.FILES[1]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="torn or holds more; fetch it again"):
        module.check(models)
    other = {"medusa": "hydra_mlp", "hydra_mlp": "medusa"}[golden]
    (tmp_path / module.FILES[1]).unlink()
    save_file(stored(other), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"to be {module.KIND}, but it looks like (Hydra|Medusa) heads"):
        module.check(models)


@pytest.mark.parametrize("offset", [1, "0", None])
def test_hydra_heads_that_read_another_state_are_refused(tmp_path: Path, offset: object) -> None:
    config = json.dumps({"hidden_state_offset": offset})
    folder = write(tmp_path / "head", stored("hydra_mlp"), "hydra_lm_head.pt", config)
    with pytest.raises(UserError, match=r"expected hidden_state_offset 0 in the config\.json"):
        hydra.check(Models(str(GOLDENS / "target"), str(folder), "float32", CPU))
