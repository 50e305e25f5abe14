"""Fixtures shared by engine, method and runner tests."""

from pathlib import Path

import pytest

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
