"""A drafter behind another one: exact by both loops, lossless where one draws and the other does not, and each knows
what the other has drafted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.launch.catalogue import method_help
from evaluation.launch.config import parse
from evaluation.launch.header import run_headers
from evaluation.launch.measure import open_session
from evaluation.proof.tiny_pair import enumerate_method
from methods import BASELINE, DRAFTERS, METHODS, get_method
from methods.base import Generation, Limits, generate
from methods.build import build_chain_drafter, build_drafter, build_method
from methods.drafters import draft_model
from methods.drafters.base import ChainDrafter, Draft
from methods.drafters.behind import Behind
from methods.engine import sampling
from methods.engine.sampling import Sampling
from methods.engine.transformer import FINAL
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.target import Outcome, Target
from tests.goldens import GOLDENS

CPU = [torch.device("cpu")]
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [(7 * i) % 90 + 1 for i in range(80)]]
GREEDY, NUCLEUS = Sampling(), Sampling(1.0, top_p=0.95)
HOT = Sampling(30.0, seed=4)  # so that a random head is not certain, and all that it reads shows in its q
PLACES = 3  # that the tiny heads draft for
ENDING = [name for name, spec in DRAFTERS.items() if spec.ends]
CHAINS = [name for name, spec in DRAFTERS.items() if "chain" in spec.shapes and spec.parts is None]
PAIRS = [(first, other) for first in ENDING for other in CHAINS if first != other]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def models(request: pytest.FixtureRequest, tiny: Path, weights: dict[str, Path]) -> Models:
    drafts = {kind: str(path) for kind, path in weights.items()}
    return Models(str(tiny), None, request.param, CPU, drafts=drafts)


def answer(models: Models, name: str, prompt: list[int], tokens: int = 40, drawn: Sampling = GREEDY) -> Generation:
    """By a method of either loop; PEARL's draft rank is a thread."""
    spec, limits = get_method(name), Limits(frozenset(), tokens)
    models = models.of_kind(spec.weights)
    if spec.loop != "pearl":
        return generate(build_method(spec, models, {}), prompt, drawn, limits)
    theirs = Models(models.target_source, None, models.dtype, CPU, drafts_only=True, drafts=models.drafts)
    with local_draft_rank({spec.name: build_chain_drafter(spec, theirs.of_kind(spec.weights), {})}) as (link, ready):
        models.link = link
        method: Any = build_method(spec, models, {})
        method.meet(ready[spec.name])
        return generate(method, prompt, drawn, limits)


def test_every_drafter_of_chains_may_go_on_behind_heads_that_end() -> None:
    assert {"medusa", "hydra"} == set(ENDING) and {"model", "pld", "sd2", "eagle", "eagle3", "toy-head"} <= set(CHAINS)
    for first in ENDING:
        for row in (METHODS[first], METHODS[f"pearl-{first}"]):
            assert set(row.options["behind"].words) == {"nothing", *CHAINS} - {first}
    assert not any("behind" in METHODS[name].options for name in ("pearl", "sps", "pearl-eagle3", "pld"))


@pytest.mark.parametrize("first, other", PAIRS)
def test_greedy_output_is_the_targets_own(models: Models, first: str, other: str) -> None:
    for prompt in PROMPTS:
        expected = answer(models, BASELINE, prompt).token_ids
        for name in (f"{first}@shape=chain@gamma=6", f"pearl-{first}@gamma=5", f"pearl-{first}@gamma=4@without=both"):
            got = answer(models, f"{name}@behind={other}", prompt)
            assert got.token_ids == expected and sum(got.accept_lengths) == 40
            if other not in (
                "pld",
                "sam",
                "toy-head",
                *ENDING,
            ):  # which may find nothing to copy, or have no more heads
                assert max(span.tokens for span in got.spans) > PLACES


@pytest.mark.parametrize("name", ["medusa@shape=chain@gamma=6@behind=model", "pearl-hydra@gamma=5@behind=eagle3"])
def test_sampling_repeats_with_the_seed_and_only_then(models: Models, name: str) -> None:
    runs = [answer(models, name, PROMPTS[0], 30, Sampling(1.0, seed=seed)).token_ids for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_context_that_fills_ends_the_answer(tiny: Path, weights: dict[str, Path]) -> None:
    drafts = {kind: str(path) for kind, path in weights.items()}
    short = Models(str(tiny), None, "float32", CPU, 80, drafts=drafts)
    prompt = PROMPTS[1][:70]
    expected = answer(short, BASELINE, prompt, 500)
    for first, other in PAIRS:
        got = answer(short, f"{first}@shape=chain@gamma=9@behind={other}", prompt, 500)
        assert (got.token_ids, got.finish) == (expected.token_ids, "context")


# each knows what the other has drafted --------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", ["medusa", "hydra_mlp", "hydra_prefix_mlp"])
@pytest.mark.parametrize("loop", ["turns", "pearl", "pearl without pre-verify"])
def test_behind_heads_that_are_right_a_perfect_model_is_never_rejected(
    golden: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target itself as the other: what a pass rejects, a head has drafted."""
    monkeypatch.setattr(draft_model, "check_same_tokenizer", lambda *_: None)  # this target has none
    kind = golden.partition("_")[0]
    target = str(GOLDENS / "target")
    drafts = {kind: str(GOLDENS / golden / "head"), "model": target}
    both = Models(target, None, "float32", CPU, drafts=drafts)
    name = {
        "turns": f"{kind}@shape=chain@gamma=8",
        "pearl": f"pearl-{kind}@gamma=4",
        "pearl without pre-verify": f"pearl-{kind}@gamma=5@without=pre-verify",
    }[loop]
    got = answer(both, f"{name}@heads=2@behind=model", PROMPTS[0], 100)
    assert got.token_ids == answer(both, BASELINE, PROMPTS[0], 100).token_ids
    first, kept_of_model = 0, 0
    for judged, kept in zip(got.drafted, got.accepted, strict=True):
        depths = got.depths[first : first + judged]
        assert kept == judged or depths[kept] > 0, "0: of the model, which reads no features"
        kept_of_model += depths[:kept].count(0)
        first += judged
    assert kept_of_model > 10 and max(got.depths) == 2


@pytest.mark.parametrize("other", [name for name in CHAINS if name != "toy-head"])  # which copies from where it was
def test_taken_tokens_are_as_good_as_ones_own(models: Models, other: str) -> None:
    """One drafter drafts, another takes the same tokens; then both go on alike."""
    spec = DRAFTERS[other]
    row = get_method("pearl" if other == "model" else f"pearl-{other}")
    its_models = models.of_kind(spec.weights)
    apart = Models(models.target_source, its_models.draft_source, models.dtype, CPU, drafts_only=True)
    ours, theirs = build_chain_drafter(row, its_models, {}), build_chain_drafter(row, apart, {})
    target = Target(models.target, ours.taps)
    for drawn in (GREEDY, HOT):
        first, features_TF = target.start(PROMPTS[1], drawn)
        for drafter in (ours, theirs):
            drafter.begin(PROMPTS[1], drawn, features_TF)
            drafter.settle(first)
        found = ours.draft(2 if other in ENDING else 4).tokens_G
        theirs.take(found)
        assert theirs.drafted == ours.drafted == found
        one, another = ours.draft(1), theirs.draft(1)
        assert len(one.tokens_G) == len(another.tokens_G) == (other not in ("pld", "sam") or bool(one.tokens_G))
        assert theirs.depths(len(another.tokens_G)) == ours.depths(len(one.tokens_G))
        if one.q_GV is None or another.q_GV is None:
            assert one.q_GV is another.q_GV and one.tokens_G == another.tokens_G
        else:
            assert torch.equal(one.q_GV, another.q_GV)


@pytest.mark.parametrize("known", [0, 1])
def test_a_head_reads_taken_tokens_behind_true_features_as_if_it_had_settled_there(models: Models, known: int) -> None:
    """Two are decided; of what it knew of those, from its own predictions, nothing is left."""
    row, its_models = get_method("pearl-eagle3"), models.of_kind("eagle3")
    apart = Models(models.target_source, its_models.draft_source, models.dtype, CPU, drafts_only=True)
    drafter, fresh = build_chain_drafter(row, its_models, {}), build_chain_drafter(row, apart, {})
    right = answer(models, BASELINE, PROMPTS[0], 6).token_ids[1:]
    target = Target(models.target, drafter.taps)
    first, features_TF = target.start(PROMPTS[0], GREEDY)
    for each in (drafter, fresh):
        each.begin(PROMPTS[0], HOT, features_TF)
        each.settle(first)
    drafter.take(right[:known])
    drafter.draft(1)
    del drafter.drafted[known:]  # so that the states before the first are known, and no others
    drafter.take(right[known:])
    outcome = target.judge(TokenTree.chain([target.pending, right[0]]))
    assert outcome.tokens == right[:2] and outcome.features_AF is not None
    drafter.confirm(outcome._replace(leaf_kept=True))
    fresh.settle(outcome)
    fresh.take(right[2:])
    assert drafter.drafted == fresh.drafted == right[2:]
    got, expected = drafter.draft(1), fresh.draft(1)
    assert got.q_GV is not None and expected.q_GV is not None and torch.equal(got.q_GV, expected.q_GV)


class Counting(ChainDrafter):
    """Reads some taps, of which it is told a row for each token, and drafts its own number, or draws."""

    def __init__(self, token: int, taps: tuple[int, ...], longest: int | None) -> None:
        super().__init__()
        self.token, self.taps, self.longest = token, taps, longest
        self.told: list[Tensor | None] = []

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        self.told, self.drafted = [features_TF], []

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        self.told.append(outcome.features_AF)

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        self.told.append(outcome.features_AF)

    def draft(self, n: int) -> Draft:
        tokens = [self.token] * (n if self.longest is None else max(0, min(n, self.longest - len(self.drafted))))
        self.drafted += tokens
        return Draft(tokens)


def test_each_reads_its_own_slice_and_the_first_goes_on_as_soon_as_it_can() -> None:
    """Three of them, of which the second reads nothing, each with its own number."""
    parts = [Counting(1, (FINAL,), 2), Counting(2, (), 3), Counting(3, (0, 1), None)]
    drafter = Behind(parts[0], Behind(parts[1], parts[2]))
    assert drafter.taps == (FINAL, 0, 1) and drafter.longest is None
    features_TF = torch.arange(24.0).view(2, 12)  # width 4 of each tap
    drafter.begin([5, 6], GREEDY, features_TF)
    drafter.settle(Outcome([7], [0], features_TF[1:]))
    assert (drafter.draft(4).tokens_G, drafter.depths(4)) == ([1, 1, 2, 3], [1, 2, 0, 4])
    assert (drafter.draft(1).tokens_G, drafter.depths(1)) == ([3], [5])
    assert all(part.drafted == drafter.drafted == [1, 1, 2, 3, 3] for part in parts)
    drafter.confirm(Outcome([1, 1, 2, 3], [0, 1, 2, 3], features_TF[:1].expand(4, -1), leaf_kept=True))
    assert all(part.drafted == [3] and part.pending == 3 for part in (*parts, drafter))
    assert (drafter.draft(3).tokens_G, drafter.depths(3)) == ([1, 2, 3], [2, 0, 4])
    for part, columns in zip(parts, (range(4), range(0), range(4, 12)), strict=True):
        rows = [None if told is None else told[0].tolist() for told in part.told]
        whole = [features_TF[row, list(columns)].tolist() for row in (0, 1, 0)]
        assert rows == (whole if part.taps else [None] * 3)


def test_it_is_as_long_as_the_longer_one() -> None:
    for first, other, both in ((2, 5, 5), (5, 2, 5), (2, None, None)):
        assert Behind(Counting(1, (), first), Counting(2, (), other)).longest == both
    assert Behind(Counting(1, (), 2), Counting(2, (), None)).draft(0).tokens_G == []


# losslessness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first, other", PAIRS)
@pytest.mark.parametrize("loop", ["turns", "pearl"])
def test_sampled_answers_have_the_targets_distribution(first: str, other: str, loop: str) -> None:
    name = f"pearl-{first}" if loop == "pearl" else f"{first}@shape=chain"
    found = enumerate_method(get_method(f"{name}@behind={other}"), {}, NUCLEUS)
    assert found.difference < 1e-12 and found.runs >= found.answers


MIXED = ["medusa@shape=chain@behind=model", "pearl-medusa@behind=model", "pearl-medusa@behind=model@heads=2"]


@pytest.mark.parametrize("name", MIXED)
def test_deterministic_drafts_among_drawn_ones_are_point_masses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a distribution that is a little off, the output would be. In the last one the two come in different
    windows: the head's first, the model's behind it."""
    assert enumerate_method(get_method(name), {}, NUCLEUS).difference < 1e-12

    def blurred(token: int, like_V: Tensor) -> Tensor:
        return torch.full_like(like_V, 0.1).index_fill(0, torch.tensor(token), 1 - 0.1 * (len(like_V) - 1))

    monkeypatch.setattr(sampling, "_point_mass", blurred)
    assert enumerate_method(get_method(name), {}, NUCLEUS).difference > 1e-3


@pytest.mark.parametrize("name", ["medusa@shape=chain@behind=model", "pearl-hydra@behind=model"])
def test_rows_that_are_off_by_one_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Behind.draft

    def rolled(self: Behind, n: int) -> Draft:
        draft = whole(self, n)
        return Draft(draft.tokens_G, None if draft.q_GV is None else draft.q_GV.roll(1, 0))

    monkeypatch.setattr(Behind, "draft", rolled)
    assert enumerate_method(get_method(name), {}, NUCLEUS).difference > 1e-3


# as a user names it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "methods, sentence",
    [
        (
            "medusa@shape=chain@behind=eagle3",
            "'medusa@shape=chain@behind=eagle3' needs a draft of the kind 'eagle3', and vicuna-7b-68m has none; add "
            "drafts.eagle3 to data/pairs.toml",
        ),
        ("medusa@behind=pld", "behind counts for a chain only, this is a tree; add @shape=chain"),
        ("medusa@heads=2", "heads counts for a chain only, this is a tree; add @shape=chain"),
        ("pearl-medusa@behind=medusa", "expected pearl-medusa@behind=VALUE to be nothing or model or pld"),
        ("pearl-medusa@behind=recycling", "expected pearl-medusa@behind=VALUE to be nothing or model or pld"),
    ],
)
def test_mistakes_get_one_sentence(methods: str, sentence: str) -> None:
    with pytest.raises(UserError) as told:
        parse([methods, "vicuna-7b-68m"])
    assert sentence in str(told.value) and "\n" not in str(told.value)


def test_help_names_the_weights_of_both() -> None:
    for variant, needs in (("pearl-medusa@behind=eagle2", "a medusa draft and a eagle draft, two ranks"),
                           ("medusa@shape=chain@behind=pld", "a medusa draft"), ("pld", "no draft")):  # fmt: skip
        assert f"needs: {needs}\n" in method_help(get_method(variant))


def test_the_header_names_the_weights_of_both(tiny: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question_id": 1, "category": "qa", "turns": ["hello"]}\n')
    names = ["medusa@shape=chain@behind=model", "medusa@shape=chain@behind=pld", "medusa"]
    config = parse([",".join(names), "--target", str(tiny), "--questions", str(questions), "--draft", "x"])
    config.pair.drafts.update({kind: str(path) for kind, path in weights.items()})  # type: ignore[attr-defined]
    headers = run_headers(open_session(config))
    ordered = [headers[name] for name in names]
    assert [header.draft and header.draft["source"] for header in ordered] == [str(weights["medusa"])] * 3
    assert [header.behind and header.behind["source"] for header in ordered] == [str(weights["model"]), None, None]
    assert [headers[name].shape for name in names] == ["chain", "chain", "tree"]
    assert "behind" not in (headers["medusa"].options or {}) and (headers[names[0]].options or {})["behind"] == "model"


def test_a_tree_is_built_without_what_goes_on_behind_chains(models: Models) -> None:
    drafter = build_drafter(get_method("medusa"), models.of_kind("medusa"), {"behind": "pld"})
    assert not isinstance(drafter, Behind)
