"""--read-once: a prompt is read once for all methods. Answers stay what they are; times mean something else."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.answers.header import read_header
from evaluation.answers.record import read_answers
from evaluation.launch.worker import WARM_UP
from evaluation.run import main
from methods.engine.decoder import Decoder, Scores
from methods.engine.loader import find_checkpoint
from methods.engine.transformer import FINAL
from methods.engine.tree import TokenTree
from tests.commands import in_process
from tests.tiny import save_model
from tests.weights import WEIGHTS

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [(7 * i) % 90 + 1 for i in range(40)]


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each kind of decoder has read a prompt of each length from now on."""
    reads: Counter[tuple[str, int]] = Counter()
    read = Decoder._read_prompt

    def counting(decoder: Decoder, tokens_T: list[int], taps: Sequence[int]) -> Any:
        reads["target" if decoder.exact else "draft", len(tokens_T)] += 1
        return read(decoder, tokens_T, taps)

    monkeypatch.setattr(Decoder, "_read_prompt", counting)
    return reads


def equal(one: Scores, other: Scores) -> bool:
    features = (one.features_NF, other.features_NF)
    same = torch.equal(*features) if None not in features else features == (None, None)  # type: ignore[arg-type]
    return torch.equal(one.logits_NV, other.logits_NV) and same


def test_a_prompt_that_is_kept_is_read_once_and_gives_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = find_checkpoint(str(tiny)).transformer("bfloat16", [torch.device("cpu")])
    keeping, plain = Decoder(model), Decoder(model)
    keeping.keep_prompts()
    asked: list[tuple[int, ...]] = [(), (2,), (0, 2, FINAL), (FINAL, 0)]
    for taps in asked:
        keeping.prefill([1, 2], taps)
    tree = TokenTree.of(5, [[6, 7], [6, 8], [9]])
    expected = {taps: plain.prefill(PROMPT, taps) for taps in asked}
    passes = plain.score(tree, (2,))
    reads = counted(monkeypatch)
    for taps, scores in expected.items():
        assert equal(keeping.prefill(PROMPT, taps), scores)
        assert equal(keeping.score(tree, (2,)), passes)
        keeping.commit([0, 1, 3])  # what is decided behind the prompt is forgotten by the next one
    assert reads == {("target", 40): 1}
    keeping.truncate(50 - 10)
    assert equal(keeping.prefill(PROMPT), expected[()]) and reads.total() == 1
    keeping.prefill(PROMPT[:30])
    assert equal(keeping.prefill(PROMPT), expected[()]) and reads.total() == 3
    assert equal(keeping.prefill(PROMPT, (1,)), plain.prefill(PROMPT, (1,))) and reads.total() == 5


def test_a_prompt_whose_rows_may_be_written_over_is_read_again(tiny: Path) -> None:
    model = find_checkpoint(str(tiny)).transformer("bfloat16", [torch.device("cpu")])
    keeping, plain = Decoder(model), Decoder(model)
    keeping.keep_prompts()
    keeping.prefill(PROMPT)
    keeping.truncate(20)
    keeping.extend([1, 2, 3])
    plain.prefill(PROMPT)
    keeping.prefill(PROMPT)
    assert torch.equal(keeping.extend([4]).logits_NV, plain.extend([4]).logits_NV)


@pytest.fixture
def task(tmp_path: Path) -> list[str]:
    """Models with a head, and questions."""
    target, draft = (save_model(tmp_path / n, seed=s, layers=k) for n, s, k in (("target", 0, 3), ("draft", 1, 1)))
    head = WEIGHTS["eagle3"](tmp_path / "head", target)
    texts = "hello there hello there", "one two three", "longer than the context " * 40
    lines = [json.dumps({"question_id": i, "category": "qa", "turns": [text]}) for i, text in enumerate(texts)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    methods = f"pld,sps,sps@gamma=2,eagle3@draft={head}"
    words = f"{methods} --target {target} --draft {draft} --questions {tmp_path / 'questions.jsonl'}"
    return [*words.split(), *["--max-new-tokens", "20", "--template", "chat", "--dtype", "float32", "--threads", "1"]]


def test_answers_are_the_same_and_it_is_told(task: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = in_process(main, *task, "--output", tmp_path / "usual")
    reads = counted(monkeypatch)
    done = in_process(main, *task, "--output", tmp_path / "once", "--read-once")
    assert (usual.returncode, done.returncode) == (0, 0), done.stderr
    assert "read each prompt once for all methods, before the clock ran" in " ".join(done.stdout.split())
    again = {key: count for key, count in reads.items() if count > 1}
    assert [again.pop(("target", length)) for length in (24, 60)] == [2, 2], "probes"
    # Of all prompts the first one of the warm-up is read again, as eagle3 is the first to ask for its taps.
    assert list(again.values()) == [2] and len(reads) == 2 + 2 * (len(WARM_UP) + 2)
    for method in ("autoregressive", "pld", "sps", "sps@gamma=2"):
        one, other = (tmp_path / folder / f"questions/target/{method}.jsonl" for folder in ("usual", "once"))
        tokens = [[a.choices[0].token_ids for a in read_answers(path).values()] for path in (one, other)]
        assert tokens[0] == tokens[1]
        headers = read_header(one), read_header(other)
        assert headers[0] and headers[1] and (headers[0].read_once, headers[1].read_once) == (None, True)
    refused = in_process(main, *task, "--output", tmp_path / "usual", "--read-once")
    assert refused.returncode == 2 and "read_once" in refused.stderr
