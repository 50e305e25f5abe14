"""Provenance: what a run header says of code and machine, on real repositories and real memory."""

import json
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch

from evaluation.launch import provenance
from evaluation.launch.provenance import environment, git_commit, gpu_names, read_bandwidth
from methods.errors import UserError


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_environment_is_a_json_document() -> None:
    found = json.loads(json.dumps(environment()))
    assert set(found) == {"versions", "cpu", "gpu", "git_commit", "created"}
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(found["versions"]) == {"python", "torch", "transformers"}
    assert found["cpu"] and (found["gpu"] is None) == (not torch.cuda.is_available())
    assert abs(datetime.now().timestamp() - datetime.fromisoformat(found["created"]).timestamp()) < 60


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit(tmp_path) is None, "no repository"
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "untracked").write_text("1")
    assert git_commit(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "inner").mkdir()
    assert git_commit(tmp_path / "inner") is None, "another project's repository around it says nothing"
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None, "git is not installed"


def test_read_bandwidth_is_that_of_memory() -> None:
    """Within what memory can do: neither the cost of a Python call, nor a cache's speed."""
    threads = torch.get_num_threads()
    rate = read_bandwidth(1)
    assert 1e9 < rate < 300e9
    assert torch.get_num_threads() == threads


def test_a_probe_reads_other_memory_each_time_and_at_the_speed_that_there_is() -> None:
    probe = provenance.Probe()
    read = [probe.read() for _ in range(8)]
    assert min(read) > 1e9 and max(read) < 300e9 and len(set(read)) > 1
    pages = provenance.huge_page_bytes()
    assert pages is None or pages >= 0


def test_the_memory_that_is_read_is_a_few_times_the_last_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a gibibyte where a limit may be set, nor what a cache could hold."""
    cache = provenance.last_level_cache()
    assert 0 <= cache < 1 << 32
    size = provenance._buffer_bytes(torch.device("cpu"))
    assert 4 * cache <= size < 1 << 30 or size == 1 << 30 < 4 * cache
    monkeypatch.setattr(provenance, "last_level_cache", lambda: 0)
    assert provenance._buffer_bytes(torch.device("cpu")) == 1 << 28


def test_memory_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_buffer_bytes", lambda device: 1 << 60)
    provenance._parts.cache_clear()  # which the process keeps
    with pytest.raises(UserError, match="not enough memory to measure how fast it is read"):
        read_bandwidth(1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_read_bandwidth_of_a_gpu() -> None:
    assert gpu_names()
    assert 50e9 < read_bandwidth(1, "cuda") < 20e12
