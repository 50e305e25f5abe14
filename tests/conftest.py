"""Fixtures shared by engine, method and runner tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evaluation import hub
from methods.engine import native
from tests.tiny import VOCABULARY, save_draft, save_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random target."""
    return save_model(tmp_path_factory.mktemp("tiny"), seed=0, layers=3)


@pytest.fixture(scope="session")
def tiny_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny model of the same vocabulary, padded to a larger size, as Qwen's models are."""
    return save_model(tmp_path_factory.mktemp("tiny_draft"), seed=1, layers=1, vocab_size=104)


@pytest.fixture(scope="session")
def tiny_sorted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny target's own layers as a draft with exits, in int8, that knows three quarters of the tokens."""
    known = [token for token in range(VOCABULARY) if token % 4]
    return save_draft(tmp_path_factory.mktemp("tiny_sorted"), tiny, known)


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
