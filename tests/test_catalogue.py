"""What a newcomer asks, and what a run tells at its end."""

import json
import sys
from pathlib import Path

import pytest

from evaluation.launch import catalogue
from evaluation.launch.afterwards import point_to, report_command
from evaluation.launch.catalogue import answer_at_once
from methods.errors import UserError
from methods.paths import ROOT
from tests.answer_files import header

PAIR = "smollm2-135m"


def test_a_method_explains_itself() -> None:
    told = answer_at_once(["pearl", PAIR, "--help"]) or ""
    assert all(word in told for word in ("Liu et al. 2025", "--gamma", "default auto", "--without", "two ranks"))
    assert "--max-ngram" not in told
    both = answer_at_once(["sps@gamma=3, pld", "-h"]) or ""
    assert "3 in this variant" in both and "Saxena 2023" in both
    with pytest.raises(UserError, match="no method 'cascade'"):
        answer_at_once(["cascade", "--help"])
    assert answer_at_once(["--help"]) is None, "argparse's own"
    assert answer_at_once(["pld", PAIR]) is None


def test_the_version_is_that_of_the_code() -> None:
    assert f'version = "{(answer_at_once(["--version"]) or "").split()[-1]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_list_says_what_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_hub: None) -> None:
    folder = tmp_path / "pld-1" / "humaneval" / PAIR
    folder.mkdir(parents=True)
    (folder / "pld.run.json").write_text(json.dumps(header(questions=20).to_json()))
    (folder / "pld.jsonl").write_text("{}\n{}\n")
    (folder / "sps.run.json").write_text("{")
    (tmp_path / "latest").symlink_to("pld-1")
    monkeypatch.setattr(catalogue, "LOCAL", tmp_path)
    lines = {line.split()[0]: line for line in (answer_at_once(["list"]) or "").splitlines() if line.startswith("  ")}
    assert "  here  " in lines[PAIR] and "about 14 GB from the hub" in lines["vicuna-7b-68m"]
    assert lines["humaneval"].endswith("here") and "scripts/fetch.py spec_bench" in lines["spec_bench"]
    assert "a sorted draft, two ranks" in lines["pearl-sd2"]
    assert lines["pld-1"].endswith("pld 2/20, sps unreadable") and "latest" not in lines


def test_the_last_run_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point_to(tmp_path / "latest", tmp_path / name)
        assert (tmp_path / "latest").resolve() == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one", "two"]
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    with pytest.raises(OSError):
        point_to(tmp_path / "latest", tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one", "two"], "nothing is left beside it"
    monkeypatch.chdir(tmp_path)
    assert report_command(tmp_path / "a b").endswith(f"{ROOT}/evaluation/report.py 'a b'")
    assert sys.executable in report_command(tmp_path)
