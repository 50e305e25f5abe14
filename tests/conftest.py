"""Fixtures shared by engine, method and runner tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.launch import hub
from methods.engine.backends import cpu as native
from tests.tiny import save_model
from tests.weights import WEIGHTS

SLOW = (
    "pearl",
    "ranks",
    "lossless",
    "pretended_gpus",
    "loader",
    "methods",
    "runner",
    "sorted",
    "native",
    "eagle",
    "launch",
    "setup",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first: the processes that share the files then end together."""
    place = {f"test_{name}": number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: place.get(item.path.stem, len(SLOW)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random target."""
    return save_model(tmp_path_factory.mktemp("tiny"), seed=0, layers=3)


@pytest.fixture(scope="session")
def weights(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each kind of weights, for the tiny target."""
    return {kind: write(tmp_path_factory.mktemp(kind), tiny) for kind, write in WEIGHTS.items()}


@pytest.fixture(scope="session")
def tiny_draft(weights: dict[str, Path]) -> Path:
    """The draft model of the tiny target."""
    return weights["model"]


@pytest.fixture(scope="session")
def tiny_sorted(weights: dict[str, Path]) -> Path:
    """The draft with exits of the tiny target."""
    return weights["sorted"]


@pytest.fixture(params=["native", "torch"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which operators run the models of this test."""
    monkeypatch.setenv("PEARL_BENCH_NATIVE", "1" if request.param == "native" else "0")
    native.library.cache_clear()
    if request.param == "native" and native.library() is None:
        pytest.skip("no native operators here")
    yield request.param
    native.library.cache_clear()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For such small models more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A hub that refuses connections, and an empty cache."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    hub.answers.cache_clear()
    yield
    hub.answers.cache_clear()


@pytest.fixture
def even_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of two blocks in Triton's interpreter gives an element the same bits in blocks of any size, as one
    instruction of a GPU does: it is summed in fp64 and rounded once. numpy's own kernels are chosen by the size."""
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self: Any, a: Any, b: Any, sums: Any, *_: Any) -> Any:
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return TensorHandle(product.astype(sums.data.dtype) + sums.data, sums.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
