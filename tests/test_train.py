"""Training a draft: the whole path on a small random Llama, and each part against a plain computation."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor
from train import main
from transformers import LlamaConfig, LlamaForCausalLM

from methods.engine.int8 import Int8
from methods.errors import UserError
from methods.training.data import Document, frequent_tokens, length_batches, read_answers, split
from methods.training.recipe import SortedRecipe, learning_rate, read_recipe
from methods.training.report import best_speedup, read_log
from methods.training.sorted import SortedDraft, chosen_layers, soft_cross_entropy
from methods.training.sorted_trainer import SortedTrainer
from methods.training.teacher import Teacher
from tests.commands import Done, in_process

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 96


def small_llama(layers: int = 6) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, eos_token_id=2, initializer_range=0.3, **sizes
    )
    return LlamaForCausalLM(config).eval()


def write_answers(path: Path, count: int = 60) -> Path:
    draw = random.Random(1)
    with path.open("w") as file:
        for i in range(count):
            prompt = [1, *draw.choices(range(3, 40), k=draw.randrange(3, 12))]
            row = {"source": "test", "temperature": 0.0, "prompt": f"prompt {i // 2}", "prompt_ids": prompt}
            file.write(
                json.dumps(row | {"output_ids": [*draw.choices(range(3, 60), k=draw.randrange(4, 20)), 2]}) + "\n"
            )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and answers on disk."""
    folder = tmp_path_factory.mktemp("draft")
    small_llama().save_pretrained(folder / "target")
    write_answers(folder / "answers.jsonl")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads wait for each other more than they compute on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(folder: Path, out: Path, *options: object) -> Done:
    """The whole command, in this process as if it were a new one: accelerate keeps the first precision of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    before = signal.getsignal(signal.SIGTERM)
    try:
        return in_process(main, *words(folder, out, *options))
    finally:
        signal.signal(signal.SIGTERM, before)
        AcceleratorState._reset_state(reset_partial_state=True)


def words(folder: Path, out: Path, *options: object) -> list[object]:
    return ["sorted", "--target", folder / "target", "--answers", folder / "answers.jsonl", "--out", out, *options]


def start(folder: Path, out: Path, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "scripts/train.py", *words(folder, out, *options)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


SMALL = ["--layers", "0,2,3,5", "--exits", 2, 4, "--vocabulary", 48, "--batch-tokens", 64, "--micro-tokens", 64]
SMALL += ["--chunk", 20, "--held-out", 0.2, "--validate-every", 1000, "--learning-rate", 3e-3]


def test_interrupted_and_resumed_run_has_the_same_weights(folder: Path, tmp_path: Path) -> None:
    """The part that SIGTERM ends is a process, as a user starts it."""
    part = start(folder, tmp_path / "part", *SMALL, "--tokens", 6000, "--validate-every", 200)
    assert part.stdout
    for line in part.stdout:  # stop somewhere in the second epoch, in the middle of a chunk
        if line.startswith("{") and json.loads(line)["tokens"] > 2000:
            part.send_signal(signal.SIGTERM)
            break
    assert part.wait(60) == 0
    stopped = torch.load(tmp_path / "part/checkpoint.pt")["progress"]
    assert 2000 < stopped["tokens"] < 6000
    for name in ("whole", "part"):
        run = train(folder, tmp_path / name, *SMALL, "--tokens", 6000)
        assert run.returncode == 0, run.stderr
    ours, theirs = (torch.load(tmp_path / run / "checkpoint.pt") for run in ("whole", "part"))
    assert ours["progress"] == theirs["progress"]
    assert all(torch.equal(ours["draft"][name], theirs["draft"][name]) for name in ours["draft"])
    moments = zip(ours["optimizer"]["state"].values(), theirs["optimizer"]["state"].values(), strict=True)
    assert all(torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) for a, b in moments)
    log = read_log(tmp_path / "part")
    assert [line["tokens"] for line in log] == sorted({line["tokens"] for line in log})
    assert (tmp_path / "part/curve.png").stat().st_size > 1000


def test_sd2_recipe_runs_and_exports(folder: Path, tmp_path: Path) -> None:
    """SD2's recipe for Vicuna-7B end to end on a Llama of as many layers."""
    small_llama(layers=32).save_pretrained(tmp_path / "target")
    recipe = ["--config", ROOT / "scripts/train_configs/sd2-vicuna-7b.toml", "--target", tmp_path / "target"]
    run = train(folder, tmp_path / "out", *recipe, "--held-out", 0.2)
    assert run.returncode == 0, run.stderr
    log = read_log(tmp_path / "out")
    positions = sum(d.positions for d in split(read_answers([folder / "answers.jsonl"], 2048), 0.2, 0)[0])
    assert log[-1]["tokens"] == 3 * positions and set(log[-1]["agreement"]) == {"6", "9", "12"}
    export = train(folder, tmp_path / "out", "--export", tmp_path / "draft", "--pair", "vicuna-7b", *recipe[2:])
    assert export.returncode == 0, export.stderr
    config = json.loads((tmp_path / "draft/config.json").read_text())
    about = {"target": "vicuna-7b", "layers": list(range(12)), "exits": [6, 9, 12], "format": 1}
    assert config["draft"] == about and config["num_hidden_layers"] == 12 and config["vocab_size"] == VOCABULARY
    check_export(tmp_path / "draft", torch.load(tmp_path / "out/checkpoint.pt")["draft"])


def check_export(draft: Path, state: dict[str, Tensor]) -> None:
    """Every weight again within half a step of its row's scale; nothing but the embedding is missing."""
    stored = load_file(draft / "model.safetensors")
    names = {"lm_head.weight" if name == "head" else f"model.{name}": name for name in state if name != "tokens_N"}
    assert "lm_head.tokens" not in stored  # the whole vocabulary
    assert set(names) == {name for name in stored if not name.endswith(".scale")}
    for public, name in names.items():
        if state[name].dim() == 1:
            assert torch.equal(stored[public], state[name])
            continue
        assert stored[public].dtype == torch.int8
        error = (stored[public] * stored[f"{public}.scale"][:, None] - state[name]).norm() / state[name].norm()
        assert error < 0.01


def test_wrong_options_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    run = train(folder, tmp_path / "out", "--layers", "0,9", "--held-out", 0.2)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("error: expected first-K") and run.stderr.count("\n") == 1
    (tmp_path / "recipe.toml").write_text("learning_rat = 1e-3")
    with pytest.raises(UserError, match="did you mean 'learning_rate'"):
        read_recipe(SortedRecipe, tmp_path / "recipe.toml", {})
    with pytest.raises(UserError, match="schedule"):
        (tmp_path / "recipe.toml").write_text('schedule = "square"')
        read_recipe(SortedRecipe, tmp_path / "recipe.toml", {})


def trainer(folder: Path, out: Path, **options: Any) -> SortedTrainer:
    """In this process and in fp32."""
    settings: dict[str, Any] = {"layers": "first-4", "exits": (2, 4), "held_out": 0.2, "chunk": 20, "precision": "no"}
    recipe = SortedRecipe(answers=(str(folder / "answers.jsonl"),), **settings | {"micro_tokens": 64} | options)
    return SortedTrainer(recipe, LlamaForCausalLM.from_pretrained(folder / "target"), out)


def test_other_options_do_not_continue_a_run(folder: Path, tmp_path: Path) -> None:
    trainer(folder, tmp_path, tokens=50).train()
    assert trainer(folder, tmp_path, tokens=100, learning_rate=1e-5).progress.tokens >= 50
    with pytest.raises(UserError, match=r"has exits \(2, 4\)"):
        trainer(folder, tmp_path, exits=(1, 4))


def test_training_learns_the_target(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"vocabulary": 48, "learning_rate": 3e-3, "batch_tokens": 64}
    trainer(folder, tmp_path, tokens=6000, validate_every=1000, **options).train()
    losses = [line["loss"] for line in read_log(tmp_path)[1:]]
    assert losses[-1] < losses[0] - 0.4, losses


def test_an_epoch_sees_every_training_answer_once_and_no_held_out_one(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path, most_answers=30)
    seen = []
    for _, batches in run.steps():
        if run.progress.epoch:
            break
        for batch in batches:
            lengths = torch.bincount(batch["where_M"] // batch["tokens_BL"].shape[1]).tolist()
            seen += [tuple(row[:n]) for row, n in zip(batch["tokens_BL"].tolist(), lengths, strict=True)]
    assert sorted(seen) == sorted(tuple(document.tokens[:-1]) for document in run.training)
    assert not set(seen) & {tuple(document.tokens[:-1]) for document in run.held_out}


def test_tokens_outside_the_draft_vocabulary_have_no_loss(folder: Path, tmp_path: Path) -> None:
    run = trainer(folder, tmp_path, vocabulary=20, targets="tokens")
    known = set(run.tokens_N.tolist())
    documents = run.training[:3]
    batch = run.batch(documents, None, [0, 1, 2])
    following = [token for document in documents for token in document.tokens[1:]]
    assert batch["probs_MK"].flatten().tolist() == [float(token in known) for token in following]
    rows = batch["ids_MK"].flatten()[batch["probs_MK"].flatten() == 1]
    assert run.tokens_N[rows].tolist() == [token for token in following if token in known]


def test_last_exit_of_all_layers_is_the_target_itself() -> None:
    target = small_llama()
    draft = SortedDraft(target, range(6), [3, 6], torch.arange(VOCABULARY))
    tokens_BL = torch.randint(VOCABULARY, (2, 9))
    logits_BLV = target(tokens_BL).logits
    states = draft.exit_states(tokens_BL)
    assert torch.allclose(states[1] @ draft.head.t(), logits_BLV, atol=1e-4)
    middle = target(tokens_BL, output_hidden_states=True).hidden_states[3]
    assert torch.allclose(states[0], target.model.norm(middle), atol=1e-4)
    assert torch.equal(draft.predictions(tokens_BL)[1], logits_BLV.argmax(-1))


def test_reduced_head_predicts_target_tokens() -> None:
    target = small_llama()
    tokens_N = torch.tensor([2, 5, 40, 90])
    draft = SortedDraft(target, range(6), [6], tokens_N)
    tokens_BL = torch.randint(VOCABULARY, (2, 9))
    best = tokens_N[target(tokens_BL).logits[..., tokens_N].argmax(-1)]
    assert torch.equal(draft.predictions(tokens_BL)[0], best)
    assert draft.costs["6"] > 1  # the smaller head alone makes it cheaper


def test_padding_changes_no_prediction() -> None:
    draft = SortedDraft(small_llama(), [0, 3, 5], [3], torch.arange(VOCABULARY))
    row = torch.randint(VOCABULARY, (1, 7))
    padded = torch.cat([row, torch.zeros(1, 5, dtype=torch.long)], 1)
    assert torch.allclose(draft.exit_states(padded)[0][:, :7], draft.exit_states(row)[0], atol=1e-5)


@pytest.mark.parametrize("positions", [5, 600])  # within a block, and over several
def test_soft_cross_entropy_is_the_plain_one(positions: int) -> None:
    torch.manual_seed(0)
    states, head = torch.randn(2, positions, 8), torch.randn(30, 8)
    ids = torch.stack([torch.randperm(30)[:4] for _ in range(positions)])
    probs = torch.rand(positions, 4)
    probs[1] = 0  # a position without a target
    ours = [states.clone().requires_grad_(), head.clone().requires_grad_()]
    losses = soft_cross_entropy(ours[0], ours[1], ids, probs)
    losses.mean().backward()
    plain = [states.clone().requires_grad_(), head.clone().requires_grad_()]
    logs = torch.log_softmax(plain[0] @ plain[1].t(), -1)
    expected = -(logs.gather(-1, ids.expand(2, -1, -1)) * probs).sum(-1).mean(-1)
    expected.mean().backward()
    assert torch.allclose(losses, expected, rtol=1e-4)
    for a, b in zip(ours, plain, strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_teacher_keeps_the_targets_probabilities(tmp_path: Path) -> None:
    target = small_llama()
    tokens_N = torch.arange(2, 50)
    documents = [Document("a", [1, 5, 6, 7, 2], 2), Document("b", [1, 8, 9], 1)]
    teacher = Teacher(target, tokens_N, tmp_path, kept=3, batch_tokens=16)
    found = teacher.targets("some", documents, greedy=True)
    assert found.starts == [0, 4, 6]
    for document, start in zip(documents, found.starts, strict=False):
        logits = target(torch.tensor([document.tokens[:-1]])).logits[0].detach()
        probs, ids = logits[:, tokens_N].softmax(-1).topk(3)
        rows = slice(start, start + document.positions)
        assert torch.equal(found.ids_PK[rows], ids) and torch.equal(found.greedy_P[rows], logits.argmax(-1))
        assert torch.allclose(found.probs_PK[rows], probs / probs.sum(-1, keepdim=True), atol=1e-3)


def test_teacher_computes_once_for_the_same_answers_and_vocabulary(tmp_path: Path) -> None:
    target, documents = small_llama(), [Document("a", [1, 5, 6, 7, 2], 2)]
    first = Teacher(target, torch.arange(50), tmp_path, 3, 16).targets("some", documents)
    with torch.no_grad():
        target.lm_head.weight.mul_(-1)
    cached = Teacher(target, torch.arange(50), tmp_path, 3, 16).targets("some", documents)
    assert torch.equal(first.probs_PK, cached.probs_PK)
    other = Teacher(target, torch.arange(1, 51), tmp_path, 3, 16).targets("some", documents)
    assert not torch.equal(first.probs_PK, other.probs_PK)


def test_split_keeps_a_prompt_on_one_side(folder: Path) -> None:
    documents = read_answers([folder / "answers.jsonl"], 16)
    assert max(len(document.tokens) for document in documents) == 16
    training, held_out = split(documents, 0.2, seed=0)
    assert len(training) + len(held_out) == len(documents) and 2 <= len(held_out) <= 24
    assert not {d.prompt for d in training} & {d.prompt for d in held_out}
    assert split(documents, 0.2, seed=1)[1] != held_out


def test_draft_vocabulary_is_the_frequent_tokens_and_the_end() -> None:
    documents = [Document("", [7, 7, 7, 9, 9, 30], 3), Document("", [8, 5], 1)]
    assert frequent_tokens(documents, 3, [2]).tolist() == [2, 5, 9]  # 5 and 30 are as frequent: the smaller
    assert frequent_tokens(documents, 6, [2]).tolist() == [2, 5, 7, 8, 9, 30]
    assert frequent_tokens(documents, 8, [2]).tolist() == [0, 1, 2, 5, 7, 8, 9, 30]


def test_batches_hold_every_document_once_within_their_size() -> None:
    lengths = random.Random(0).choices(range(1, 50), k=100)
    batches = length_batches(lengths, 120, seed=3)
    assert sorted(index for batch in batches for index in batch) == list(range(100))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 120 for batch in batches)
    assert length_batches(lengths, 120, seed=3) == batches != length_batches(lengths, 120, seed=4)


def test_layer_choices() -> None:
    assert chosen_layers("first-3", 30) == [0, 1, 2]
    assert chosen_layers("spread-4", 31) == [0, 10, 20, 30]
    assert chosen_layers("0, 4,29", 30) == [0, 4, 29]
    for wrong in ("first-31", "spread-0", "3,2", "0,30", "some", "1,1", ""):
        with pytest.raises(UserError):
            chosen_layers(wrong, 30)
    with pytest.raises(UserError, match="exits"):
        SortedDraft(small_llama(), [0, 1, 2], [1, 2], torch.arange(4))


def test_quantised_rows_are_near() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 128)
    weight[0] = 0
    weight[1, 5] = 30  # an outlier costs its own row only
    int8 = Int8.of(weight)
    error = (int8.widened() - weight).abs().amax(1)
    assert (error <= weight.abs().amax(1) / 127 * 0.5001).all()
    assert int8.values_OI.dtype == torch.int8 and int8.values_OI[0].eq(0).all()


def test_learning_rate() -> None:
    recipe = SortedRecipe(learning_rate=1.0, warmup=0.1)
    assert [round(learning_rate(recipe, done), 3) for done in (0, 0.05, 0.5, 5 / 6, 1)] == [0.01, 0.5, 1, 0.5, 0]
    cosine = SortedRecipe(learning_rate=1.0, warmup=0.1, schedule="cosine")
    assert [round(learning_rate(cosine, done), 3) for done in (0.05, 0.1, 0.55, 1)] == [0.5, 1, 0.5, 0]


def test_best_speedup() -> None:
    assert best_speedup(0.0, 5.0) == (1 / 1.2, 1)
    speedup, window = best_speedup(0.8, 10.0)
    assert window == 6 and speedup == pytest.approx((1 - 0.8**7) / 0.2 / 1.6)
