"""The script for the first day on a GPU, on a CPU and tiny models: every step is gone through, and whatever becomes of
one stands on the page."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import first_gpu_day
import gpu_engine
import gpu_host
import pytest
import torch
from first_gpu_day import CannotRunError, Day, Step, attempt, equal, runnable, spend
from gpu_engine import CPU, GPU, Came, RandomWeights
from torch import Tensor

from methods import METHODS
from methods.engine.decoder import Decoder
from methods.engine.weights import expected_shapes
from methods.errors import UserError
from methods.pairs import get_pair
from methods.paths import ROOT
from tests.commands import in_process

HOST = torch.device("cpu")
ENGINE = ["machine", "rows", "kernels", "passes of tiny", "weights", "host"]


def read(out: Path) -> tuple[dict[str, Any], str]:
    return json.loads((out / "first-gpu-day.json").read_text()), (out / "first-gpu-day.md").read_text()


def test_without_a_gpu_it_ends_with_a_sentence(tmp_path: Path) -> None:
    done = in_process(first_gpu_day.main, "--out", tmp_path / "day")
    assert done.returncode == 2 and not (tmp_path / "day").exists()
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: expected a GPU that CUDA finds, found none; --device cpu runs")


def test_a_step_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = in_process(first_gpu_day.main, "--device", "cpu", "--only", "rows,lunch", "--out", tmp_path)
    assert done.returncode == 2 and "no step 'lunch'; known: machine, rows" in done.stderr


def test_the_engines_steps_run_on_a_cpu_and_stand_on_the_page(tmp_path: Path) -> None:
    done = in_process(first_gpu_day.main, "--device", "cpu", "--only", ",".join([*ENGINE, "graph"]), "--out", tmp_path)
    assert done.returncode == 1, "a CPU has no graphs"
    found, page = read(tmp_path)
    steps = {step["name"]: step for step in found["steps"]}
    assert {name: step["verdict"] for name, step in steps.items()} == dict.fromkeys(ENGINE, "as expected") | {
        "graph": "could not run"
    }
    assert "there is none here" in steps["graph"]["came"]
    passes = steps["passes of tiny"]["figures"]
    assert passes["row_invariant"] is True and list(passes["ms"]) == ["16", "40"]
    assert all(value > 0 for row in passes["ms"].values() for value in row.values())
    assert set(steps["rows"]["figures"]["by matrix"]["engine"]) == {f"tiny {part} bfloat16" for part in PARTS}
    assert list(steps["weights"]["figures"]["share of bandwidth"]) == ["16", "8", "4"]
    assert steps["machine"]["figures"].keys() >= {"driver", "triton", "torch"}
    before = steps["host"]["figures"]["ms before a pass"]
    assert {name: list(row) for name, row in before.items()} == {"tree of 4": ["16", "40"], "chain of 1": ["16", "40"]}
    assert all(value > 0 for value in steps["host"]["figures"]["a row"]["ms"].values())
    for step in steps.values():
        assert f"expected: {step['expected']}" in done.stdout and f"came:     {step['came']}" in done.stdout
        assert f"| {step['name']} | {step['expected']} | {step['came']} | {step['verdict']} |" in page
    assert "## passes of tiny: ms" in page and "## rows: by matrix" in page


PARTS = ("qkv", "out", "gate-up", "down", "head")


def test_a_number_of_rows_with_other_bits_is_found() -> None:
    class Odd:
        """A layer that adds in another order where there are few rows."""

        weight_size = weight_bytes = 0

        def __call__(self, x_NI: Tensor) -> Tensor:
            return x_NI.flip(1).cumsum(1) if len(x_NI) < 8 else x_NI.cumsum(1).flip(1)

    assert gpu_engine.equal_rows(Odd(), 16, torch.float32, HOST) == [8, 16, 32, 64]


def test_matrices_are_those_of_the_weights() -> None:
    for config in (GPU.shapes | CPU.shapes).values():
        shapes = expected_shapes(config)
        fused = {
            "qkv": [f"self_attn.{part}_proj" for part in "qkv"],
            "out": ["self_attn.o_proj"],
            "gate-up": ["mlp.gate_proj", "mlp.up_proj"],
            "down": ["mlp.down_proj"],
        }
        for name, parts in fused.items():
            own = [shapes[f"model.layers.0.{part}.weight"] for part in parts]
            assert gpu_engine.matrices(config)[name] == (sum(rows for rows, _ in own), own[0][1])
        assert gpu_engine.matrices(config)["head"] == shapes["lm_head.weight"]


def test_a_slow_pass_and_one_of_other_bits_are_not_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not gpu_engine.passes("tiny", CPU, HOST, 1e30, 2.0).good
    assert gpu_engine.passes("tiny", CPU, HOST, 1.0, 2.0).good
    monkeypatch.setattr(Decoder, "probe", lambda *_: False)
    found = gpu_engine.passes("tiny", CPU, HOST, 1.0, 2.0)
    assert not found.good and "OTHER BITS" in found.text
    assert not gpu_engine.exact_kernels(CPU, HOST).good


def test_a_slow_host_is_not_as_expected() -> None:
    assert gpu_host.host(CPU, HOST, 1e9, 1e9).good
    assert not gpu_host.host(CPU, HOST, 0.0, 1e9).good and not gpu_host.host(CPU, HOST, 1e9, 0.0).good


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_what_a_graph_gives_is_compared(off: float) -> None:
    def record(action: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """As a graph of CUDA, that takes no time and gives results that may be wrong."""
        kept, result = action() + off, action()
        return lambda: result.copy_(kept), result

    found = gpu_engine.graph_gain("tiny", CPU, HOST, record)
    assert found.good == (off == 0.0) and found.figures["equal bits"] == found.good
    assert found.figures["gain"] > 1


def test_a_gpu_is_judged_by_its_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name, rate, good in (
        ("NVIDIA H100 PCIe", 1.8e12, True),
        ("NVIDIA H100 80GB HBM3", 1.8e12, False),
        ("X", 1.0, True),
    ):
        told = SimpleNamespace(name=name, total_memory=80 << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, told=told: told)
        monkeypatch.setattr(gpu_engine, "read_bandwidth", lambda threads, device, rate=rate: rate)
        found = gpu_engine.machine(torch.device("cuda", 0), 1, first_gpu_day.DATA_SHEETS)
        assert found.good == good and name in found.text


def test_random_weights_are_all_that_a_model_needs() -> None:
    config = CPU.models["tiny"]
    weights = RandomWeights(config, torch.bfloat16, HOST)
    assert {name: tuple(weights[name].shape) for name in weights} == expected_shapes(config)
    assert len(weights) == len(expected_shapes(config))


def rows(*methods: str, identical: int = 5) -> list[dict[str, Any]]:
    return [{"method": name, "identical": identical, "questions": 5, "speedup": 1.5} for name in methods]


def test_all_methods_of_the_embedded_pair_run_and_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, tuple[str, ...]] = {}

    def command(day: Day, name: str, methods: str, *more: str, gpus: int | None = None) -> list[dict[str, Any]]:
        asked[name] = (methods, *more)
        return rows(*methods.split(","))

    monkeypatch.setattr(Day, "command", command)
    monkeypatch.setattr(Day, "gpus", 2)
    steps = {step.name: step for step in Day("cuda", "smollm2-135m", tmp_path).steps()}
    for name in ("methods", "sampling", "PEARL on one GPU", "PEARL on two GPUs"):
        assert attempt(steps[name]).verdict == "as expected"
    assert attempt(steps["a split target"]).came.startswith("the target of smollm2-135m can be split among 3 GPUs, and")
    methods = asked["methods"][0].split(",")
    assert {"sps", "pld", "sd2-tree", "medusa", "hydra", "eagle3", "rest", "recycling", "hf-generate"} <= set(methods)
    assert not {"autoregressive", "autoregressive-all", "pearl", "space", "sam-sps"} & set(methods)
    assert asked["sampling"][1:] == ("--temperature", "0.8") and asked["pearl-on-2"] == ("sps,pearl",)
    monkeypatch.setattr(Day, "gpus", 1)
    assert attempt(steps["PEARL on two GPUs"]).came == "it needs 2 GPUs, and there is 1"


def test_an_answer_that_is_not_the_baselines_is_named() -> None:
    found = equal([*rows("sps"), *rows("pld", "hf-generate", identical=4)])
    assert not found.good and "1 of 2 methods identical; not pld; the fastest: sps, 1.50 times" in found.text
    assert equal([*rows("sps"), *rows("hf-generate", identical=0)]).good, "another library's answers may differ"


def test_commands_run_methods_as_a_user_does(
    tmp_path: Path, tiny: Path, tiny_draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "category": "qa", "turns": ["abc abc abc"]}) + "\n")
    more = "--draft", str(tiny_draft), "--dtype", "float32", "--questions", str(questions), "--threads", "1"
    monkeypatch.setattr(first_gpu_day, "runnable", lambda pair: ["pld", "sps"])
    day = Day("cpu", str(tiny), tmp_path / "day", questions=1, tokens=4, more=more)
    assert spend(day, ["methods"]) == 0
    found, page = read(day.out)
    methods = found["steps"][0]["figures"]["methods"]
    assert {name: row["identical"] for name, row in methods.items()} == {"pld": 1, "sps": 1, "hf-generate": 1}
    assert "2 of 2 methods identical" in page
    with pytest.raises(CannotRunError, match="cannot use"):
        day.command("wrong", "pld", "--template", "fschat:cannot use")
    monkeypatch.setattr(first_gpu_day, "PATIENCE", 0.01)
    with pytest.raises(CannotRunError, match=r"it took more than 0.01 seconds: pld --target"):
        day.command("slow", "pld")


def test_whatever_a_step_raises_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(error: Exception) -> Callable[[], Any]:
        def run() -> Any:
            raise error

        return run

    steps = [
        Step("one", "a", raises(torch.OutOfMemoryError("CUDA out of memory.\nTried"))),
        Step("two", "b", raises(UserError("no such model"))),
        Step("three", "c", lambda: Came("2", False)),
        Step("four", "d", lambda: Came("3", True, {"table": {"x": {"y": 0.123456, "z": [1, 2]}, "w": {"y": None}}})),
    ]
    monkeypatch.setattr(Day, "steps", lambda day: steps)
    assert spend(Day("cpu", "smollm2-135m", tmp_path), []) == 1
    found, page = read(tmp_path)
    assert [(step["verdict"], step["came"]) for step in found["steps"]] == [
        ("could not run", "OutOfMemoryError: CUDA out of memory"),
        ("could not run", "no such model"),
        ("not as expected", "2"),
        ("as expected", "3"),
    ]
    assert "## four: table\n\n| | y | z |\n|---|---|---|\n| x | 0.123 | 1, 2 |\n| w |  |  |\n" in page
    assert spend(Day("cpu", "smollm2-135m", tmp_path), ["four"]) == 0


def test_the_embedded_pair_has_weights_for_what_is_run() -> None:
    pair = get_pair("smollm2-135m")
    assert all(not METHODS[name].weights or METHODS[name].weights in pair.drafts for name in runnable(pair))


def test_the_folder_says_what_is_to_come() -> None:
    text = (ROOT / "results/gpu/README.md").read_text()
    assert "No GPU was there" in text and "python scripts/first_gpu_day.py" in text
