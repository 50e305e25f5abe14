"""Training draft heads: every kind on a tiny target from answers to its published format, each part against a plain
computation."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from methods.engine.transformer import FINAL
from methods.errors import UserError
from methods.training.data import Document, read_answers
from methods.training.heads.acceptance import Hits, accept_length, answer_hits, conditional_acceptance
from methods.training.heads.base import Head
from methods.training.heads.export import write_head
from methods.training.heads.features import FeatureCache, eagle3_taps
from methods.training.heads.kinds import new_head
from methods.training.heads.layer import Attention, attend
from methods.training.heads.target import HeadTarget
from methods.training.heads.trainer import HeadTrainer
from methods.training.recipe import HELP, RECIPES, HeadRecipe, read_recipe
from methods.training.report import read_log
from scripts import train
from tests.tiny import VOCABULARY, save_model

ROOT = Path(__file__).resolve().parents[1]
WIDTH, MLP, HEADS, KV_HEADS, HEAD_DIM = 32, 64, 4, 2, 16
LAYERS = 6
KINDS: dict[str, dict[str, Any]] = {
    "medusa": {"heads": 3},
    "hydra": {"heads": 3, "depth": 2},
    "eagle": {"unrolls": 3},
    "eagle3": {"unrolls": 3},
}
ALL = [*KINDS, "hydra-mlp"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and its own answers to prompts that differ in their texts, but not in their tokens: what is learnt of
    some is true of the held-out ones."""
    folder = tmp_path_factory.mktemp("heads")
    save_model(folder / "target", layers=LAYERS, initializer_range=0.3)
    decoder = HeadTarget.find(str(folder / "target")).decoder("float32", torch.device("cpu"), 64)
    with (folder / "answers.jsonl").open("w") as file:
        for i in range(48):
            prompt = [3 + i // 2 % 4, 7]
            logits, output = decoder.prefill(prompt).logits_NV, list[int]()
            while len(output) < 12:
                output.append(int(logits[0].argmax()))
                logits = decoder.extend(output[-1:]).logits_NV
            row = {"temperature": float(i % 2), "prompt": f"prompt {i // 2}", "prompt_ids": prompt}
            file.write(json.dumps(row | {"output_ids": output}) + "\n")
    return folder


@pytest.fixture(scope="module")
def target(folder: Path) -> HeadTarget:
    return HeadTarget.find(str(folder / "target"))


def recipe(folder: Path, kind: str, **options: Any) -> Any:
    given: dict[str, Any] = {"vocabulary": 40, "chunk": 8, "held_out": 0.2, "precision": "no", "micro_tokens": 64}
    given |= {"batch_tokens": 64, "engine_dtype": "float32", "learning_rate": 3e-3}
    if kind == "hydra-mlp":
        kind, options = "hydra", {"arch": "mlp", "heads": 3} | options
    given |= {"target": str(folder / "target"), "answers": (str(folder / "answers.jsonl"),)}
    return RECIPES[kind](**given | KINDS[kind] | options)


def trainer(folder: Path, kind: str, out: Path, **options: Any) -> HeadTrainer:
    out.mkdir(exist_ok=True)
    made = recipe(folder, kind, **options)
    return HeadTrainer(made, HeadTarget.find(made.target), out)


def shaken(head: Head) -> Head:
    """With weights that nothing follows from by being zero or one."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return head


def example(target: HeadTarget, head: Head, length: int = 11) -> tuple[Tensor, dict[int, Tensor]]:
    """(tokens, features) of an answer, in a batch of one."""
    tokens = [int(token) for token in torch.randperm(VOCABULARY)[:length]]
    decoder = target.decoder("float32", torch.device("cpu"), 64)
    features = FeatureCache(lambda: decoder, None, head.taps).shard("", [Document("", tokens, 3)])
    return torch.tensor([tokens]), {tap: state.float()[None] for tap, state in features.states.items()}


def chain_of_one(head: Any, tokens: list[int], features: dict[int, Tensor], row: int, given: list[int]) -> Tensor:
    """The logits behind `row` and the tokens `given`, by a plain causal pass in which nothing is drafted elsewhere."""
    if head.longest == head.steps:  # no memory of what was drafted: the row itself and its prefix are enough
        memory: Any = head.begin({tap: state[:, : row + 1] for tap, state in features.items()})
        for i, token in enumerate(given):
            before = [*tokens[1 : row + 1], token] if i == 0 else [0] * row + [token]
            memory, state = head.step(memory, i, torch.tensor([before]))
        return state[0, row] @ head.head_ND.t()
    layer: Any = getattr(head, "layer", None) or head.midlayer
    stream, _ = head.begin({tap: state[:, : row + 1] for tap, state in features.items()})
    ids = [*tokens[1 : row + 1], given[0]]
    for i in range(len(given)):
        embedded = head.embed(torch.tensor([ids]))
        if hasattr(head, "midlayer"):
            out = layer(stream, embedded, [])
        else:
            read = head.fc(torch.cat([embedded, stream], -1))
            out = layer.finish(read, read, [])
        stream, ids = torch.cat([stream, out[:, -1:]], 1), [*ids, *given[i + 1 : i + 2]]
    state = head.norm(out) if hasattr(head, "midlayer") else out
    return state[0, -1] @ head.head_ND.t()


@pytest.mark.parametrize("kind", ALL)
def test_all_positions_at_once_draft_what_each_would_alone(folder: Path, target: HeadTarget, kind: str) -> None:
    tokens_N = torch.arange(2, 90)
    head = shaken(new_head(recipe(folder, kind), target, tokens_N)).eval()
    tokens_BL, features = example(target, head)
    tokens = tokens_BL[0].tolist()
    drafts_SL = head.drafts(tokens_BL, features, 3)[:, 0]
    for row in range(len(tokens) - 1):
        given = [tokens[row + 1]]
        for step in range(3):
            best = int(tokens_N[chain_of_one(head, tokens, features, row, given).argmax()])
            assert drafts_SL[step, row] == best, (row, step)
            given.append(best)


@pytest.mark.parametrize("kind", ALL)
def test_the_loss_is_the_plain_one(folder: Path, target: HeadTarget, kind: str) -> None:
    """Over roots t in the answer and steps i, where token t + 2 + i is known: what is asked moves on with what is
    read."""
    made, start = recipe(folder, kind, kept=88, decay=0.5, **({"noise": 0.0} if kind == "eagle" else {})), 4
    tokens_N = torch.arange(2, 90)
    head = shaken(new_head(made, target, tokens_N))
    tokens_BL, features = example(target, head)
    tokens = tokens_BL[0].tolist()
    tokens[7] = 95  # a token that the head does not know
    count, final = len(tokens), features[FINAL][0]
    total = 0.0
    for i in range(3):
        for row in range(start - 1, count - 2 - i):
            given, wanted = tokens[row + 1 : row + 2 + i], tokens[row + 2 + i]
            logits = teacher_forced(head, tokens, features, row, given)
            probs = (final[row + 1 + i] @ head.target_head_ND.t()).softmax(-1)
            loss = -(probs * logits[0].log_softmax(-1)).sum() if wanted in tokens_N else torch.zeros(())
            off = torch.nn.functional.smooth_l1_loss(logits[1], final[row + 1 + i]) if kind == "eagle" else 0.0
            total += float((0.5**i * (head.token_weight * loss + off)).detach()) / count
    batch_documents = [Document("", tokens, start)]
    run = object.__new__(HeadTrainer)
    batch = HeadTrainer.batch.__get__(run)  # needs an accelerator for its device alone
    run.accelerator = type("Here", (), {"device": torch.device("cpu")})()
    shard = type("Shard", (), {"states": {t: s[0] for t, s in features.items()}, "starts": [0, count]})()
    assert head(**batch(batch_documents, shard, [0])).item() == pytest.approx(total, rel=1e-4)


def teacher_forced(
    head: Head, tokens: list[int], features: dict[int, Tensor], row: int, given: list[int]
) -> tuple[Tensor, Tensor]:
    """(logits, state) at a row that is given the answer's own tokens."""
    memory = head.begin(features)
    for i in range(len(given)):
        ids = torch.tensor([tokens[1 + i :] + [0] * (1 + i)])
        memory, state = head.step(memory, i, ids)
    return state[0, row] @ head.head_ND.t(), state[0, row]


def test_a_later_step_sees_the_true_rows_before_it_and_its_own() -> None:
    torch.manual_seed(0)
    q, k0, v0, k1, v1 = (torch.randn(1, 2, 5, 8) for _ in range(5))
    found = attend(q, [(k0, v0), (k1, v1)])
    for row in range(5):
        keys = torch.cat([k0[:, :, : row + 1], k1[:, :, row : row + 1]], 2)
        values = torch.cat([v0[:, :, : row + 1], v1[:, :, row : row + 1]], 2)
        weights = (q[:, :, row : row + 1] @ keys.transpose(2, 3) / 8**0.5).softmax(-1)
        torch.testing.assert_close(found[:, :, row : row + 1], weights @ values)


def test_rotary_positions_go_on_with_the_steps(target: HeadTarget) -> None:
    attention = Attention(target.config, target.config.rope, WIDTH)
    for step, first in ((0, 0), (2, 2)):
        cosines, _ = attention.rotations(first, 4, torch.device("cpu"))
        angles = (torch.arange(4) + step)[:, None] * attention.rotations.frequencies_d
        torch.testing.assert_close(cosines[:, 0, : HEAD_DIM // 2], angles.cos().float())


def test_features_are_the_targets_states_and_are_kept(folder: Path, target: HeadTarget, tmp_path: Path) -> None:
    documents, taps = read_answers([folder / "answers.jsonl"], 64)[:3], (*eagle3_taps(LAYERS), FINAL)
    decoder = target.decoder("float32", torch.device("cpu"), 64)
    found = FeatureCache(lambda: decoder, tmp_path, taps).shard("some", documents)
    model = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    for i, document in enumerate(documents):
        states = model.model(torch.tensor([document.tokens]), output_hidden_states=True).hidden_states
        for tap, ours in found.states.items():
            theirs = states[-1 if tap == FINAL else tap + 1][0].detach()  # the last one is behind the final norm
            torch.testing.assert_close(
                ours[found.starts[i] : found.starts[i + 1]].float(), theirs, atol=0.05, rtol=0.02
            )

    def never() -> Any:
        raise AssertionError("computed again")

    again = FeatureCache(never, tmp_path, [FINAL]).shard("some", documents)
    assert list(again.states) == [FINAL] and torch.equal(again.states[FINAL], found.states[FINAL])
    with pytest.raises(AssertionError, match="again"):
        FeatureCache(never, tmp_path, [FINAL, 0]).shard("some", documents)
    with pytest.raises(AssertionError, match="again"):
        FeatureCache(never, tmp_path, [FINAL]).shard("some", documents[:2])
    assert eagle3_taps(32) == (1, 15, 28) and eagle3_taps(30) == (1, 14, 26)


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "medusa": {f"{i}.0.linear.{n}": s for i in range(3) for n, s in (("weight", (32, 32)), ("bias", (32,)))},
    "hydra-mlp": {
        f"hydra_mlp.{i}.{n}": s
        for i in range(3)
        for n, s in {
            "0.linear.weight": (32, 32 * (i + 2)),
            "0.linear.bias": (32,),
            "0.res_connection.weight": (32, 32 * (i + 2)),
            "0.res_connection.bias": (32,),
            "1.linear.weight": (32, 32),
            "1.linear.bias": (32,),
        }.items()
    },
}
LAYER = {
    "self_attn.q_proj.weight": (64, 32),
    "self_attn.k_proj.weight": (32, 32),
    "self_attn.v_proj.weight": (32, 32),
    "self_attn.o_proj.weight": (32, 64),
    "mlp.gate_proj.weight": (64, 32),
    "mlp.up_proj.weight": (64, 32),
    "mlp.down_proj.weight": (32, 64),
    "post_attention_layernorm.weight": (32,),
}
SHAPES["hydra"] = {
    name.replace(".1.linear", ".3.linear").replace(".0.linear", ".1.linear").replace(".0.res", ".1.res"): shape
    for name, shape in SHAPES["hydra-mlp"].items()
}
PREFIX = "prefix_embeding_layer."
SHAPES["hydra"] |= {f"{PREFIX}layers.0.{name}": shape for name, shape in LAYER.items()}
SHAPES["hydra"] |= {f"{PREFIX}layers.0.input_layernorm.weight": (32,), f"{PREFIX}norm.weight": (32,)}
SHAPES["eagle"] = {"fc.weight": (32, 64), "fc.bias": (32,)} | {f"layers.0.{name}": s for name, s in LAYER.items()}
SHAPES["eagle3"] = {f"midlayer.{name}": shape for name, shape in LAYER.items()} | {
    "midlayer.self_attn.q_proj.weight": (64, 64),
    "midlayer.self_attn.k_proj.weight": (32, 64),
    "midlayer.self_attn.v_proj.weight": (32, 64),
    "midlayer.input_layernorm.weight": (32,),
    "midlayer.hidden_norm.weight": (32,),
    "fc.weight": (32, 96),
    "norm.weight": (32,),
    "lm_head.weight": (40, 32),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "medusa": {"medusa_num_heads": 3, "medusa_num_layers": 1, "version": "2"},
    "hydra": {"hydra_num_heads": 3, "hydra_num_layers": 2, "hydra_head_arch": "prefix-mlp", "grounded_heads": True},
    "eagle": {"num_hidden_layers": 1, "bias": True, "hidden_size": 32, "vocab_size": VOCABULARY},
    "eagle3": {"num_hidden_layers": 1, "draft_vocab_size": 40, "rope_theta": 10000.0, "vocab_size": VOCABULARY},
}
CONFIGS["hydra-mlp"] = CONFIGS["hydra"] | {"hydra_head_arch": "mlp", "hidden_state_offset": 0}


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    assert train.main() == 0


@pytest.mark.parametrize("kind", ALL)
def test_a_run_learns_and_exports_the_published_format(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fast: dict[str, Any] = {"learning_rate": 1e-2, "features": str(folder / "features")}
    run = trainer(folder, kind, tmp_path / "run", tokens=2500, validate_every=1250, **fast)
    run.train()
    first, *_, last = read_log(tmp_path / "run")
    assert last["accept_length"] > first["accept_length"] + 0.4, (first, last)
    assert (tmp_path / "run/curve.png").stat().st_size > 1000 and "| tokens seen | depth 1 |" in (
        tmp_path / "run/table.md"
    ).read_text()
    out = ["--out", tmp_path / "run", "--export", tmp_path / "head", "--pair", "my-pair"]
    command(monkeypatch, kind.removesuffix("-mlp"), *out)
    config = json.loads((tmp_path / "head/config.json").read_text())
    assert CONFIGS[kind].items() <= config.items() and config["base_model_name_or_path"] == "my-pair"
    check_tensors(next((tmp_path / "head").glob("*.safetensors")), kind, run)
    again = trainer(folder, kind, tmp_path / "again", start=str(tmp_path / "head"), seed=1, **fast)
    assert torch.equal(again.tokens_N, run.tokens_N)
    assert again.validate()["accept_length"] > first["accept_length"] + 0.4, "it starts where the other ended"


def check_tensors(path: Path, kind: str, run: HeadTrainer) -> None:
    """The names and shapes of the format; weights again within half a step of their row's scale."""
    names = {"medusa": "medusa_lm_head", "hydra": "hydra_lm_head", "hydra-mlp": "hydra_lm_head"}
    assert path.stem == names.get(kind, "model")
    stored, tokens = load_file(path), run.tokens_N.tolist()
    assert tokens == sorted(set(tokens)) and len(tokens) == 40
    if kind == "eagle3":
        d2t, t2d = stored.pop("d2t"), stored.pop("t2d")
        assert d2t.dtype == torch.int64 and (d2t + torch.arange(40)).tolist() == tokens
        assert t2d.dtype == torch.bool and t2d.nonzero()[:, 0].tolist() == tokens and len(t2d) == VOCABULARY
    else:
        known = stored.pop("lm_head.tokens")
        assert known.dtype == torch.int32 and known.tolist() == tokens
    plain = {name: tensor for name, tensor in stored.items() if not name.endswith(".scale")}
    assert {name: tuple(tensor.shape) for name, tensor in plain.items()} == SHAPES[kind]
    assert set(stored) - set(plain) == {f"{name}.scale" for name, tensor in plain.items() if tensor.dim() == 2}
    best = torch.load(path.parents[1] / "run/best.pt")["draft"]
    run.draft.load_state_dict(best)
    for name, tensor in run.draft.tensors().items():
        if name in plain and tensor.dim() == 2:
            scale = stored[f"{name}.scale"][:, None]
            assert ((plain[name] * scale - tensor).abs() <= 0.5001 * scale).all() and plain[name].dtype == torch.int8
        elif name in plain:
            assert torch.equal(plain[name], tensor) and tensor.dtype == torch.float32


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_an_interrupted_run_goes_on_with_the_same_weights(folder: Path, tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "features": str(folder / "features")}
    options["validate_every"] = 10_000
    trainer(folder, kind, tmp_path / "whole", tokens=900, **options).train()
    for tokens in (400, 900, 900):  # the last one has nothing left to do
        trainer(folder, kind, tmp_path / "part", tokens=tokens, **options).train()
    ours, theirs = (torch.load(tmp_path / run / "checkpoint.pt") for run in ("whole", "part"))
    assert all(torch.equal(ours["draft"][name], theirs["draft"][name]) for name in ours["draft"])
    assert ours["progress"]["tokens"] == theirs["progress"]["tokens"] >= 900
    with pytest.raises(UserError, match="another kind"):
        trainer(folder, "medusa", tmp_path / "part")


def test_a_run_ends_where_it_no_longer_gets_better(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([{"acceptance": {"1": 0.5}, "accept_length_3": 1.0, "accept_length": x} for x in (1, 3, 2, 2.5, 9)])
    run = trainer(folder, "medusa", tmp_path / "run", tokens=5000, validate_every=100, patience=2)
    monkeypatch.setattr(run, "validate", lambda: next(found))
    run.train()
    assert [line["accept_length"] for line in read_log(tmp_path / "run")] == [1, 3, 2, 2.5]
    best = torch.load(tmp_path / "run/best.pt")["progress"]
    assert best["best"] == 3 and best["tokens"] < run.progress.tokens < 5000


PAPERS = {"medusa": "medusa-vicuna-7b", "hydra": "hydra-vicuna-7b", "eagle": "eagle-vicuna-7b"}


@pytest.mark.parametrize("kind, name", [*PAPERS.items(), ("eagle3", "eagle3-llama-3.1-8b")])
def test_recipes_of_the_papers_run(folder: Path, tmp_path: Path, kind: str, name: str) -> None:
    given = {"target": str(folder / "target"), "answers": [str(folder / "answers.jsonl")], "epochs": 0.2}
    given |= {"held_out": 0.2, "precision": "no", "batch_tokens": 64, "micro_tokens": 64}
    made = read_recipe(RECIPES[kind], ROOT / f"scripts/train_configs/{name}.toml", given)
    assert isinstance(made, HeadRecipe) and made.length == 2048
    (tmp_path / "run").mkdir()
    HeadTrainer(made, HeadTarget.find(made.target), tmp_path / "run").train()
    assert read_log(tmp_path / "run")[-1]["tokens"] > 0
    assert (tmp_path / "run/features").exists() == (made.features != "none")


def test_every_option_has_its_help() -> None:
    for made in RECIPES.values():
        assert {field.name for field in fields(made)} <= set(HELP)


def test_acceptance_counts_what_follows_right_tokens_only() -> None:
    tokens, start = [9, 9, 1, 2, 3, 4, 5], 2
    drafts = torch.zeros(2, 7, dtype=torch.long)
    drafts[0, 1:5], drafts[1, 1:5] = torch.tensor([2, 3, 4, 5]), torch.tensor([3, 0, 5, 0])  # of tokens t + 2, t + 3
    hits = answer_hits(drafts, tokens, start)
    assert hits.right_SR.tolist() == [[True] * 4 + [False], [True, False, True, False, False]]
    assert conditional_acceptance([hits]) == [1.0, 2 / 3]
    # roots 1 (drafts 2, 3 and the pass adds 4), then 4 (drafts 5, the end)
    assert accept_length([hits], 2) == 4 / 2 and accept_length([hits], 1) == 4 / 2
    nothing = Hits(torch.zeros(2, 5, dtype=torch.bool))
    assert accept_length([nothing], 2) == 1.0 and conditional_acceptance([nothing]) == [0.0, 0.0]


def test_a_start_of_another_kind_or_shape_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    head = trainer(folder, "medusa", tmp_path / "run").draft
    write_head(tmp_path / "head", head, {})
    with pytest.raises(UserError, match=r"expected 2\.0\.linear\.weight"):
        trainer(
            folder, "medusa", tmp_path / "fewer", heads=4, start=str(without(tmp_path / "head", "2.0.linear.weight"))
        )
    with pytest.raises(
        UserError, match=r"expected fc.weight \[32, 64\] in .*, found none: start from a head of the same"
    ):
        trainer(folder, "eagle", tmp_path / "other", start=str(tmp_path / "head"))
    with pytest.raises(UserError, match="expected a folder with a head in one safetensors file at"):
        trainer(folder, "medusa", tmp_path / "none", start=str(tmp_path / "nowhere"))
    whole = tmp_path / "head/medusa_lm_head.safetensors"
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot read .*fetch or export it again"):
        trainer(folder, "medusa", tmp_path / "torn", start=str(tmp_path / "head"))


def without(folder: Path, name: str) -> Path:
    tensors = load_file(folder / "medusa_lm_head.safetensors")
    del tensors[name]
    save_file(tensors, folder / "medusa_lm_head.safetensors")
    return folder
