"""Every method of the table against the target alone: exact equality, with awkward EOS, limits and prompt lengths."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from methods import BASELINE, DRAFTERS, METHODS, get_method
from methods.base import STOPPED, Generation, Limits, Step, generate
from methods.build import build_method
from methods.drafters.draft_model import draft_decoder, draft_model
from methods.engine.decoder import Decoder
from methods.engine.sampling import Sampling
from methods.errors import UserError
from methods.models import Models
from methods.target import Outcome
from tests.weights import WEIGHTS

OURS = [name for name, spec in METHODS.items() if spec.lossless and name != BASELINE and spec.ranks == 1]
# Of rows over two drafters as one, one stands for all where ends are tried in many ways.
TWO = "sam-eagle3"
MANY = [BASELINE, *(name for name in OURS if name == TWO or not ((row := METHODS[name].drafter) and row.parts))]
REFERENCES = [name for name in METHODS if name.startswith("hf-")]  # servers and llama.cpp have tests of their own
GREEDY = Sampling()
PROMPTS = {1: [5], 2: [5, 9], 7: [3, 1, 4, 1, 5, 9, 2], 80: [(7 * i) % 90 + 1 for i in range(80)]}


@dataclass
class Pair:
    """A target, and a checkpoint of each kind of weights."""

    target: Models
    weights: dict[str, Path]

    def of(self, name: str) -> Models:
        kind = get_method(name).weights
        return self.target.with_draft(str(self.weights[kind])) if kind else self.target


def models(target: Path, draft: Path | None, dtype: str = "float32", max_length: int | None = None) -> Models:
    return Models(str(target), None if draft is None else str(draft), dtype, [torch.device("cpu")], max_length)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pair(request: pytest.FixtureRequest, tiny: Path, weights: dict[str, Path]) -> Pair:
    return Pair(models(tiny, None, request.param), weights)


def answer(
    pair: Pair | Models, name: str, prompt: list[int], limits: Limits, sampling: Sampling = GREEDY, **options: object
) -> Generation:
    models = pair.of(name) if isinstance(pair, Pair) else pair
    return generate(build_method(get_method(name), models, options), prompt, sampling, limits)


def test_every_kind_of_weights_has_a_tiny_checkpoint() -> None:
    assert {spec.weights for spec in METHODS.values()} <= {"", *WEIGHTS}
    named = {(spec.weights, spec.tiny) for spec in DRAFTERS.values()}
    assert len(named) == len({kind for kind, _ in named}), "one for each kind"
    assert all(bool(kind) == bool(tiny) for kind, tiny in named)


@pytest.mark.parametrize("name, length", [(name, n) for name in OURS for n in (PROMPTS if name in MANY else (7, 80))])
def test_greedy_output_is_the_targets_own(pair: Pair, name: str, length: int) -> None:
    limits = Limits(frozenset(), 60)
    expected = answer(pair, BASELINE, PROMPTS[length], limits)
    assert expected.accept_lengths == [1] * 60
    got = answer(pair, name, PROMPTS[length], limits)
    assert got.token_ids == expected.token_ids
    assert got.finish == "length"
    assert sum(got.accept_lengths) == 60


@pytest.mark.parametrize("name", MANY)
def test_answers_end_with_the_first_eos_wherever_it_falls(pair: Pair, name: str) -> None:
    whole = answer(pair, BASELINE, PROMPTS[7], Limits(frozenset(), 40)).token_ids
    for end in range(1, 40, 3):
        eos = whole[end - 1]
        first = whole.index(eos) + 1
        got = answer(pair, name, PROMPTS[7], Limits(frozenset({eos, 10**6}), 40))
        assert got.token_ids == whole[:first]
        assert got.finish == "eos"


@pytest.mark.parametrize("name", MANY)
def test_answers_are_cut_at_the_limit(pair: Pair, name: str) -> None:
    whole = answer(pair, BASELINE, PROMPTS[7], Limits(frozenset(), 20)).token_ids
    for limit in range(1, 12):
        got = answer(pair, name, PROMPTS[7], Limits(frozenset(), limit))
        assert got.token_ids == whole[:limit]
        assert (got.finish, sum(got.accept_lengths)) == ("length", limit)


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("length", [60, 79, 80, 81])
def test_a_full_context_ends_the_answer(tiny: Path, weights: dict[str, Path], name: str, length: int) -> None:
    """A context of 80 tokens: the last one is decided without being put into the cache."""
    short, prompt = Pair(models(tiny, None, max_length=80), weights), [(7 * i) % 90 + 1 for i in range(length)]
    got = answer(short, name, prompt, Limits(frozenset(), 500))
    assert got.finish == "context"
    assert len(got.token_ids) == (0 if length > 80 else 81 - length)
    assert got.token_ids == answer(short, BASELINE, prompt, Limits(frozenset(), 500)).token_ids


def test_a_draft_with_a_shorter_context_stops_drafting(tiny: Path, tmp_path: Path) -> None:
    from tests.tiny import save_model

    both = models(tiny, save_model(tmp_path / "draft", seed=0, layers=3, context=32))
    limits = Limits(frozenset(), 60)
    got = answer(both, "sps", PROMPTS[7], limits)
    assert got.token_ids == answer(both, BASELINE, PROMPTS[7], limits).token_ids
    assert got.accept_lengths[1] == 6  # the same weights: every draft is kept while there is room
    assert got.drafted[-1] == 0


def test_a_perfect_draft_is_kept_whole(tiny: Path) -> None:
    got = answer(models(tiny, tiny), "sps", PROMPTS[7], Limits(frozenset(), 61))
    assert got.accept_lengths == [1, *[6] * 10]
    assert got.accepted == got.drafted == [0, *[5] * 10]


def test_a_repeating_prompt_is_looked_up(pair: Models) -> None:
    from methods.drafters.lookup import LookupDrafter

    drafter = LookupDrafter(max_ngram=3)
    drafter.begin([1, 2, 3, 4, 1, 2, 3], GREEDY, None)
    drafter.settle(Outcome([4], [0]))
    assert drafter.draft(2).tokens_G == [1, 2]
    assert drafter.draft(2).tokens_G == [3, 4]  # goes on after what it has drafted
    drafter.settle(Outcome([1, 9], [0, 1]))
    assert drafter.tokens == [1, 2, 3, 4, 1, 2, 3, 4, 1, 9]
    assert drafter.draft(5).tokens_G == []
    drafter.settle(Outcome([2], [0]))
    assert drafter.draft(1).tokens_G == [3]  # the 1-gram 2


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_rows_agree_in_fp32(tiny: Path, tiny_draft: Path, name: str) -> None:
    pair = models(tiny, tiny_draft)
    limits = Limits(frozenset(), 40)
    expected = answer(pair, BASELINE, PROMPTS[80], limits)
    got = answer(pair, name, PROMPTS[80], limits)
    assert got.token_ids == expected.token_ids
    assert sum(got.accept_lengths) == 40
    assert 0 < got.prefill_time < got.wall_time
    eos = expected.token_ids[9]
    ended = answer(pair, name, PROMPTS[80], Limits(frozenset({eos}), 40))
    assert ended.token_ids == expected.token_ids[: expected.token_ids.index(eos) + 1]
    assert ended.finish == "eos"


@pytest.mark.parametrize("name", [BASELINE, *OURS])
def test_sampling_repeats_with_the_seed_and_only_then(pair: Pair, name: str) -> None:
    limits = Limits(frozenset(), 30)
    runs = [answer(pair, name, PROMPTS[7], limits, Sampling(1.0, seed=seed)).token_ids for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_the_ledger_cuts_at_eos_and_limit() -> None:
    ledger = Generation()
    ledger.add(Step([4]), Limits(frozenset({7}), 5))
    ledger.add(Step([5, 7, 6], drafted=4, accepted=2), Limits(frozenset({7}), 5))
    assert (ledger.token_ids, ledger.accept_lengths, ledger.finish) == ([4, 5, 7], [1, 2], "eos")
    ledger = Generation()
    ledger.add(Step([4, 5, 6, 8, 9, 9, 7], margins=[1.0] * 7), Limits(frozenset({7}), 5))
    assert (ledger.token_ids, ledger.finish, ledger.margins) == ([4, 5, 6, 8, 9], "length", [1.0] * 5)


@pytest.mark.parametrize("name", [BASELINE, "sps", "eagle2", "lookahead"])
def test_a_watched_answer_is_the_same_and_ends_when_its_watcher_has_seen_enough(pair: Pair, name: str) -> None:
    limits, seen = Limits(frozenset(), 30), list[Step]()
    method = build_method(get_method(name), pair.of(name), {})

    def watch(answer: Generation, step: Step) -> bool:
        assert step.tokens[: answer.accept_lengths[-1]] == answer.token_ids[-answer.accept_lengths[-1] :]
        if step.tree is not None:  # the kept drafts are a path of what was judged
            kept = [int(step.tree.tokens_N[node]) for node in step.path_A[1:]]
            assert kept == step.tokens[:-1] and step.accepted == len(kept) and step.drafted == step.tree.drafted
        seen.append(step)
        return len(seen) < 3

    stopped = generate(method, PROMPTS[80], GREEDY, limits, watch)
    whole = generate(method, PROMPTS[80], GREEDY, limits, lambda answer, step: True)
    assert stopped.finish == STOPPED and len(seen) == 3 and len(stopped.ends) == 3
    assert whole.finish == "length" and whole.token_ids == answer(pair.of(name), name, PROMPTS[80], limits).token_ids
    assert whole.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    assert whole.ends == sorted(whole.ends) and whole.wall_time == whole.ends[-1]


def test_an_unknown_method_is_named_with_its_nearest() -> None:
    with pytest.raises(UserError, match="no method 'slp'; did you mean 'sps'"):
        get_method("slp")


def test_a_draft_of_another_vocabulary_is_refused(tiny: Path, tmp_path: Path) -> None:
    from tests.tiny import save_model, save_tokenizer

    save_tokenizer(save_model(tmp_path / "other"), first=33)
    with pytest.raises(UserError, match="another vocabulary"):
        _ = draft_model(models(tiny, tmp_path / "other"))


def test_tokenizers_of_the_same_files_are_not_loaded(tiny: Path, tiny_draft: Path, tmp_path: Path) -> None:
    def loaded(draft: Path) -> bool:
        pair = models(tiny, draft)
        _ = draft_model(pair)
        return "tokenizer" in vars(pair.target_checkpoint)

    other = shutil.copytree(tiny_draft, tmp_path / "other")
    assert not loaded(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the same tokens in files of other bytes
        path = other / name
        path.write_text(path.read_text() + "\n")
        assert loaded(other)
        shutil.copy(tiny_draft / name, other)
    (other / "tokenizer.json").unlink()
    (other / "tokenizer.json").mkdir()
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        loaded(other)


@pytest.mark.parametrize("source, message", [("first-3", "1 to 2"), ("first-0", "1 to 2")])
def test_a_draft_of_first_layers_must_be_shorter(tiny: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = draft_model(Models(str(tiny), source, "float32", [torch.device("cpu")]))


def test_a_draft_of_the_first_layers_is_lossless(tiny: Path) -> None:
    pair = Models(str(tiny), "first-2", "bfloat16", [torch.device("cpu")])
    limits = Limits(frozenset(), 40)
    assert answer(pair, "sps", PROMPTS[7], limits).token_ids == answer(pair, BASELINE, PROMPTS[7], limits).token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_draft_in_the_targets_cache_drafts_as_in_its_own(tiny: Path, dtype: str) -> None:
    """The first layers' keys and values are the target's, whoever writes them: the same drafts, token for token."""
    from methods.drafters.language_model import ModelDrafter, SelfDrafter, build
    from methods.speculative import Speculative

    pair = Models(str(tiny), "first-2", dtype, [torch.device("cpu")])
    own = Speculative(pair.target, ModelDrafter(draft_decoder(pair), pair.vocabulary), 4)
    shared = Speculative(pair.target, build(pair), 4)
    assert isinstance(shared.drafter, SelfDrafter)
    for sampling in (GREEDY, Sampling(1.0, seed=3)):
        for prompt in PROMPTS.values():
            expected, got = (generate(m, prompt, sampling, Limits(frozenset(), 50)) for m in (own, shared))
            assert (got.token_ids, got.drafted, got.accepted) == (
                expected.token_ids,
                expected.drafted,
                expected.accepted,
            )


@pytest.mark.parametrize("drafts_only", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_target_in_8_bits_drafts_nearly_the_same(tmp_path: Path, tied: bool, drafts_only: bool) -> None:
    from tests.tiny import save_model

    folder = save_model(tmp_path, layers=3, tie_word_embeddings=tied)
    pair = Models(str(folder), "int8", "float32", [torch.device("cpu")])
    draft = draft_model(Models(str(folder), "int8", "float32", [torch.device("cpu")], drafts_only=drafts_only))
    logits = []
    for model in (draft, pair.target.model):
        decoder = Decoder(model)
        logits.append(decoder.prefill(PROMPTS[7]).logits_NV)
    difference = (logits[0] - logits[1]).norm() / logits[1].norm()
    assert 1e-4 < difference < 0.1
    limits = Limits(frozenset(), 40)
    got = answer(pair, "sps", PROMPTS[7], limits)
    assert got.token_ids == answer(pair, BASELINE, PROMPTS[7], limits).token_ids
    assert sum(got.accepted) > sum(got.drafted) / 2
