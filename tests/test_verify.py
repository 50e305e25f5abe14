"""Acceptance rules. Sampling is checked exactly: the distribution of the output is summed over every outcome of the
drafts and of the rule's coin flips, and must be the target's. No Monte Carlo, so no tolerance to hide in."""

import itertools

import pytest
import torch
from torch import Tensor

from methods.engine.sampling import Sampling, draw, probabilities
from methods.engine.tree import TokenTree
from methods.engine.verify import acceptance, most_likely, residual, verify
from methods.errors import RunError

V = 4
GREEDY = Sampling()


def distribution(seed: int, zeros: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(V, dtype=torch.float64, generator=generator) ** 3
    p[torch.randperm(V, generator=generator)[:zeros]] = 0
    return p / p.sum()


def output_after(p: Tensor, tries: list[tuple[Tensor | None, int]]) -> Tensor:
    """Exact distribution of the next token when these drafts are tried in turn."""
    output, reached = torch.zeros(V, dtype=torch.float64), 1.0
    for q, token in tries:
        kept = acceptance(p, q, token)
        output[token] += reached * kept
        reached *= 1 - kept
        p = residual(p, q, token)
    return output + reached * p


@pytest.mark.parametrize("seed", range(30))
def test_one_draft_from_q_leaves_exactly_p(seed: int) -> None:
    p, q = distribution(seed, zeros=seed % 3), distribution(seed + 100, zeros=(seed + 1) % 3)
    output = sum(q[x] * output_after(p, [(q, x)]) for x in range(V))
    torch.testing.assert_close(output, p, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(30))
def test_siblings_drawn_one_after_the_other_leave_exactly_p(seed: int) -> None:
    p, q, second = distribution(seed), distribution(seed + 100), distribution(seed + 200)
    output = torch.zeros(V, dtype=torch.float64)
    for x, y in itertools.product(range(V), repeat=2):
        output += q[x] * second[y] * output_after(p, [(q, x), (second, y)])
    torch.testing.assert_close(output, p, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tokens", [[0], [2, 1], [3, 0, 2], [0, 1, 2, 3]])
def test_certain_drafts_leave_exactly_p(tokens: list[int]) -> None:
    p = distribution(3)
    torch.testing.assert_close(output_after(p, [(None, x) for x in tokens]), p, atol=1e-12, rtol=0)


def test_the_test_notices_wrong_rules() -> None:
    p, q = distribution(1), distribution(101)
    always = q.clone()  # every draft kept
    unscaled = sum(q[x] * (acceptance(p, q, x) * torch.eye(V)[x] + (1 - acceptance(p, q, x)) * p) for x in range(V))
    for wrong in (always, unscaled):
        assert (wrong - p).abs().max() > 1e-3


@pytest.mark.parametrize("vocabulary", [64, 640, 49152, 97])
def test_the_most_likely_token_is_the_first_of_the_largest_logits(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits_SV = torch.randn(9, vocabulary, generator=generator).mul(3).round()  # with many equal ones
    logits_SV[3] = 0.0
    logits_SV[4, -1] = logits_SV[5, 0] = 1e9
    logits_SV[6, : vocabulary // 2] = -torch.inf
    first = [int((row == row.max()).nonzero()[0]) for row in logits_SV]
    assert most_likely(logits_SV) == first and most_likely(logits_SV[2:4]) == first[2:4]
    for value in (torch.nan, torch.inf):
        logits_SV[7, vocabulary // 3] = value
        with pytest.raises(RunError, match="not finite"):
            most_likely(logits_SV)
        logits_SV[7, vocabulary // 3] = 0.0


def test_greedy_follows_the_most_likely_child_and_no_other() -> None:
    tree = TokenTree([9, 1, 2, 3, 0], [-1, 0, 0, 2, 2])
    logits = torch.full((5, V), -1.0)
    for node, best in ((0, 2), (1, 1), (2, 3), (3, 1), (4, 0)):
        logits[node, best] = 1.0
    verdict = verify(tree, logits, GREEDY, GREEDY.generator("verify"))
    assert (verdict.path_A, verdict.next_token) == ([0, 2, 3], 1)


def test_a_lone_root_is_plain_decoding() -> None:
    verdict = verify(TokenTree.chain([7]), torch.tensor([[0.0, 3.0, 1.0, 2.0]]), GREEDY, GREEDY.generator("verify"))
    assert (verdict.path_A, verdict.next_token) == ([0], 1)


def test_verify_draws_the_targets_joint_distribution() -> None:
    """The rule as it is run, generator and all: two drafted tokens and the one after, chi-square over 8,000 draws.

    What is wrong with the rule itself the sums over every outcome above show, however little it is."""
    from scipy.stats import chisquare

    p, q = [distribution(i) for i in range(3)], [distribution(i + 50) for i in range(2)]
    sampling, count = Sampling(temperature=1.0), 8_000
    draft, ruling = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    seen = torch.zeros(V, V, V)
    for _ in range(count):
        tokens = [draw(row, draft) for row in q]
        tree = TokenTree.chain([0, *tokens], torch.stack(q))
        verdict = verify(tree, torch.stack(p).log(), sampling, ruling)
        output = [*tokens[: len(verdict.path_A) - 1], verdict.next_token]
        output += [draw(row, ruling) for row in p[len(output) :]]  # plain decoding for the rest
        seen[tuple(output)] += 1
    expected = torch.einsum("i,j,k->ijk", *p) * count
    keep = expected > 5
    rest = torch.stack([seen[~keep].sum(), expected[~keep].sum()])
    observed, wanted = torch.cat([seen[keep], rest[:1]]), torch.cat([expected[keep], rest[1:]])
    assert chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue > 1e-4


def test_probabilities_keep_top_k_and_top_p() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    assert probabilities(logits, Sampling(1.0, top_k=2))[0].tolist() == pytest.approx([0, 0, 3 / 7, 4 / 7])
    assert probabilities(logits, Sampling(1.0, top_p=0.69))[0].tolist() == pytest.approx([0, 0, 3 / 7, 4 / 7])
    assert probabilities(logits, Sampling(1.0, top_p=0.71))[0].tolist() == pytest.approx([0, 2 / 9, 3 / 9, 4 / 9])
    assert probabilities(logits, Sampling(0.5))[0].tolist() == pytest.approx([1 / 30, 4 / 30, 9 / 30, 16 / 30])
    assert probabilities(logits, Sampling(1.0, top_p=1e-9))[0].tolist() == pytest.approx([0, 0, 0, 1])


def test_draw_never_gives_a_token_of_weight_zero() -> None:
    weights, generator = torch.tensor([0.0, 2.0, 0.0, 6.0, 0.0]), torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([draw(weights, generator) for _ in range(4000)]), minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert counts[3] / 4000 == pytest.approx(0.75, abs=0.03)


def test_streams_of_random_numbers_are_separate_and_repeatable() -> None:
    sampling = Sampling(1.0, seed=5)
    first = [torch.rand(3, generator=sampling.generator(stream)).tolist() for stream in ("draft", "verify", "draft")]
    assert first[0] == first[2] != first[1]
