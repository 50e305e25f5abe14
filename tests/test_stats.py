"""Statistics against examples worked by hand, brute force, and simulated runs whose true speedup is known."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.answers.record import Answer, Choice
from evaluation.judge.acceptance import Drafts
from evaluation.judge.intervals import Sums, log_interval, spread
from evaluation.judge.stats import (
    change,
    decode_speedup,
    looping_tokens,
    mean_accept_length,
    nodes_per_pass,
    pair_answers,
    repetition_share,
    spec_bench_speedup,
    speedup,
)
from tests.answer_files import answer, choice


def timed(seconds: dict[int | str, float], tokens: int = 10) -> list[Answer]:
    """One answer of `tokens` tokens per question, which took the given time."""
    return [answer(question, choices=[choice([range(tokens)], [s])]) for question, s in seconds.items()]


def simulated(rng: np.random.Generator, questions: int, true_speedup: float, spread: float) -> pd.DataFrame:
    """Pairs of two runs: answers of 16 to 128 tokens on an uneven machine, speedups spread log-normally."""
    tokens = np.where(rng.random(questions) < 0.6, 128.0, rng.integers(16, 128, questions))
    base = tokens * 0.03 * np.exp(rng.normal(0, 0.3, questions))
    own = np.exp(rng.normal(0, spread, questions) - spread**2 / 2) / true_speedup
    noise = np.exp(rng.normal(0, 0.02, questions))
    columns = {"tokens": tokens, "time": base * own * noise, "tokens_base": tokens, "time_base": base}
    return pd.DataFrame({"question": np.arange(questions), "repeat": 0, **columns})


def test_pairs_join_on_question_turn_and_repeat() -> None:
    two = [choice([range(4), range(6)], [1.0, 2.0]), choice([range(4), range(8)], [1.5, 2.5], index=1)]
    one = [choice([range(5), range(6)], [3.0, 4.0], per_pass=2)]
    pairs = pair_answers([*timed({"HumanEval/0": 1.0}), answer(81, "qa", choices=two)], [answer(81, choices=one)])
    assert pairs[["question", "turn", "repeat", "category"]].values.tolist() == [[81, 0, 0, "qa"], [81, 1, 0, "qa"]]
    assert pairs[["tokens", "time", "passes"]].values.tolist() == [[4, 1.0, 4], [6, 2.0, 6]]
    assert pairs[["tokens_base", "time_base", "passes_base"]].values.tolist() == [[5, 3.0, 3], [6, 4.0, 3]]
    assert pairs["decode_tokens"].tolist() == [3, 5]
    assert pairs["decode_time_base"].tolist() == pytest.approx([2.9, 3.9])


def test_questions_named_by_number_and_by_text_do_not_mix_up() -> None:
    assert pair_answers(timed({"81": 1.0}), timed({81: 1.0})).empty


def test_a_choice_with_a_failed_turn_is_left_out_whole() -> None:
    bad = Choice(["Once", "ERROR"], [3, 3], [1.0, 1.0], [1] * 6)
    good = Choice(["Once", "upon"], [3, 3], [1.0, 1.0], [1] * 6, index=1)
    both = replace(bad, turns=["Once", "upon"]), good
    pairs = pair_answers([answer(choices=[bad, good])], [answer(choices=list(both))])
    assert pairs["repeat"].tolist() == [1, 1] and pairs["passes"].isna().all()


def test_headline_by_hand() -> None:
    method = [*timed({1: 1.0}, tokens=10), *timed({2: 4.0}, tokens=20)]
    base = [*timed({1: 2.0}, tokens=10), *timed({2: 6.0}, tokens=20)]
    pairs = pair_answers(method, base)
    result = speedup(pairs)
    assert result.ratio == pytest.approx((30 / 5) / (30 / 8))
    assert result.geometric_mean == pytest.approx(math.sqrt(2 * 1.5))
    assert (result.low, result.high, result.significant, result.questions) == (None, None, False, 2)
    assert spec_bench_speedup(method, base) == pytest.approx(((10 + 5) / 2) / ((5 + 20 / 6) / 2))
    # Prefill of 0.1 s and its token are left out of every answer.
    assert decode_speedup(pairs) == pytest.approx((28 / 4.8) / (28 / 7.8))


def test_decoding_is_unknown_without_prefill_and_without_decoded_tokens() -> None:
    unknown = answer(choices=[replace(choice([[1, 2]], [1.0]), prefill_time=None)])
    assert decode_speedup(pair_answers([unknown], timed({81: 1.0}))) is None
    assert decode_speedup(pair_answers(timed({81: 1.0}, tokens=1), timed({81: 1.0}, tokens=1))) is None


def test_swapping_the_runs_gives_the_reciprocal_whatever_the_order_of_the_files() -> None:
    rng = np.random.default_rng(0)
    method, base = (timed(dict(enumerate(rng.uniform(1, 2, 20)))) for _ in range(2))
    there = speedup(pair_answers(method, base))
    back = speedup(pair_answers(base[::-1], method))
    assert there.low is not None and there.high is not None and back.low is not None and back.high is not None
    assert there.ratio * back.ratio == pytest.approx(1, rel=1e-12)
    assert there.geometric_mean * back.geometric_mean == pytest.approx(1, rel=1e-12)
    assert there.low * back.high == pytest.approx(1, rel=1e-12)
    assert there.high * back.low == pytest.approx(1, rel=1e-12)
    assert there == speedup(pair_answers(method[::-1], base))


def simulated_runs(
    seed: int, shape: tuple[int, int, int], spread: float, lengths: str, noise: float, launch: float = 0.0
) -> Sums:
    """Many runs of some launches of some questions at a true speedup of 1, so many of each in `shape`. `spread`: of the
    questions' own ratios, log-normal. `lengths`: of answers of "equal" lengths, "cut" at 128 tokens or of "any" length,
    the same in all launches. `noise`: of a question's times in a launch, common to both runs, as is its length; so the
    times are correlated. `launch`: how far a launch moves the speedup."""
    rng = np.random.default_rng(seed)
    runs, launches, questions = shape
    tokens = rng.integers(5, 129, (runs, 1, questions)).astype(float)
    if lengths != "any":
        tokens = np.where((lengths == "equal") | (rng.random(tokens.shape) < 0.6), 128.0, tokens)
    time_base = tokens * 0.03 * np.exp(rng.normal(0, noise, shape))
    own = np.exp(rng.normal(0, spread, tokens.shape) - spread**2 / 2)
    moved = np.exp(rng.normal(0, launch, (runs, launches, 1)))
    time = time_base * own * moved * np.exp(rng.normal(0, 0.02, shape) - 0.02**2 / 2)
    return np.broadcast_to(tokens, shape), time, np.broadcast_to(tokens, shape), time_base


def covered(run: Sums) -> float:
    """The share of simulated runs whose interval has the truth."""
    low, high = log_interval([run])
    return float(np.mean((low <= 0) & (high >= 0)))


@pytest.mark.parametrize(("questions", "runs"), [(5, 4000), (10, 4000), (20, 4000), (50, 2000), (164, 1000)])
def test_interval_covers_the_truth_in_95_of_100_simulated_runs(questions: int, runs: int) -> None:
    """And what does not cover a true speedup of 1 is falsely significant. Of so many runs of a kind the share that is
    covered is known to within 1.5%, and that of all to within 0.3%."""
    kinds = itertools.product((0.1, 0.3, 0.5), ("equal", "cut", "any"), (0.05, 0.3))
    found = [covered(simulated_runs(seed, (runs, 1, questions), *kind)) for seed, kind in enumerate(kinds)]
    assert min(found) >= 0.93 and max(found) <= 0.97
    assert 0.945 <= np.mean(found) <= 0.96


@pytest.mark.parametrize("launch", [0.0, 0.03, 0.08])
@pytest.mark.parametrize("questions", [10, 40, 164])
@pytest.mark.parametrize("launches", [3, 5, 10])
def test_interval_of_launches_covers_the_truth_in_95_of_100_simulated_runs(
    launches: int, questions: int, launch: float
) -> None:
    """Of speedups that questions and launches move. Over questions alone it would cover that of three launches of 164
    questions, moved by 8%, 48 times in 100."""
    runs = min(1500, 200_000 // (launches * questions))
    kinds = itertools.product((0.1, 0.3, 0.5), ("cut",), (0.1,), (launch,))
    found = [covered(simulated_runs(seed, (runs, launches, questions), *kind)) for seed, kind in enumerate(kinds)]
    assert 0.93 <= np.mean(found) <= 0.97


def test_what_moves_a_speedup_is_told_apart() -> None:
    """Launches move it by 5%, or not at all, and forty questions by 3%."""
    for seed, moved in enumerate((0.05, 0.0)):
        found = spread([simulated_runs(seed, (400, 5, 40), 0.03 * 40**0.5, "equal", 0.1, moved)])
        assert found.launches[0] is not None
        assert np.sqrt(found.questions.mean()) == pytest.approx(0.03, rel=0.05)
        assert np.sqrt(5 * found.launches[0].mean()) == pytest.approx(moved, rel=0.05, abs=0.003)


def test_interval_is_as_wide_as_what_the_estimates_vary() -> None:
    """Of many questions it is the estimate's normal interval."""
    run = simulated_runs(0, (2000, 1, 400), 0.3, "any", 0.3)
    low, high = log_interval([run])
    estimates = np.log(run[3].sum(-1) / run[1].sum(-1))
    assert np.mean(high - low) == pytest.approx(2 * 1.96 * np.std(estimates), rel=0.05)


def test_one_stall_of_the_machine_widens_the_interval_but_hides_no_speedup() -> None:
    pairs = simulated(np.random.default_rng(0), 48, 1.5, 0.1)
    undisturbed = speedup(pairs)
    pairs.loc[7, "time"] += 3 * pairs["time"].mean()
    result = speedup(pairs)
    assert result.low is not None and undisturbed.low is not None
    assert result.low < undisturbed.low and result.significant


def test_interval_where_one_question_is_nearly_all_there_is() -> None:
    """It is wide, but finite."""
    pairs = simulated(np.random.default_rng(0), 8, 1.5, 0.3)
    for name in ("tokens", "time", "tokens_base", "time_base"):
        pairs.loc[0, name] *= 1e9
    result = speedup(pairs)
    assert result.low is not None and result.high is not None
    assert 0 < result.low < result.ratio < result.high < math.inf


def test_pairing_finds_what_two_separate_averages_cannot() -> None:
    """A gain of 10% on 40 questions of an uneven machine: seen nearly always by the paired interval, and seldom by one
    that resamples the questions of the method and of the baseline separately, as if they were others."""
    seen, seen_unpaired = 0, 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        pairs = simulated(rng, 40, 1.1, spread=0.1)
        result = speedup(pairs)
        seen += result.significant
        own, other = rng.integers(0, 40, (2, 999, 40))
        rate = pairs["tokens"].to_numpy()[own].sum(1) / pairs["time"].to_numpy()[own].sum(1)
        base = pairs["tokens_base"].to_numpy()[other].sum(1) / pairs["time_base"].to_numpy()[other].sum(1)
        seen_unpaired += bool(np.quantile(rate / base, 0.025) > 1)
    assert seen >= 95 and seen_unpaired <= 60


def test_change_by_hand_on_common_questions() -> None:
    base = timed(dict.fromkeys(range(8), 2.0))
    before, now = (pair_answers(timed(dict.fromkeys(range(8), seconds)), base) for seconds in (1.0, 0.5))
    result = change(now, before[before["question"] < 6])
    assert result is not None and result.questions == 6
    assert (result.ratio, result.low, result.high) == pytest.approx((2, 2, 2))
    few = change(now, before[before["question"] < 3])
    assert few is not None and few.ratio == pytest.approx(2) and few.low is None and not few.significant
    assert change(now[now["question"] < 4], before[before["question"] > 4]) is None


def test_change_covers_the_truth_and_is_paired() -> None:
    """Two launches on the same questions: how much a question gains varies far more than a launch's answers to it."""
    rng, covered, widths = np.random.default_rng(2), 0, []
    for _ in range(100):
        before = simulated(rng, 60, 1.5, spread=0.3)
        noise = np.exp(rng.normal(0, 0.03, 60) - 0.03**2 / 2)
        now = before.assign(time=before["time"] / 1.1 * noise)
        result, own = change(now, before), speedup(now)
        assert result is not None and result.low is not None and result.high is not None
        covered += result.low <= 1.1 <= result.high
        widths.append((result.high - result.low) / (own.high - own.low))  # type: ignore[operator]
    assert covered >= 90
    assert max(widths) < 0.5


def test_turns_and_repeats_of_a_question_are_one_observation() -> None:
    """Copies of the same measurements must not make the interval narrower."""
    pairs = simulated(np.random.default_rng(3), 12, 1.5, 0.3)
    once, thrice = speedup(pairs), speedup(pd.concat([pairs] * 3, ignore_index=True))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high)) and thrice.questions == 12


def test_equal_questions_have_an_interval_of_no_width() -> None:
    pairs = pair_answers(timed(dict.fromkeys(range(8), 1.0)), timed(dict.fromkeys(range(8), 3.0)))
    result = speedup(pairs)
    assert (result.low, result.ratio, result.high) == pytest.approx((3, 3, 3)) and result.significant


def test_a_slow_down_is_significant_too() -> None:
    result = speedup(simulated(np.random.default_rng(0), 20, 0.5, 0.1))
    assert result.high is not None and result.high < 1 and result.significant


@pytest.mark.parametrize("questions", [1, 2, 4, 5])
def test_few_questions_have_no_interval(questions: int) -> None:
    result = speedup(simulated(np.random.default_rng(0), questions, 9.0, 0.1))
    assert (result.low is None) == (questions < 5) and result.significant == (questions >= 5)


def test_mean_accept_length_is_tokens_over_passes() -> None:
    choices = [choice([range(7), range(3)], [1.0, 1.0], per_pass=3), choice([range(2)], [1.0])]
    assert mean_accept_length(choices) == pytest.approx(12 / 6)
    assert mean_accept_length([]) is None


def test_acceptance_by_position_counts_only_passes_that_drafted_so_far() -> None:
    drafted, accepted = [[3, 0, 3], [1]], [[3, 0, 1], [0]]
    known = Choice(["a", "b"], [9, 1], [1, 1], [9, 1], drafted=drafted, accepted=accepted)
    drafts = Drafts.of([known])
    assert drafts.joint_acceptance == pytest.approx([2 / 3, 1 / 2, 1 / 2]) and drafts.judged == 7
    assert drafts.conditional_acceptance == pytest.approx([2 / 3, 1 / 2, 1]) and drafts.tried_by_position == [3, 2, 1]
    unknown = Choice(["a"], [9], [1], [9])
    assert Drafts.of([unknown]).joint_acceptance is None and Drafts.of([known, unknown]).judged is None
    assert Drafts.of([choice([range(4)], [1.0])]).conditional_acceptance is None


def brute_force_acceptance(passes: list[tuple[int, int]], given: bool) -> list[float]:
    """By position, token by token: whether it and all before it were accepted, of those that were drafted or, `given`
    that all before it were accepted, of these."""
    outcomes: dict[int, list[bool]] = {}
    for drafted, accepted in passes:
        fates = [True] * accepted + [False] * (drafted - accepted)
        for i in range(drafted):
            if not given or all(fates[:i]):
                outcomes.setdefault(i, []).append(all(fates[: i + 1]))
    return [sum(fates) / len(fates) for _, fates in sorted(outcomes.items())]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 6).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d))), min_size=1))
def test_acceptance_by_position_agrees_with_brute_force(passes: list[tuple[int, int]]) -> None:
    drafted, accepted = ([list(column)] for column in zip(*passes, strict=True))
    drafts = Drafts.of([Choice(["a"], [9], [1.0], [9], drafted=drafted, accepted=accepted)])
    joint, conditional = (brute_force_acceptance(passes, known) for known in (False, True))
    assert (drafts.joint_acceptance or []) == pytest.approx(joint)
    assert (drafts.conditional_acceptance or []) == pytest.approx(conditional)
    assert len(drafts.tried_by_position) >= len(conditional)


def of_tree(nodes: list[list[int]] | None) -> Choice:
    """Three passes, of which two score trees of 8 nodes."""
    drafted, accepted = [[0, 7, 7]], [[0, 2, 0]]
    return Choice(["a"], [5], [1.0], [1, 3, 1], decoding_steps=[3], drafted=drafted, accepted=accepted, nodes=nodes)


def test_of_trees_every_node_counts_and_what_is_said_of_chains_is_unknown() -> None:
    drafts = Drafts.of([of_tree([[1, 8, 8]])], tree=True)
    assert drafts.judged == 14 and nodes_per_pass([of_tree([[1, 8, 8]])]) == 8
    assert (drafts.run_length, drafts.acceptance_rate, drafts.joint_acceptance, drafts.conditional_acceptance) == (
        None,
        None,
        None,
        None,
    )
    older = of_tree(None)  # its "drafted" may be depths
    assert Drafts.of([older], tree=True).judged is None and nodes_per_pass([older]) is None
    assert Drafts.of([older]).judged == 14


def test_nodes_per_pass_leaves_out_the_prefill_of_each_turn() -> None:
    two = Choice(["a", "b"], [4, 2], [1.0, 1.0], [1, 3, 1, 1], decoding_steps=[2, 2], nodes=[[1, 6], [1, 2]])
    assert (
        nodes_per_pass([two]) == 4 and nodes_per_pass([replace(two, nodes=[[1], [1]], decoding_steps=[1, 1])]) is None
    )


def brute_force_loop(tokens: tuple[int, ...]) -> int:
    """The longest ending that is a cycle of at most 32 tokens written at least 4 times, its start cut or not."""
    for length in range(len(tokens), 0, -1):
        ending = tokens[-length:]
        for period in range(1, min(32, length // 4) + 1):
            cycle = ending[-period:]
            if ending == (cycle * length)[-length:]:
                return length
    return 0


def test_loops_agree_with_brute_force() -> None:
    for length in range(11):
        for tokens in itertools.product(range(2), repeat=length):
            assert looping_tokens(tokens) == brute_force_loop(tokens), tokens
    rng = np.random.default_rng(0)
    for _ in range(300):
        cycle = rng.integers(0, 3, rng.integers(1, 6)).tolist()
        tokens = tuple(rng.integers(0, 3, rng.integers(0, 9)).tolist() + (cycle * 7)[: rng.integers(0, 30)])
        assert looping_tokens(tokens) == brute_force_loop(tokens), tokens


def test_loops_by_hand() -> None:
    assert looping_tokens([]) == 0
    assert looping_tokens([9, 1, 2, 1, 2, 1, 2, 1, 2]) == 8
    assert looping_tokens([9, 2, 1, 2, 1, 2, 1, 2, 1, 2]) == 9  # a cut first cycle belongs to the loop
    assert looping_tokens([1, 2] * 3) == 0
    assert looping_tokens([1, 2] * 9 + [3]) == 0  # the answer left the loop
    assert looping_tokens(list(range(32)) * 4) == 128
    assert looping_tokens(list(range(33)) * 4) == 0
    assert repetition_share([choice([[7] * 6, [1, 2, 3, 4]], [1.0, 1.0])]) == pytest.approx(0.6)
    assert repetition_share([Choice(["a"], [9], [1], [9])]) is None


def test_run_length_and_acceptance_rate_count_up_to_the_first_rejection() -> None:
    """Two whole windows and a bit, rejected; then at once."""
    one = Choice(
        turns=["a"],
        new_tokens=[11],
        wall_time=[1.0],
        accept_lengths=[1, 3, 3, 3, 1],
        decoding_steps=[5],
        token_ids=[list(range(11))],
        drafted=[[0, 3, 3, 4, 2]],
        accepted=[[0, 3, 3, 2, 0]],
    )
    assert Drafts.of([one]).run_length == 8 / 2
    assert Drafts.of([one]).acceptance_rate == 8 / 10
    kept = replace(one, accepted=[[0, 3, 3, 4, 2]])
    assert Drafts.of([kept]).run_length is None
    assert Drafts.of([kept]).acceptance_rate == 1
