"""A target that is split among ranks: its parts add up to it, its bits do not depend on how many rows there are, every
kind of method works on it, and what ends a rank ends the run."""

import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.answers.header import read_header
from evaluation.launch import measure
from evaluation.launch.config import parse
from evaluation.launch.gpus import split_gpus
from evaluation.launch.processes import launch
from evaluation.launch.ranks import Ranks, Share, gpus_of, join_ranks
from evaluation.run import main
from methods import BASELINE
from methods.engine.backends import joined, linear
from methods.engine.backends.joined import Joined, added
from methods.engine.backends.pytorch import CUDA_ROWS
from methods.engine.decoder import Decoder
from methods.engine.loader import find_checkpoint, plan_layers
from methods.engine.split import Part, SplitWeights, part_of
from methods.engine.transformer import Transformer
from methods.errors import UserError
from methods.models import Models
from methods.paths import ROOT
from tests.commands import in_process
from tests.pretended_gpus import PretendedGpus, pretended
from tests.split_target import CONTEXT, CPU, METHODS, PROMPTS, RANKS, TOKENS, compute, end_in_a_pass, together
from tests.tiny import save_model

QUESTIONS = [["hello there hello there"], ["abc abc abc abc"]]


@pytest.fixture(scope="module")
def found(tiny: Path, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes make of the tiny target, by dtype."""
    out = tmp_path_factory.mktemp("split") / "found.pt"
    drafts = {kind: str(path) for kind, path in weights.items()}
    assert launch(partial(compute, str(tiny), drafts, str(out)), RANKS) == 0
    loaded: dict[str, Any] = torch.load(out)
    return loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_alone_in_a_chain_and_in_a_tree(found: dict[str, Any], dtype: str) -> None:
    scores = found[dtype]
    assert scores["invariant"] is True
    for rows, logits_NV in scores["chains"].items():
        assert torch.equal(logits_NV, scores["alone"][:rows]), rows
    assert torch.equal(scores["tree"], scores["alone"])
    assert torch.equal(scores["tree features"], scores["features"])
    assert torch.equal(scores["grown"], scores["alone"][5:])


def test_partial_sums_are_added_in_order_of_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    parts_RNO = torch.tensor([1e8, -1e8, 1.0])[:, None, None].expand(3, 40, 8)
    for residual_NO, expected in ((None, 1.0), (torch.ones(40, 8), 2.0)):
        assert (added(parts_RNO, residual_NO, torch.float32) == expected).all()  # another order would lose the 1
    monkeypatch.setattr(joined, "GATHERED", 16)
    weight, x = torch.randn(8, 6), torch.randn(40, 6)
    layer = Joined(linear(weight), lambda rows_NO: torch.stack((rows_NO, 2 * rows_NO)), torch.float32)
    assert torch.allclose(layer(x, x @ weight.T), 4 * x @ weight.T, atol=1e-5), "block by block, with its own residual"


def test_two_ranks_compute_what_one_does(found: dict[str, Any], tiny: Path) -> None:
    """In bf16 they are no farther from what fp32 gives than one is."""
    exact, rough = (together(Models(str(tiny), None, dtype, CPU, CONTEXT)) for dtype in ("float32", "bfloat16"))
    for name in ("alone", "features", "tree", "behind the tree", "long prompt"):
        assert (found["float32"][name] - exact[name]).abs().max() < 1e-4 * exact["alone"].std(), name
        far, as_one = ((scores[name] - exact[name]).abs().mean() for scores in (found["bfloat16"], rough))
        assert far < 1.5 * as_one, name
    assert found["float32"]["bytes"] < exact["bytes"], "each has its part of the weights alone"


@pytest.mark.parametrize("dtype, name", [*(("float32", name) for name in METHODS[1:]), ("bfloat16", "eagle3")])
def test_methods_say_what_the_baseline_says(found: dict[str, Any], dtype: str, name: str) -> None:
    expected, got = (found[dtype]["answers"][each] for each in (BASELINE, name))
    assert {len(answer) for answer in expected} == {TOKENS}
    assert sum(answer == other for answer, other in zip(got, expected, strict=True)) == len(PROMPTS) == 20


def parts_of(folder: Path, count: int) -> list[Tensor]:
    """Logits of a prompt by a model's parts, which are threads here."""
    whole = find_checkpoint(str(folder))
    partials: dict[int, Tensor] = {}
    meeting, logits = threading.Barrier(count), [torch.empty(0)] * count

    def gather(index: int, partial_ND: Tensor) -> Tensor:
        partials[index] = partial_ND
        meeting.wait()
        parts_RND = torch.stack([partials[other] for other in range(count)])
        meeting.wait()
        return parts_RND

    def run(index: int) -> None:
        part = Part(index, count)
        config, weights = part_of(whole.config, part, ""), SplitWeights(whole.config, whole.weights, part)
        model = Transformer(config, weights, torch.float32, CPU * config.layers, partial(gather, index))
        logits[index] = Decoder(model, CONTEXT).prefill(PROMPTS[4]).logits_NV

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("count, heads, kv_heads", [(2, 4, 4), (2, 4, 2), (4, 4, 2), (2, 4, 1), (3, 6, 3)])
def test_parts_add_up_to_the_model(tmp_path: Path, family: str, count: int, heads: int, kv_heads: int) -> None:
    """Biases and norms of heads too; a key/value head on several ranks where there are more of these."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    kind: Any = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[family]
    config = kind(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=48 // heads,
        initializer_range=0.5,
        tie_word_embeddings=family != "llama",
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for value in model.parameters():
        if value.dim() == 1:  # scales of norms, and biases
            torch.nn.init.normal_(value.data, 1.0, 0.3)
    model.save_pretrained(tmp_path)
    expected = Decoder(find_checkpoint(str(tmp_path)).transformer("float32", CPU), CONTEXT).prefill(PROMPTS[4])
    for logits_NV in parts_of(tmp_path, count):
        assert (logits_NV - expected.logits_NV).abs().max() < 1e-4 * expected.logits_NV.std()


def test_parts_of_layers_are_measured_at_numbers_of_rows_too(tiny: Path) -> None:
    """On a GPU each part has matrices of its own shapes."""
    whole = find_checkpoint(str(tiny))
    part = Part(0, 2)
    config, weights = part_of(whole.config, part, ""), SplitWeights(whole.config, whole.weights, part)
    with pretended(PretendedGpus(1)):
        device = torch.device("cuda", 0)
        model = Transformer(
            config, weights, torch.bfloat16, [device] * config.layers, lambda partial_ND: partial_ND[None]
        )
        for layer in model.layers:
            layer.qkv = layer.gate_up = layer.down  # all that is measured
        model.stack.measure_rows()
    assert model.stack.row_counts is not None and len(model.stack.row_counts) < len(CUDA_ROWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path, weights: dict[str, Path]) -> Path:
    """Questions, and a command whose second rank fails."""
    folder = tmp_path_factory.mktemp("run")
    lines = [{"question_id": i, "category": "qa", "turns": turns} for i, turns in enumerate(QUESTIONS)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "unlucky.py").write_text(
        "from evaluation.run import main\n"
        "from methods.engine import loader\n"
        "from methods.errors import command_line\n"
        "from tests.split_target import Unlucky\n"
        "loader.Follower = Unlucky\n"  # in each process that imports this
        "if __name__ == '__main__':\n"
        "    command_line(main)\n"
    )
    return folder


def command(folder: Path, target: Path, draft: Path, methods: str, *more: object) -> list[str]:
    task = ["--questions", folder / "questions.jsonl", "--max-new-tokens", "6", "--template", "chat", "--alone"]
    models = ["--target", target, "--draft", draft, "--dtype", "float32", "--threads", "1"]
    return [methods, *map(str, [*models, *task, "--output", folder / "out", "--tensor-parallel", 2, *more])]


def start(*words: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=env, cwd="/", timeout=150
    )


def test_an_outer_launcher_may_start_a_split_target_and_a_draft_beside(
    folder: Path, tiny: Path, tiny_draft: Path
) -> None:
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 3
    arguments = command(folder, tiny, tiny_draft, "pearl@gamma=2", "--json")
    done = start(*torchrun, ROOT / "evaluation/run.py", *arguments)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    assert {name: row["identical"] for name, row in rows.items()} == {"pearl@gamma=2": len(QUESTIONS)}
    found = folder / "out/questions" / tiny.name
    alone, pearl = (read_header(found / f"{name}.jsonl") for name in (BASELINE, "pearl@gamma=2"))
    assert alone is not None and pearl is not None
    assert (alone.tensor_parallel, alone.ranks, pearl.ranks, pearl.row_invariant) == (2, 1, 2, True)
    assert alone.devices is not None and pearl.devices is not None and set(alone.devices) <= set(pearl.devices)
    whole = Models(str(tiny), None, "float32", CPU, CONTEXT).target.model
    assert pearl.target is not None and pearl.target["weight_bytes"] == whole.weight_bytes
    as_one = in_process(main, *command(folder, tiny, tiny_draft, "pld", "--tensor-parallel", 1))
    assert as_one.returncode == 2 and "tensor_parallel=2, now unset" in as_one.stderr


def test_an_exception_in_a_rank_that_follows_ends_the_run(folder: Path, tiny: Path, tiny_draft: Path) -> None:
    done = start(folder / "unlucky.py", *command(folder, tiny, tiny_draft, "pld", "--output", folder / "unlucky"))
    assert done.returncode == 1
    assert "RuntimeError: out of luck" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: rank 1 failed with RuntimeError: out of luck"
    assert done.stderr.count("error: ") == 1


def test_a_rank_that_follows_and_is_killed_ends_the_run(capfd: pytest.CaptureFixture[str], tiny: Path) -> None:
    began = time.monotonic()
    assert launch(partial(end_in_a_pass, str(tiny)), RANKS) == 1
    (sentence,) = capfd.readouterr().err.splitlines()
    assert sentence == "error: rank 1 was ended by SIGKILL, as the system does where memory runs out"
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "heads, count, advice",
    [({}, 3, "choose 2 or 4"), ({"num_attention_heads": 1, "num_key_value_heads": 1}, 2, "leave it out")],
)
def test_a_number_that_does_not_divide_the_heads_is_refused(
    folder: Path, tmp_path: Path, heads: dict[str, int], count: int, advice: str
) -> None:
    target = save_model(tmp_path / "target", layers=1, **heads)
    done = in_process(main, *command(folder, target, target, "pld", "--tensor-parallel", count))
    assert done.returncode == 2
    assert f"got {count}; {advice}" in done.stderr and done.stderr.count("error:") == 1


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_what_is_no_number_of_ranks_is_refused(text: str) -> None:
    done = in_process(main, "pld", "smollm2-135m", "--tensor-parallel", text)
    assert done.returncode == 2 and "--tensor-parallel: expected a whole number from 1 to" in done.stderr


def test_a_launcher_that_starts_too_few_processes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="multiples of 3, which the chosen methods need with --tensor-parallel, got 1"):
        join_ranks(3, 2)


@pytest.mark.parametrize(
    "gpus, ranks, size, draft, targets, expected",
    [
        (2, 2, 2, 1, 2, [[0], [1]]),
        (4, 2, 2, 1, 2, [[0], [1]]),
        (3, 3, 3, 1, 2, [[0], [1], [2]]),
        (2, 3, 3, 1, 2, [[0], [1], [1]]),
        (8, 6, 3, 2, 2, [[0], [1], [2, 3], [4], [5], [6, 7]]),
        (8, 5, 5, 1, 4, [[0], [1], [2], [3], [4]]),
    ],
)
def test_each_rank_of_a_split_target_has_a_gpu(
    gpus: int, ranks: int, size: int, draft: int, targets: int, expected: list[list[int]]
) -> None:
    assert split_gpus(gpus, ranks, size, draft, targets) == expected


@pytest.mark.parametrize(
    "gpus, ranks, size, draft, targets, sentence",
    [
        (1, 2, 2, 1, 2, "each of the 2 ranks of --tensor-parallel, got 1; make it smaller"),
        (4, 6, 3, 1, 3, "each of the 3 ranks of --tensor-parallel, got 2; make it smaller, or take fewer --replicas"),
        (4, 4, 4, 2, 3, "expected --draft-gpus beside 3 of 4 GPUs, got 2; make it smaller"),
    ],
)
def test_too_few_gpus_are_a_sentence(gpus: int, ranks: int, size: int, draft: int, targets: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        split_gpus(gpus, ranks, size, draft, targets)


def test_slices_of_gpus_share_no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluation.launch import ranks

    monkeypatch.setattr(ranks, "slices", lambda: ["MIG-aa", "MIG-bb"])
    with pytest.raises(UserError, match="expected whole GPUs for --tensor-parallel"):
        gpus_of(Ranks(0, 2, 0, 2, 2, 2), 1)


def test_a_model_that_outgrows_a_node_is_told_so(tiny: Path) -> None:
    config = find_checkpoint(str(tiny)).config
    gpus = PretendedGpus(1)
    gpus.memory = {0: 1 << 20}
    with pretended(gpus), pytest.raises(UserError) as told:
        plan_layers("big", config, torch.bfloat16, [torch.device("cuda", 0)], 100, ranks=2)
    assert "on each of 2 ranks" in str(told.value) and "by a larger --tensor-parallel" in str(told.value)
    assert "cannot run here, for no model is spread over nodes" in str(told.value)
    assert str(told.value).endswith("and take the row `server` (--server URL)")


def test_a_share_tells_the_target_from_the_draft() -> None:
    names = [["cuda:0"], ["cuda:1"], ["cuda:1"]]
    share = Share([torch.device("cuda", 0)], names[0], 1, names, [0], 1, targets=2)
    assert (share.target_names, share.draft_names) == (["cuda:0", "cuda:1"], ["cuda:1"])
    assert share.shared == ["cuda:1"]


def test_the_baseline_on_all_devices_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    config = measure.meaningful(parse(["pearl", "smollm2-135m", "--tensor-parallel", "3", "--device", "cpu"]))
    assert "autoregressive-all" not in config.methods and config.ranks == 4
    assert "with --tensor-parallel the baseline runs on several ranks already" in capsys.readouterr().err
