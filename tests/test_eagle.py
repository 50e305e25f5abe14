"""EAGLE heads: file formats, chains, trees that are drawn, bad files, the self-check. The published numbers are in
test_goldens.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.proof.golden import eagle
from evaluation.proof.golden.checks import check_golden
from evaluation.proof.golden.folder import Golden
from evaluation.proof.tiny_pair import enumerate_method
from methods import get_method
from methods.base import Limits, generate
from methods.build import build_chain_drafter, build_drafter, build_method, check_weights
from methods.drafters.eagle.drafters import EagleChain, Reader, StaticTree
from methods.drafters.eagle.files import EAGLE, EAGLE3, Reading, load
from methods.drafters.eagle.self_check import compare, warning
from methods.engine.int8 import Int8
from methods.engine.sampling import Sampling
from methods.engine.transformer import FINAL
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.target import Outcome, Target
from tests.goldens import GOLDENS

PROMPT = [(7 * i) % 90 + 1 for i in range(30)]
GREEDY = Sampling()
Files = dict[str, Tensor]


def models(target: Path, head: Path, dtype: str = "float32") -> Models:
    return Models(str(target), str(head), dtype, [torch.device("cpu")])


@pytest.mark.parametrize("reading", [Reading(shift=1), Reading(norm_before_residual=True), Reading(rope=100)])
def test_a_head_that_is_read_wrongly_differs_from_the_published_code(reading: Reading) -> None:
    different = {one.what for one in eagle.check(Golden(GOLDENS / "eagle3"), EAGLE3, reading) if one.first}
    assert "trees, small" in different


def test_without_true_features_fewer_drafts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accept lengths tell whether decided tokens are read again with the target's features."""
    add = Reader.add

    def stale(self: Reader, outcome: Outcome) -> None:
        features = outcome.features_AF
        assert features is not None
        add(self, Outcome(outcome.tokens, outcome.path_A, features[:1].expand_as(features)))

    monkeypatch.setattr(Reader, "add", stale)
    assert any(one.what.startswith("accept lengths") and one.first for one in check_golden(GOLDENS / "eagle2"))


# chains ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_chain_goes_on_behind_confirmed_drafts_as_a_new_one_would(
    tiny: Path, weights: dict[str, Path], kind: str
) -> None:
    both = models(tiny, weights[kind])
    drafter = build_chain_drafter(get_method(f"pearl-{kind}"), both, {})
    target = Target(both.target, drafter.taps)
    first, features = target.start(PROMPT, GREEDY)
    drafter.begin(PROMPT, GREEDY, features)
    drafter.settle(first)
    tokens = drafter.draft(3).tokens_G
    read = both.target.score(TokenTree.chain([first.tokens[0], *tokens]), drafter.taps)
    assert read.features_NF is not None
    drafter.confirm(Outcome(tokens, [0, 1, 2], read.features_NF[:3], leaf_kept=True))
    assert isinstance(drafter, EagleChain) and drafter.drafted == []
    got = drafter.draft(2).tokens_G
    fresh = EagleChain(drafter.head, drafter.taps, both.vocabulary)
    fresh.begin(PROMPT, GREEDY, features)
    assert first.features_AF is not None
    fresh.settle(Outcome([first.tokens[0]], [0], first.features_AF))
    fresh.settle(Outcome(tokens, [0, 1, 2], read.features_NF[:3]))
    assert fresh.draft(2).tokens_G == got


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_chain_is_the_trees_first_path(tiny: Path, weights: dict[str, Path], kind: str) -> None:
    both = models(tiny, weights[kind])
    spec = get_method("eagle2" if kind == "eagle" else "eagle3")
    drafters = [
        build_drafter(spec, both, {"shape": shape, "depth": 4, "branches": 1, "nodes": 4})
        for shape in ("tree", "chain")
    ]
    proposed = []
    for drafter in drafters:
        first, features = Target(both.target, drafter.taps).start(PROMPT, GREEDY)
        drafter.begin(PROMPT, GREEDY, features)
        drafter.settle(first)
        proposed.append(drafter.propose(4).tokens_N.tolist())
    assert proposed[0] == proposed[1] and len(proposed[0]) == 5


# sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["eagle", "eagle@shape=chain", "eagle2", "eagle3", "eagle3@shape=chain", "pearl-eagle3"]
)
def test_sampled_answers_have_the_targets_distribution(name: str) -> None:
    found = enumerate_method(get_method(name), {}, Sampling(1.0))
    assert found.difference < 1e-9 and found.runs > found.answers


def with_replacement(self: StaticTree, logits_R: Tensor, count: int) -> tuple[list[int], list[Tensor]]:
    """The first sibling's q for all of them."""
    tokens, rows = children(self, logits_R, count)
    return tokens, rows[:1] * len(rows)


children = StaticTree._children


def test_siblings_are_judged_by_the_distribution_they_were_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StaticTree, "_children", with_replacement)
    assert enumerate_method(get_method("eagle"), {}, Sampling(1.0)).difference > 1e-6


# formats --------------------------------------------------------------------------------------------------------------


def edited(source: Path, folder: Path, change: Callable[[Files], None], **config: Any) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    table = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(table))
    return folder


def drafts(target: Path, head: Path, name: str, dtype: str = "float32") -> list[int]:
    """The trees of an answer, one after the other."""
    both = models(target, head, dtype)
    method = build_method(get_method(name), both, {"nodes": 12})
    drafter, found = method.drafter, list[int]()  # type: ignore[union-attr]
    propose = drafter.propose

    def kept(room: int) -> Any:
        tree = propose(room)
        found.extend(tree.tokens_N.tolist())
        return tree

    drafter.propose = kept
    generate(method, PROMPT, GREEDY, Limits(frozenset(), 20))
    return found


def absolute(files: Files) -> None:
    files["d2t"] = files["d2t"] + torch.arange(len(files["d2t"]))


def as_speculators(files: Files) -> None:
    for name in [name for name in files if name.startswith("midlayer.")]:
        files[name.replace("midlayer.", "layers.0.")] = files.pop(name)


def with_rubbish(files: Files) -> None:
    files["embed_tokens.weight"] = torch.randn(96, 32)
    files["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)


@pytest.mark.parametrize(
    "kind, change, config",
    [
        ("eagle", with_rubbish, {}),
        ("eagle3", absolute, {}),
        ("eagle3", lambda files: files.pop("t2d"), {}),
        ("eagle3", as_speculators, {"norm_before_residual": False, "fc_norm": False, "norm_output": False}),
        (
            "eagle3",
            lambda files: None,
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 1]}, "eagle_aux_hidden_state_layer_ids": None},
        ),
    ],
)
def test_layouts_of_the_same_head_draft_the_same(
    tiny: Path, weights: dict[str, Path], tmp_path: Path, kind: str, change: Callable[[Files], None], config: Any
) -> None:
    assert drafts(tiny, edited(weights[kind], tmp_path / "head", change, **config), kind) == drafts(
        tiny, weights[kind], kind
    )


def tap_norms(files: Files) -> None:
    files.update({f"fc_norm.{i}.weight": torch.rand(32) + 0.5 for i in range(3)})


@pytest.mark.parametrize(
    "kind, change, config",
    [
        ("eagle", lambda files: files.pop("fc.bias"), {}),
        ("eagle3", lambda files: files.update({"input_norm.weight": torch.rand(96) + 0.5}), {}),
        ("eagle3", tap_norms, {}),
        ("eagle3", lambda files: None, {"norm_output": True}),
        ("eagle3", lambda files: None, {"norm_before_residual": True}),
        (
            "eagle3",
            lambda files: files.update({"embed_tokens.weight": torch.randn(96, 32)}),
            {"embed_requires_grad": True},
        ),
    ],
)
@pytest.mark.parametrize("shape", ["tree", "chain"])
def test_variants_of_a_head_are_read_and_stay_exact(
    tiny: Path,
    weights: dict[str, Path],
    tmp_path: Path,
    kind: str,
    change: Callable[[Files], None],
    config: Any,
    shape: str,
) -> None:
    """Each draws other trees than the head without it, and the target's own text."""
    if change is not None and kind == "eagle":
        weights = weights | {
            kind: edited(weights[kind], tmp_path / "biased", lambda f: f.update({"fc.bias": torch.randn(32)}))
        }
    head = edited(weights[kind], tmp_path / "head", change, **config)
    assert drafts(tiny, head, kind) != drafts(tiny, weights[kind], kind)
    both, limits = models(tiny, head), Limits(frozenset(), 40)
    expected, got = (
        generate(build_method(get_method(name), both, {"shape": shape}), PROMPT, GREEDY, limits).token_ids
        for name in ("autoregressive", kind)
    )
    assert got == expected


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_int8_heads_over_part_of_the_vocabulary(
    tiny: Path, weights: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    known = torch.arange(0, 96, 2, dtype=torch.int32)

    def stored(files: Files) -> None:
        if kind == "eagle":
            files["lm_head.tokens"] = known
        for name in [name for name, tensor in files.items() if tensor.dim() == 2]:
            int8 = Int8.of(files[name])
            files[name], files[f"{name}.scale"] = int8.values_OI, int8.scales_O

    head = edited(weights[kind], tmp_path / "head", stored)
    loaded, _ = load(models(tiny, head), EAGLE if kind == "eagle" else EAGLE3)
    assert loaded.parts.lm_head.tokens_R.tolist() == (known.tolist() if kind == "eagle" else [0, *range(2, 96)])
    limits = Limits(frozenset(), 40)
    for dtype in ("float32", "bfloat16"):
        both = models(tiny, head, dtype)
        expected, got = (
            generate(build_method(get_method(n), both, {}), PROMPT, GREEDY, limits).token_ids
            for n in ("autoregressive", kind)
        )
        assert got == expected


def test_taps_are_counted_by_either_convention(tiny: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    def taps(**config: Any) -> tuple[int, ...]:
        head = edited(weights["eagle3"], tmp_path / str(len(list(tmp_path.iterdir()))), lambda files: None, **config)
        return load(models(tiny, head), EAGLE3)[1]

    name = "eagle_aux_hidden_state_layer_ids"
    assert taps(**{name: [1, 2, 2]}) == (1, 2, 2)  # what comes out of layers 1, 2, 2
    assert taps(**{name: [2, 3, 3]}) == (1, 2, 2)  # what goes into layers 2, 3 and the final norm
    assert load(models(tiny, weights["eagle"]), EAGLE)[1] == (FINAL,)
    with pytest.raises(UserError, match="3 of the 3 layers"):
        taps(**{name: None})  # a target of three layers has no layer before its last three


# bad files ------------------------------------------------------------------------------------------------------------


def wrong_d2t(files: Files) -> None:
    files["d2t"] = files["d2t"] + 40


def with_nan(files: Files) -> None:
    files["fc.weight"][3, 5] = torch.nan


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("eagle", lambda f: f.update({"fc.weight": torch.zeros(48, 96)}), "width 48"),
        ("eagle", lambda f: f.pop("layers.0.mlp.up_proj.weight"), "misses weights: model.layers.0.mlp.up_proj.weight"),
        ("eagle", lambda f: f.update({"layers.0.input_layernorm.weight": torch.ones(32)}), "unexpected"),
        ("eagle", with_nan, "finite numbers in fc.weight"),
        ("eagle", lambda f: f.update({"layers.0.self_attn.q_proj.bias": torch.zeros(64)}), "k_proj.bias"),
        ("eagle3", lambda f: f.update({"midlayer.self_attn.q_norm.weight": torch.ones(16)}), "k_norm.weight"),
        ("eagle3", lambda f: f.update({"fc_norm.1.weight": torch.ones(32)}), "fc_norm.0.weight"),
        ("eagle3", lambda f: f.update({"d2t": torch.zeros(0, dtype=torch.int64)}), "d2t"),
        ("eagle3", with_nan, "finite numbers in fc.weight"),
        ("eagle3", wrong_d2t, "d2t"),
        ("eagle3", lambda f: f.update({"t2d": torch.ones(100, dtype=torch.bool)}), "vocabulary 100"),
        ("eagle3", lambda f: f.update({"fc.weight": torch.zeros(32, 144)}), "width 48"),
        ("eagle3", lambda f: f.pop("lm_head.weight"), "misses weights: lm_head.weight"),
        ("eagle3", lambda f: f.pop("norm.weight"), "misses weights: norm.weight"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_in_one_sentence(
    tiny: Path, weights: dict[str, Path], tmp_path: Path, kind: str, change: Callable[[Files], None], message: str
) -> None:
    both = models(tiny, edited(weights[kind], tmp_path / "head", change))
    with pytest.raises(UserError, match=message) as refused:
        check_weights(get_method(kind).check, both)
        load(both, EAGLE if kind == "eagle" else EAGLE3)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name, kind, looks",
    [("eagle", "eagle3", "EAGLE-3"), ("eagle3", "eagle", "EAGLE head"), ("eagle3", "model", "language model")],
)
def test_a_head_of_another_kind_is_told(tiny: Path, weights: dict[str, Path], name: str, kind: str, looks: str) -> None:
    with pytest.raises(UserError, match=looks):
        check_weights(get_method(name).check, models(tiny, weights[kind]))


def test_a_torn_file_is_refused(tiny: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(weights["eagle"], tmp_path / "head")
    path = tmp_path / "head/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read weights"):
        check_weights(get_method("eagle").check, models(tiny, tmp_path / "head"))


# the self-check -------------------------------------------------------------------------------------------------------


def test_a_head_that_is_read_as_trained_is_not_warned_of() -> None:
    both = Golden(GOLDENS / "eagle3").models
    prompts = [row["prompt"] for row in Golden(GOLDENS / "eagle3").lines("greedy.jsonl")][:2]
    found = compare(both, EAGLE3, prompts, 24)
    assert found[0].reading == Reading() and len(found) == 27 and warning(found) is None
    assert found[0].acceptances[0] > 0.4


@pytest.mark.parametrize("wrong", [{"eagle_aux_hidden_state_layer_ids": [3, 5, 6]}, {"norm_before_residual": True}])
def test_a_head_whose_files_are_wrong_is_warned_of(tmp_path: Path, wrong: dict[str, Any]) -> None:
    shutil.copytree(GOLDENS / "eagle3/head", tmp_path / "head")
    path = tmp_path / "head/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    prompts = [row["prompt"] for row in Golden(GOLDENS / "eagle3").lines("greedy.jsonl")][:2]
    told = warning(compare(models(GOLDENS / "target", tmp_path / "head"), EAGLE3, prompts, 24))
    assert told is not None and ("taps -1" in told or "norm_before_residual false" in told)
