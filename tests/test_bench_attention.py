"""The comparison of attention in order and in fp64: two stacks over one set of weights, which say the same."""

import json
from pathlib import Path

import bench_attention
import pytest
import torch

from methods.engine.decoder import Decoder
from methods.engine.loader import find_checkpoint
from methods.engine.tree import TokenTree
from tests.commands import in_process

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("operators", ["native"], indirect=True)
def test_attention_alone_differs(tiny: Path, operators: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = bench_attention.both(find_checkpoint(str(tiny)).transformer("float32", [torch.device("cpu")]))
    assert [model.stack.operators for model in models.values()] == ["native", "torch"]
    assert models["torch"].layers is models["native"].layers
    logits = {}
    for name, model in models.items():
        decoder = Decoder(model, 40)
        decoder.prefill([3, 1, 4, 1, 5])
        logits[name] = decoder.score(TokenTree.chain([9, 2])).logits_NV
    assert torch.allclose(logits["native"], logits["torch"], rtol=1e-4, atol=1e-4)
    assert not torch.equal(logits["native"], logits["torch"])
    monkeypatch.setattr(bench_attention, "CONTEXTS", (4, 16))
    done = in_process(bench_attention.main, tiny, "--rounds", 2, "--threads", 1, "--dtype", "float32", "--json")
    ms = json.loads(done.stdout)["ms"]
    assert {name: {n: list(row) for n, row in rows.items()} for name, rows in ms.items()} == {
        name: {"1": ["4", "16"], "8": ["4", "16"]} for name in ("native", "torch")
    }


@pytest.mark.parametrize("operators", ["torch"], indirect=True)
def test_without_native_operators_there_is_nothing_to_compare(tiny: Path, operators: str) -> None:
    done = in_process(bench_attention.main, tiny)
    assert done.returncode == 2 and "there is nothing to compare" in done.stderr
