"""How far drafted tokens lie behind the last true feature: by both loops, against a schedule that is run by hand."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.answers.packing import pack
from evaluation.answers.record import Answer, parse_answer
from evaluation.answers.trace import TraceWriter
from evaluation.launch.worker import to_choice
from methods import BASELINE, METHODS, get_method
from methods.base import Generation, Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.drafters.base import ChainDrafter, Draft
from methods.drafters.eagle.drafters import EagleChain
from methods.engine.link import Close
from methods.engine.sampling import Sampling, probabilities
from methods.engine.transformer import FINAL
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.pearl.draft import local_draft_rank, serve
from methods.pearl.target import Pearl
from methods.speculative import Speculative
from methods.target import Outcome, Target
from tests.goldens import GOLDENS
from tests.test_pearl import two_ends
from tests.tiny import VOCABULARY

CPU = [torch.device("cpu")]
PROMPT = [3, 1, 4, 1, 5, 9, 2]
TOKENS = 60
GREEDY = Sampling()
MODES = {"nothing": (True, True), "pre-verify": (False, True), "post-verify": (True, False), "both": (False, False)}
pytestmark = pytest.mark.usefixtures("one_thread")


class Scripted(ChainDrafter):
    """A head that drafts the target's own answer, but for the tokens at some places, which are wrong."""

    taps = (FINAL,)

    def __init__(self, answer: Sequence[int], wrong: set[int], longest: int | None = None) -> None:
        super().__init__()
        self.answer, self.wrong, self.longest = answer, wrong, longest
        self.features, self.decided = 0, 0  # rows of true features, and decided tokens of the answer

    def begin(self, prompt_T: Sequence[int], sampling: Sampling, features_TF: Tensor | None) -> None:
        assert features_TF is not None
        self.features, self.decided, self.drafted = len(features_TF) - 1, 0, []

    def _read(self, outcome: Outcome) -> None:
        assert outcome.features_AF is not None
        self.features, self.decided = self.features + len(outcome.features_AF), self.decided + len(outcome.tokens)
        assert self.features == len(PROMPT) - 1 + self.decided, "before it drafts, it knows the state of every choice"

    def settle(self, outcome: Outcome) -> None:
        super().settle(outcome)
        self._read(outcome)

    def confirm(self, outcome: Outcome) -> None:
        super().confirm(outcome)
        self._read(outcome)

    def draft(self, n: int) -> Draft:
        begin = self.decided + len(self.drafted)
        stop = begin + n if self.longest is None else min(begin + n, self.decided + self.longest)
        known = range(begin, min(stop, len(self.answer)))
        tokens = [(self.answer[i] + (i in self.wrong)) % VOCABULARY for i in known]
        self.drafted += tokens
        return Draft(tokens)


@pytest.fixture(scope="module")
def models(tiny: Path) -> Models:
    return Models(str(tiny), None, "float32", CPU)


@pytest.fixture(scope="module")
def answer(models: Models) -> list[int]:
    """More of the target's own answer than is asked for."""
    method = build_method(get_method(BASELINE), models, {})
    return generate(method, PROMPT, GREEDY, Limits(frozenset(), 2 * TOKENS)).token_ids


def by_pearl(models: Models, drafter: ChainDrafter, window: int | str, without: str) -> Generation:
    with local_draft_rank({"head": drafter}) as (link, ready):
        method = Pearl(models.target, link, "head", window, *MODES[without])
        method.meet(ready["head"])
        return generate(method, PROMPT, GREEDY, Limits(frozenset(), TOKENS))


def schedule(kept: Sequence[int], window: int, without: str, longest: int | None = None) -> Iterator[list[int]]:
    """The depths of what each pass judges, of which it keeps `kept`, by the rule as the paper tells it."""
    pre_verify, post_verify = MODES[without]

    def drafted(behind: int) -> list[int]:
        return [depth for depth in range(behind + 1, behind + 1 + window) if longest is None or depth <= longest]

    tail: list[int] = []
    for accepted in kept:
        tail = tail or ([] if pre_verify else drafted(0))
        fresh = drafted(len(tail)) if post_verify or not tail else []
        judged = tail + fresh[:1]
        yield judged
        tail = fresh[1:] if accepted == len(judged) else []  # else the target's token has its true feature


@pytest.mark.parametrize("without", MODES)
@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("longest", [None, 4])
def test_depths_are_those_of_a_schedule_run_by_hand(
    models: Models, answer: list[int], window: int, without: str, longest: int | None
) -> None:
    for wrong in (set[int](), {3, 4, 11, 12, 30}, set(range(2, TOKENS, 7)), set(range(TOKENS))):
        got = by_pearl(models, Scripted(answer, wrong, longest), window, without)
        passes = list(schedule(got.accepted[1:], window, without, longest))
        assert got.token_ids == answer[:TOKENS]
        assert got.drafted[1:] == [len(judged) for judged in passes]
        assert got.depths == [depth for judged in passes for depth in judged]
        begun = [span.depth for span in got.spans if span.work == "draft" and span.tokens]
        assert begun[0] == 1 and set(begun) <= {1, *got.depths, window + 1, window}


def test_a_free_window_goes_deeper_and_begins_anew_behind_a_rejection(models: Models, answer: list[int]) -> None:
    """Over ranks that work at the same time, of which this draft's is the faster by far."""
    ends = two_ends()
    rank = threading.Thread(target=serve, args=(ends[1], {"head": Scripted(answer, {9, 20, 21})}))
    rank.start()
    method = Pearl(models.target, ends[0], "head", "free", True, True)
    method.meet(ends[0].receive("its drafter"))
    got = generate(method, PROMPT, GREEDY, Limits(frozenset(), TOKENS))
    ends[0].send(Close())
    rank.join(60)
    first, rejected = 0, True
    for judged, kept in zip(got.drafted[1:], got.accepted[1:], strict=True):
        depths = got.depths[first : first + judged]
        assert all(depth >= place for place, depth in enumerate(depths, 1))
        assert depths[:1] == [1] or not rejected
        first, rejected = first + judged, kept < judged
    assert first == len(got.depths) and max(got.depths) > 2


@pytest.mark.parametrize("longest", [None, 3])
def test_a_chain_that_is_drafted_first_has_the_depths_from_one_on(
    models: Models, answer: list[int], longest: int | None
) -> None:
    method = Speculative(models.target, Scripted(answer, {5, 9, 10}, longest), 5)
    got = generate(method, PROMPT, GREEDY, Limits(frozenset(), TOKENS))
    assert got.depths == [depth for judged in got.drafted for depth in range(1, judged + 1)]
    assert max(got.depths) == (longest or 5)


@pytest.mark.parametrize("kind, golden", [("medusa", "medusa"), ("hydra", "hydra_mlp"), ("hydra", "hydra_prefix_mlp")])
@pytest.mark.parametrize("window", [2, 3])
def test_trained_heads_follow_the_schedule_within_their_places(kind: str, golden: str, window: int) -> None:
    both = Models(str(GOLDENS / "target"), str(GOLDENS / golden / "head"), "float32", CPU)
    drafter = build_chain_drafter(get_method(f"pearl-{kind}"), both, {})
    got = by_pearl(both, drafter, window, "nothing")
    passes = list(schedule(got.accepted[1:], window, "nothing", drafter.longest))
    assert got.depths == [depth for judged in passes for depth in judged]
    assert window + 1 in got.depths and sum(got.accepted) > 10  # some behind unverified ones


@pytest.mark.parametrize("name", [n for n, s in METHODS.items() if s.loop in ("turns", "pearl") and s.drafter])
def test_tokens_have_depths_where_features_are_read_and_chains_are_drafted(
    models: Models, weights: dict[str, Path], name: str
) -> None:
    spec = get_method(name)
    with_weights = models.with_draft(str(weights[spec.weights])) if spec.weights else models
    if spec.loop == "pearl":
        drafter = build_chain_drafter(spec, with_weights, {})
        got, reads = by_pearl(with_weights, drafter, 3, "nothing"), bool(drafter.taps)
    else:
        method: Any = build_method(spec, with_weights, {"shape": "chain", "nodes": 5})
        got = generate(method, PROMPT, GREEDY, Limits(frozenset(), TOKENS))
        reads = bool(method.drafter.taps)
    assert len(got.depths) == (sum(got.drafted) if spec.shape({"shape": "chain"}) == "chain" else 0)
    assert not got.depths or all(bool(depth) == reads for depth in got.depths)
    assert (to_choice([got], ["words"], 0).depths is not None) == (reads and bool(got.depths))


def test_depths_stand_in_lines_and_traces_only_where_there_are_any(
    models: Models, answer: list[int], tmp_path: Path
) -> None:
    got = by_pearl(models, Scripted(answer, {9, 20}), 3, "nothing")
    line = Answer(1, "qa", "tiny-head", [to_choice([got], ["words"], 0)])
    read = parse_answer(line.to_line(), "here").choices[0]
    assert read.depths == [got.depths]
    assert pack(line).choices[0].depths[0][1] == got.depths[1]  # type: ignore[index]
    with pytest.raises(ValueError, match="'depths' must have one entry for each judged token"):
        replace(read, depths=[got.depths[1:]])
    without = replace(read, depths=None)
    assert b"depths" not in Answer(1, "qa", "tiny-head", [without]).to_line()
    writer = TraceWriter(tmp_path / "trace.json")
    writer.add("head", 1, 0, got)
    told = [event["args"].get("depth") for event in writer.events if event.get("name") == "draft"]
    assert told == [span.depth for span in got.spans if span.work == "draft"] and 1 in told
    assert all("depth" not in event["args"] for event in writer.events if event.get("name") == "verify")


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_what_is_unverified_is_read_again_behind_true_features(tiny: Path, weights: dict[str, Path], kind: str) -> None:
    """Five are drafted and two of them decided: the other three are read behind the true states, the first with the
    state that follows from these, each further one with the state that was predicted before it then."""
    both, apart = (Models(str(tiny), str(weights[kind]), "float32", CPU) for _ in range(2))
    drafter, by_hand = (build_chain_drafter(get_method(f"pearl-{kind}"), m, {}) for m in (both, apart))
    assert isinstance(drafter, EagleChain) and isinstance(by_hand, EagleChain)
    hot = Sampling(30.0)  # so that a random head is not certain
    alone = build_method(get_method("autoregressive"), both, {})
    right = generate(alone, PROMPT, GREEDY, Limits(frozenset(), 6)).token_ids[1:]
    target = Target(both.target, drafter.taps)
    first, features = target.start(PROMPT, GREEDY)
    for each in (drafter, by_hand):
        each.begin(PROMPT, hot, features)
        each.settle(first)
    drafter.take(right)
    drafter.draft(1)
    drafter.drafted, before = right[:], drafter.states[:]
    outcome = target.judge(TokenTree.chain([target.pending, right[0]]))
    drafter.confirm(Outcome(right[:2], outcome.path_A, outcome.features_AF, leaf_kept=True))
    got = drafter.draft(1)
    by_hand.settle(outcome)
    states = torch.cat([by_hand.reader.read(), *before[3:5]])
    newest = by_hand.head.go_on(states, right[2:])[-1:]
    q_1R = probabilities(by_hand.head.logits(newest), hot)
    assert got.q_GV is not None and torch.equal(got.q_GV[:, by_hand.head.parts.lm_head.tokens_R], q_1R)
