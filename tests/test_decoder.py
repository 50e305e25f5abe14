"""Decoder: chains and trees against plain decoding, bit for bit; commit, truncate, limits; and the probe itself."""

from pathlib import Path

import pytest
import torch

from methods.engine.decoder import Decoder, Scores, probe_row_invariance
from methods.engine.loader import find_checkpoint
from methods.engine.transformer import FINAL
from methods.engine.tree import TokenTree
from methods.models import Models

CPU = [torch.device("cpu")]
PROMPT = [(7 * i) % 90 + 1 for i in range(70)]

pytestmark = pytest.mark.usefixtures("operators", "one_thread")


@pytest.fixture(params=["float32", "bfloat16"])
def decoder(request: pytest.FixtureRequest, tiny: Path) -> Decoder:
    return Decoder(find_checkpoint(str(tiny)).transformer(request.param, CPU))


def one_by_one(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Logits of each token when it is computed alone, after the prompt."""
    decoder.prefill(PROMPT)
    rows = []
    for token in tokens:
        rows.append(decoder.score(TokenTree.chain([token])).logits_NV[0])
        decoder.commit([0])
    return torch.stack(rows)


def features(scores: Scores) -> torch.Tensor:
    assert scores.features_NF is not None
    return scores.features_NF


@pytest.mark.parametrize("nodes", [1, 2, 3, 9, 40])
def test_a_chain_has_the_bits_of_its_positions(decoder: Decoder, nodes: int) -> None:
    tokens = [(11 * i) % 90 + 1 for i in range(nodes)]
    expected = one_by_one(decoder, tokens)
    decoder.prefill(PROMPT)
    assert torch.equal(decoder.score(TokenTree.chain(tokens)).logits_NV, expected)


@pytest.mark.parametrize("seed", range(6))
def test_every_path_of_a_tree_has_the_bits_of_plain_decoding(decoder: Decoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nodes = [8, 24, 60][seed % 3]
    parents = [-1] + [int(torch.randint(max(0, i - 6), i, (), generator=generator)) for i in range(1, nodes)]
    tokens = torch.randint(1, 95, (nodes,), generator=generator)
    tree = TokenTree(tokens.tolist(), parents)
    decoder.prefill(PROMPT)
    logits = decoder.score(tree).logits_NV
    for leaf in range(0, nodes, 5):
        path = tree.path(leaf)
        assert torch.equal(logits[path], one_by_one(decoder, tokens[path].tolist()))


def test_a_committed_path_goes_on_as_if_decoded_plainly(decoder: Decoder) -> None:
    tree = TokenTree([1, 2, 3, 4, 5, 6], [-1, 0, 0, 1, 2, 4])
    expected = one_by_one(decoder, [1, 3, 5, 6, 7])
    decoder.prefill(PROMPT)
    decoder.score(tree)
    decoder.commit([0, 2, 4, 5])
    assert decoder.length == len(PROMPT) + 4
    assert torch.equal(decoder.score(TokenTree.chain([7])).logits_NV[0], expected[-1])


def test_truncated_tokens_leave_no_trace(decoder: Decoder) -> None:
    expected = one_by_one(decoder, [8, 9])
    decoder.prefill(PROMPT)
    decoder.score(TokenTree.chain([8, 1, 2, 3]))
    decoder.commit([0, 1, 2, 3])
    decoder.truncate(len(PROMPT) + 1)
    assert torch.equal(decoder.score(TokenTree.chain([9])).logits_NV[0], expected[1])


def test_threads_do_not_change_bits(decoder: Decoder) -> None:
    before = torch.get_num_threads()
    tokens = [(11 * i) % 90 + 1 for i in range(20)]
    rows = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            first = decoder.prefill(PROMPT).logits_NV
            rows.append(torch.cat([first, decoder.score(TokenTree.chain(tokens)).logits_NV]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(rows[0], rows[1])


def test_the_context_is_a_hard_limit(tiny: Path) -> None:
    decoder = Decoder(find_checkpoint(str(tiny)).transformer("float32", CPU), max_length=72)
    decoder.prefill(PROMPT)
    assert decoder.room == 2
    with pytest.raises(ValueError, match="at most 2 nodes, got 3"):
        decoder.score(TokenTree.chain([1, 2, 3]))
    with pytest.raises(ValueError, match="prompt of 1 to 72 tokens, got 73"):
        decoder.prefill([1] * 73)
    with pytest.raises(ValueError, match="length of 0 to 70, got 71"):
        decoder.truncate(71)


def test_taps_are_the_states_after_the_chosen_layers(tiny: Path) -> None:
    model = find_checkpoint(str(tiny)).transformer("float32", CPU)
    decoder = Decoder(model)
    assert decoder.prefill(PROMPT).features_NF is None
    features_TF = decoder.prefill(PROMPT, (2, FINAL, 0)).features_NF
    assert features_TF is not None and features_TF.shape == (len(PROMPT), 3 * 32)
    last, final, first = features_TF.split(32, 1)
    assert torch.equal(model.normed(last.contiguous()), final)  # layer 2 is the last
    assert torch.equal(features(decoder.prefill(PROMPT, (0,))), first)
    scores = decoder.score(TokenTree.chain([4, 5, 6]), (FINAL,))
    assert scores.features_NF is not None
    assert torch.equal(model.head(scores.features_NF.contiguous()), scores.logits_NV)


@pytest.mark.parametrize("taps", [(0,), (1, FINAL), (2, 0)])
def test_features_have_the_same_bits_for_every_row_count(decoder: Decoder, taps: tuple[int, ...]) -> None:
    tokens = [(11 * i) % 90 + 1 for i in range(17)]
    decoder.prefill(PROMPT)
    rows = []
    for token in tokens:
        rows.append(features(decoder.score(TokenTree.chain([token]), taps)))
        decoder.commit([0])
    decoder.truncate(len(PROMPT))
    expected = torch.cat(rows)
    assert torch.equal(features(decoder.score(TokenTree.chain(tokens), taps)), expected)
    for nodes in (2, 3, 9):
        assert torch.equal(features(decoder.score(TokenTree.chain(tokens[:nodes]), taps)), expected[:nodes])


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_that_grows_has_the_bits_of_one_scored_at_once(decoder: Decoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parents = [-1] + [int(torch.randint(max(0, i - 5), i, (), generator=generator)) for i in range(1, 24)]
    tree = TokenTree(torch.randint(1, 95, (24,), generator=generator).tolist(), parents)
    decoder.prefill(PROMPT)
    expected = decoder.score(tree, (1,))
    known, logits, states = 0, [], []
    for stop in (1, 4, 5, 15, 24):
        part = tree.first(stop)
        scores = decoder.score(part, (1,), known=known)
        logits.append(scores.logits_NV)
        states.append(features(scores))
        known = stop
    assert torch.equal(torch.cat(logits), expected.logits_NV)
    assert torch.equal(torch.cat(states), features(expected))
    path = tree.path(23)
    decoder.commit(path)
    grown = decoder.score(TokenTree.chain([7])).logits_NV
    decoder.truncate(len(PROMPT))
    assert torch.equal(one_by_one(decoder, [*tree.tokens_N[path].tolist(), 7])[-1:], grown)


def test_a_chain_that_grows_has_the_bits_of_one_scored_at_once(decoder: Decoder) -> None:
    tokens = [(11 * i) % 90 + 1 for i in range(9)]
    expected = one_by_one(decoder, tokens)
    decoder.prefill(PROMPT)
    decoder.score(TokenTree.chain(tokens[:4]))
    assert torch.equal(decoder.score(TokenTree.chain(tokens), known=4).logits_NV, expected[4:])
    with pytest.raises(ValueError, match="nodes behind the 9 known ones"):
        decoder.score(TokenTree.chain(tokens), known=9)


def test_layers_on_several_devices_give_the_same_bits(tiny: Path) -> None:
    """Two names of the CPU stand for two devices: each has its own cache."""
    checkpoint = find_checkpoint(str(tiny))
    one = Decoder(checkpoint.transformer("float32", CPU))
    from methods.engine.transformer import Transformer

    spread = [torch.device("cpu"), torch.device("cpu", 0), torch.device("cpu", 0)]
    two = Decoder(Transformer(checkpoint.config, checkpoint.weights, torch.float32, spread))
    for decoder in (one, two):
        decoder.prefill(PROMPT)
        decoder.score(TokenTree.chain([1, 2]))
        decoder.commit([0])
    tree = TokenTree([1, 2, 3], [-1, 0, 0])
    assert torch.equal(one.score(tree).logits_NV, two.score(tree).logits_NV)


def test_the_probe_passes_here_and_notices_a_row_that_leaks(tiny: Path) -> None:
    decoder = Models(str(tiny), None, "bfloat16", CPU).target
    assert decoder.row_invariant is True
    assert decoder.length == 0
    final = decoder.model.logits
    # A sum over the rows of a pass is what a row-variant kernel amounts to.
    decoder.model.logits = lambda hidden_ND: final(hidden_ND + hidden_ND.sum(0) * 1e-3)  # type: ignore[method-assign]
    assert probe_row_invariance(decoder) is False
