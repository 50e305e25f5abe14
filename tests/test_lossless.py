"""lossless.py passes what is lossless and fails what is not: acceptance rules that are wrong on purpose, each caught by
the checks named here, and the intact rule by none."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import methods.engine.verify as engine
from evaluation import lossless
from evaluation.launch.config import parse
from evaluation.proof.audit import auditing
from evaluation.proof.checks import LEAST, LEVEL, TOLERANCE, Check
from evaluation.proof.enumeration import Choices, enumerated
from evaluation.proof.goodness import group, next_token, p_value, samples_needed, uniformity
from evaluation.proof.tiny_pair import enumerate_method
from evaluation.show.losslessness import verdict
from methods import METHODS, get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.drafters.base import Draft
from methods.drafters.language_model import ModelDrafter
from methods.engine import sampling
from methods.engine.link import LinkError
from methods.engine.sampling import Sampling
from methods.errors import UserError
from methods.models import Models
from methods.paths import ROOT
from methods.pearl.draft import local_draft_rank
from methods.pearl.messages import Begin, Order

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = [name for name, spec in METHODS.items() if spec.lossless]
NUCLEUS, NARROW = Sampling(1.0, top_p=0.95), Sampling(0.8, top_p=0.9)  # of three tokens; narrow: mostly of two
SIZES = {"gamma": 3, "branches": 3, "depth": 3, "nodes": 9}
PROMPT = [3, 1, 4, 1, 5, 9, 2]
acceptance, residual, draft = engine.acceptance, engine.residual, ModelDrafter.draft


def accepts_too_often(p_V: Tensor, q_V: Tensor | None, token: int) -> float:
    return min(1.0, 1.5 * acceptance(p_V, q_V, token))


def draws_from_p(p_V: Tensor, q_V: Tensor | None, token: int) -> Tensor:
    return p_V


def does_not_renormalise(p_V: Tensor, q_V: Tensor | None, token: int) -> Tensor:
    """As `draw` divides by the sum, this shows where a sibling is tried against what is left."""
    left = residual(p_V, q_V, token)
    return left * (p_V.sum() - p_V[token]) if q_V is None else (p_V - q_V).clamp_min(0)


def takes_the_next_q(self: ModelDrafter, n: int) -> Draft:
    whole = draft(self, n)
    return Draft(whole.tokens_G, None if whole.q_GV is None else whole.q_GV.roll(1, 0))


def drops_the_doubtful(self: ModelDrafter, n: int) -> Draft:
    """It ends the window before a token of which it is not sure."""
    whole = draft(self, n)
    if whole.q_GV is None:
        return whole
    doubtful = [i for i, token in enumerate(whole.tokens_G) if whole.q_GV[i, token] < 0.3]
    end = doubtful[0] if doubtful else n
    return Draft(whole.tokens_G[:end], whole.q_GV[:end] if end else None)


MUTATIONS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "accepts too often": (engine, "acceptance", accepts_too_often),
    "draws from p, not from the residual": (engine, "residual", draws_from_p),
    "residual not renormalised": (engine, "residual", does_not_renormalise),
    "q off by one position": (ModelDrafter, "draft", takes_the_next_q),
    "token dropped by its own confidence": (ModelDrafter, "draft", drops_the_doubtful),
    "intact": (engine, "residual", residual),
}
EVERY = {"enumeration", "sampling"}
CAUGHT = {
    ("sps", "accepts too often"): EVERY | {"decisions"},
    ("sps", "draws from p, not from the residual"): EVERY | {"decisions"},
    ("sps", "q off by one position"): EVERY | {"drafts"},
    ("sps", "token dropped by its own confidence"): EVERY | {"drafts"},
    ("sps", "intact"): set[str](),
    ("sd2-tree", "residual not renormalised"): {"enumeration", "decisions"},
    ("sd2-tree", "intact"): set[str](),
}


@pytest.fixture
def pair(tiny: Path) -> Models:
    """With a draft that agrees with its target often enough to be kept."""
    return Models(str(tiny), "first-2", "float32", [torch.device("cpu")])


@pytest.fixture
def sorted_pair(tiny: Path, tiny_sorted: Path) -> Models:
    return Models(str(tiny), str(tiny_sorted), "float32", [torch.device("cpu")])


def enumeration_fails(name: str) -> bool:
    drawn = NUCLEUS if name == "sd2-tree" else NARROW  # siblings need a third token to be tried against
    return enumerate_method(get_method(name), {}, drawn).difference > TOLERANCE


def sampling_fails(models: Models, name: str) -> bool:
    groups = group(next_token(models.target, PROMPT, Sampling(1.0)), 3, frozenset(), LEAST)
    method = build_method(get_method(name), models, SIZES)
    answers = [
        generate(method, PROMPT, Sampling(1.0, seed=seed), Limits(frozenset(), 3)).token_ids
        for seed in range(samples_needed(groups.count, 0.1, 0.9, LEVEL))
    ]
    return p_value(groups, answers) <= LEVEL


def audits_that_fail(models: Models, name: str) -> set[str]:
    method = build_method(get_method(name), models, SIZES)
    with auditing() as found:
        for seed in range(20):
            generate(method, PROMPT, Sampling(1.0, seed=seed), Limits(frozenset(), 24))
    assert found.passes > 100 and found.tried > 200
    fit = uniformity(found.positions)
    wrong = {"decisions"} if found.broken else set()
    return wrong | ({"drafts"} if fit is not None and fit <= LEVEL else set())


@pytest.mark.parametrize("name, mutation", CAUGHT)
def test_a_wrong_rule_is_caught_by_these_checks(
    pair: Models, sorted_pair: Models, name: str, mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*MUTATIONS[mutation])
    models = sorted_pair if name == "sd2-tree" else pair
    caught = audits_that_fail(models, name)
    caught |= {"enumeration"} if enumeration_fails(name) else set()
    if name == "sps":
        caught |= {"sampling"} if sampling_fails(models, name) else set()
    assert caught == CAUGHT[name, mutation]


@pytest.mark.parametrize(
    "mutation", ["accepts too often", "draws from p, not from the residual", "q off by one position"]
)
def test_a_wrong_rule_is_caught_over_two_ranks(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTATIONS[mutation])
    found = enumerate_method(get_method("pearl"), {"gamma": 5}, NARROW)
    assert found.difference > 1e-3


@pytest.mark.parametrize(
    "name", ["pearl@branches=1", "pearl-eagle3@branches=3@without=post-verify", "pearl-sd2@branches=3"]
)
def test_branches_leave_the_targets_distribution(name: str) -> None:
    found = enumerate_method(get_method(name), {"gamma": 8}, NUCLEUS)
    assert found.difference < 1e-12 and found.answers == 22
    plain = get_method(name.replace("branches=1", "branches=0").replace("branches=3", "branches=0"))
    assert found.runs != enumerate_method(plain, {}, NUCLEUS).runs, "else nothing was prepared"


@pytest.mark.parametrize("name", OURS)
def test_every_method_has_exactly_the_targets_distribution(name: str) -> None:
    found = enumerate_method(get_method(name), {"gamma": "auto"}, NUCLEUS)
    assert found.difference < 1e-12
    assert found.answers == 22
    assert found.runs >= found.answers


def test_a_run_that_does_not_repeat_is_an_error() -> None:
    weights = iter([[0.5, 0.5], [1.0, 0.0]])
    with pytest.raises(AssertionError, match="cannot be repeated"):
        enumerated(lambda: [sampling.draw(torch.tensor(next(weights)), torch.Generator())])


def test_choices_are_gone_through_once() -> None:
    found, runs = enumerated(
        lambda: [sampling.draw(torch.tensor(row), torch.Generator()) for row in ([1.0, 3.0], [2.0, 0.0, 2.0])]
    )
    assert (found, runs) == ({(0, 0): 0.125, (0, 2): 0.125, (1, 0): 0.375, (1, 2): 0.375}, 4)
    assert Choices([1]).choose([0.5, 0.5]) == 1


def test_an_error_of_the_draft_rank_is_told() -> None:
    with pytest.raises(LinkError, match="has ended") as told, local_draft_rank({}) as (link, _):
        link.send(Begin("nobody", False, [1], Sampling()))
        link.send(Order(1, [1], False, 1, False, None))
        link.receive("a draft")
    assert isinstance(told.value.__cause__, KeyError)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    turns = [["hello there hello there"], ["one two", "three"], ["abc abc abc abc"], ["what is 1+1"]]
    lines = [{"question_id": i, "category": "qa", "turns": several} for i, several in enumerate(turns)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def arguments(target: Path, draft: Path, questions: Path, method: str, *more: str) -> list[str]:
    models = ["--target", str(target), "--draft", str(draft), "--dtype", "float32", "--template", "chat"]
    sizes = ["--limit", "3", "--max-new-tokens", "16", "--top-p", "0.9", "--temperature", "0.8"]
    return [method, *models, *sizes, "--questions", str(questions), "--threads", "1", *more]


def call(monkeypatch: pytest.MonkeyPatch, given: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["lossless.py", *given, "--prompts", "2"])
    return lossless.main()


def test_what_is_lossless_passes(
    tiny: Path, tiny_draft: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, arguments(tiny, tiny_draft, questions, "sps", "--gamma", "2", "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["method"], document["lossless"]) == ("sps", True)
    checks = {check["name"]: check for check in document["checks"]}
    assert list(checks) == ["greedy, float32", "enumeration", "sampling", "audit of decisions", "audit of drafts"]
    assert checks["greedy, float32"]["identical"] == 3
    assert checks["sampling"]["drafted"] > 0 and len(checks["sampling"]["p_values"]) == 2
    assert checks["audit of decisions"]["tried"] > 0


def test_what_is_not_lossless_fails_and_says_where(
    tiny: Path, tiny_draft: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "acceptance", lambda p_V, q_V, token: 1.0)
    monkeypatch.setattr(engine, "_matching_child", lambda tree, children, best: next(iter(children), None))
    assert call(monkeypatch, arguments(tiny, tiny_draft, questions, "sps")) == 1
    printed = capsys.readouterr().out
    failed = "greedy, float32 and enumeration and sampling and audit of decisions"
    assert printed.endswith(f"it failed {failed}.\n")
    assert "different from token 2 on" in printed
    assert "expected the nodes [0" in printed


def test_a_variant_over_two_ranks_is_proved_by_one_command(
    tiny: Path,
    weights: dict[str, Path],
    questions: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    method = "pearl-eagle3@branches=3"
    given = arguments(tiny, weights["eagle3"], questions, method, "--dtype", "bfloat16", "--shift", "0.5", "--json")
    assert call(monkeypatch, given) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["method"], document["lossless"]) == (method, True)
    checks = {check["name"]: check for check in document["checks"]}
    greedy = ["greedy, bfloat16", "greedy, float32"]
    assert list(checks) == [*greedy, "enumeration", "sampling", "audit of decisions", "audit of drafts"]
    assert [checks[name]["identical"] for name in greedy] == [3, 3]
    assert checks["audit of decisions"]["tried"] > 30 and checks["audit of drafts"]["drafted"] > 30


@pytest.mark.parametrize(
    "outcomes, sentence",
    [
        ([True, True], "pld is lossless on smollm2-135m: it passed all 2 checks."),
        ([True, False], "pld is NOT lossless on smollm2-135m: it failed check 1."),
        ([False, False], "pld is NOT lossless on smollm2-135m: it failed check 0 and check 1."),
    ],
)
def test_the_verdict_is_one_sentence(outcomes: list[bool], sentence: str) -> None:
    checks = [Check(f"check {i}", "", "", passed) for i, passed in enumerate(outcomes)]
    assert verdict(parse(["pld", "smollm2-135m"]), checks).plain == sentence


@pytest.mark.parametrize(
    "given, message",
    [
        (["hf-pld", "smollm2-135m"], "hf-pld is another library's loop"),
        (["pld,sps", "smollm2-135m"], "expected one method"),
        (["pldd", "smollm2-135m"], "did you mean 'pld'"),
        (["pld", "smollm2-135m", "--temperature", "0"], "expected a temperature above 0"),
        (["pld", "--target", "/nowhere"], "expected a model folder"),
    ],
)
def test_mistakes_get_one_sentence(given: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=message):
        call(monkeypatch, given)


def test_prompts_that_are_certain_are_refused(
    tiny: Path, tiny_draft: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="uncertain behind the first token"):
        call(monkeypatch, arguments(tiny, tiny_draft, questions, "pld", "--top-k", "1"))


def test_help_is_instant() -> None:
    code = "import sys, evaluation.lossless; print([m for m in sys.modules if m in ('torch', 'scipy', 'pandas')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
