"""A trained draft with exits: loading, stages that lag and catch up, chains and trees, and exact distributions."""

import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from methods import BASELINE, get_method
from methods.base import Limits, generate
from methods.build import build_method
from methods.drafters.draft_model import draft_decoder, draft_model
from methods.drafters.language_model import ModelDrafter
from methods.drafters.sd2.chain import SortedDrafter
from methods.drafters.sd2.exits import StagedDecoder
from methods.drafters.sd2.tree import SortedTreeDrafter
from methods.engine.backends import cpu as native
from methods.engine.backends.pytorch import TorchStack, packs_bf16
from methods.engine.int8 import Int8
from methods.engine.sampling import Sampling, probabilities
from methods.engine.trained_draft import DraftWeights
from methods.engine.transformer import matrix
from methods.engine.tree import TokenTree
from methods.errors import UserError
from methods.models import Models
from methods.target import Outcome
from methods.training.sorted import SortedDraft
from tests.tiny import VOCABULARY, save_draft, save_model

DOWN, K = "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.weight"
NORM, ONES = "model.norm.weight", torch.ones(32)
Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
CPU = [torch.device("cpu")]
GREEDY = Sampling()
EXITS = (1, 2, 3)
TEXT = [(7 * i) % 90 + 1 for i in range(40)]


def models(target: Path, draft: Path | str, dtype: str = "float32") -> Models:
    return Models(str(target), str(draft), dtype, CPU)


@pytest.fixture(params=["native", "torch"])
def pair(request: pytest.FixtureRequest, tiny: Path, tiny_sorted: Path) -> Models:
    both = models(tiny, tiny_sorted)
    if request.param == "torch":
        model = draft_model(both)
        model.stack = TorchStack(model.config, model.layers, model.dtype, model.devices)
    return both


def staged(pair: Models, exits: tuple[int, ...] = EXITS, threshold: float = 1.0) -> StagedDecoder:
    return StagedDecoder(draft_model(pair), exits, threshold)


def test_every_exit_is_the_trained_models(pair: Models, tiny: Path, tiny_sorted: Path) -> None:
    """int8 rows, the reduced head and the target's embedding, against the module that train.py trains."""
    stored = load_file(tiny_sorted / "model.safetensors")
    tokens_R = stored.pop("lm_head.tokens").long()
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    trained = SortedDraft(model, [0, 1, 2], list(EXITS), tokens_R)
    for name, value in trained.named_parameters():
        public = "lm_head.weight" if name == "head" else f"model.{name}"
        scale = stored.get(f"{public}.scale")
        value.data = stored[public] if scale is None else stored[public].float() * scale[:, None]
    assert stored["lm_head.weight"].dtype == torch.int8
    states = trained.exit_states(torch.tensor([TEXT]))
    for exit_, state_1TD in zip(EXITS, states, strict=True):
        decoder = staged(pair, (exit_,))
        decoder.prefill(TEXT[:-3])
        expected = state_1TD[0, -1:] @ trained.head.T  # natively the inputs of int8 weights may be rounded to 16 bits
        torch.testing.assert_close(decoder.extend(TEXT[-3:]).logits_NV, expected, rtol=1e-3, atol=2e-3)
    known_R = draft_model(pair).tokens_R
    assert known_R is not None and torch.equal(known_R, tokens_R)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.skipif(native.library() is None, reason="no native operators")
def test_int8_rows_stay_int8_where_operators_take_them(
    tiny: Path, tiny_sorted: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = models(tiny, tiny_sorted, dtype)
    assert draft_model(both).dtype == both.target.model.dtype == getattr(torch, dtype)
    assert draft_model(both).embedding_VD is both.target.model.embedding_VD
    original = load_file(tiny / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    weights = DraftWeights(both.draft_checkpoint.weights, both.target.model.embedding_VD)
    int8 = matrix(weights, ["model.layers.1.mlp.down_proj.weight"], torch.float32, CPU[0])
    assert isinstance(int8, Int8)
    step = original.abs().amax(1, keepdim=True) / 127
    assert ((int8.widened() - original).abs() <= step / 2 + 1e-6).all()

    def logits_of(pair: Models) -> torch.Tensor:
        decoder = staged(pair)
        decoder.prefill(TEXT)
        return decoder.extend([7]).logits_NV

    logits = [logits_of(both)]
    monkeypatch.setattr(native, "library", lambda: None)
    widened = models(tiny, tiny_sorted, dtype)
    logits.append(logits_of(widened))
    size = 2 if dtype == "bfloat16" and packs_bf16() else 4  # else widened to fp32
    assert draft_model(widened).bytes_up_to(2) == size * draft_model(both).bytes_up_to(2)
    precision = 1e-3 if dtype == "float32" else 0.1  # bf16 weights are rounded twice, and the tiny model is restless
    assert (logits[0] - logits[1]).norm() < precision * logits[1].norm()


def test_late_stages_catch_up_bit_for_bit(pair: Models) -> None:
    """Tokens leave at any exit, and are taken back, seen by a stage or not: the logits are those of a fresh pass."""
    draw, decoder, text = random.Random(1), staged(pair), TEXT[:5]
    decoder.prefill(text)
    lags = set()
    for _ in range(60):
        if draw.random() < 0.3:
            text = text[: -draw.randrange(1, min(4, len(text)))]
            decoder.truncate(len(text))
        new = [draw.randrange(1, 90) for _ in range(draw.randrange(1, 4))]
        text = text + new
        decoder.threshold = draw.choice([0.0, 0.0, 0.5, 1.0])
        logits = decoder.extend(new).logits_NV
        fresh = staged(pair, threshold=decoder.threshold)
        fresh.prefill(text[:-1])
        expected = fresh.extend(text[-1:]).logits_NV
        if draft_model(pair).stack.operators == "native":
            assert torch.equal(logits, expected)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=3e-3)
        lengths = [stage.length for stage in decoder._stages]
        assert decoder.length == lengths[0] == len(text)
        lags.add((lengths[0] - lengths[1], lengths[1] - lengths[2]))
    assert len(lags) > 4 and max(lags)[0] > 3


def test_threshold_decides_who_goes_on(pair: Models) -> None:
    """The first exit above the threshold answers; 0 is the first, 1 the last, between them the one that says so."""
    first, second, last = (staged(pair, (exit_,)) for exit_ in EXITS)
    seen = set()
    for end in range(5, 40):
        rows = []
        for decoder in (first, second, last):
            decoder.prefill(TEXT[:end])
            rows.append(decoder.extend([TEXT[end]]).logits_NV)
        top = [float(torch.softmax(row, -1).max()) for row in rows]
        for threshold in (0.0, 0.6, 1.0):
            adaptive = staged(pair, threshold=threshold)
            adaptive.prefill(TEXT[:end])
            chosen = next((i for i in (0, 1) if top[i] > threshold), 2)
            torch.testing.assert_close(adaptive.extend([TEXT[end]]).logits_NV, rows[chosen], rtol=1e-3, atol=3e-3)
            seen.add((threshold, chosen))
    assert seen == {(0.0, 0), (0.6, 0), (0.6, 1), (0.6, 2), (1.0, 2)}


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_tree_nodes_score_as_their_paths(pair: Models, threshold: float) -> None:
    draw, decoder = random.Random(2), staged(pair)
    decoder.prefill(TEXT[:9])
    for nodes in (1, 2, 7, 20):
        decoder.threshold = 0.0
        decoder.extend(TEXT[:2])  # the deeper stages lag by these
        text = TEXT[:9] + [token for _ in range((decoder.length - 9) // 2) for token in TEXT[:2]]
        parents = [-1] + [draw.randrange(i) for i in range(1, nodes)]
        tree = TokenTree(draw.choices(range(1, 90), k=nodes), parents)
        known = nodes - min(nodes, 3)
        if known:  # their exits are early ones, so that deeper stages lag behind in the tree too
            decoder.branch(tree.first(known), 0)
        decoder.threshold = threshold
        logits = decoder.branch(tree, known)
        stop = exit_of(pair, text + tree.tokens_N[tree.path(known)].tolist(), threshold)
        for node, row in zip(range(known, nodes), logits, strict=True):
            path = text + tree.tokens_N[tree.path(node)].tolist()
            torch.testing.assert_close(row, row_at(pair, path, stop), rtol=1e-3, atol=3e-3)


def decided(*tokens: int) -> Outcome:
    """What a drafter is told of decided tokens."""
    return Outcome(list(tokens), list(range(len(tokens))))


def row_at(pair: Models, text: list[int], exit_: int) -> torch.Tensor:
    fresh = staged(pair, (exit_,))
    fresh.prefill(text[:-1])
    return fresh.extend(text[-1:]).logits_NV[0]


def exit_of(pair: Models, text: list[int], threshold: float) -> int:
    tops = {exit_: float(torch.softmax(row_at(pair, text, exit_), -1).max()) for exit_ in EXITS}
    return next((exit_ for exit_ in EXITS if tops[exit_] > threshold), EXITS[-1])


@pytest.mark.parametrize("exits", [EXITS, (1,), (2,), (3,)])
def test_chains_do_not_depend_on_how_the_text_came_about(pair: Models, exits: tuple[int, ...]) -> None:
    """After many rejections, against a drafter that is given the text at once."""
    draw, text = random.Random(3), TEXT[:5]
    drafter = SortedDrafter(staged(pair, exits, 0.6), VOCABULARY)
    drafter.begin(text, GREEDY, None)
    kept: list[int] = []
    for _ in range(15):
        new = draw.randrange(1, 90)
        drafter.settle(decided(*kept, new))
        text = [*text, *kept, new]
        fresh = SortedDrafter(staged(pair, exits, 0.6), VOCABULARY)
        fresh.begin(text[:-1], GREEDY, None)
        fresh.settle(decided(new))
        drafted = drafter.draft(2).tokens_G + drafter.draft(2).tokens_G
        assert drafted == fresh.draft(4).tokens_G and len(drafted) == 4
        kept = drafted[: draw.randrange(5)]


@pytest.mark.parametrize("exits", [EXITS, (1,), (2,), (3,)])
def test_trees_do_not_depend_on_how_the_text_came_about(pair: Models, exits: tuple[int, ...]) -> None:
    draw, text = random.Random(4), TEXT[:5]
    drafter = SortedTreeDrafter(staged(pair, exits, 0.6), VOCABULARY, 4, 3, 12)
    drafter.begin(text, GREEDY, None)
    kept: list[int] = []
    for _ in range(15):
        new = draw.randrange(1, 90)
        drafter.settle(decided(*kept, new))
        text = [*text, *kept, new]
        fresh = SortedTreeDrafter(staged(pair, exits, 0.6), VOCABULARY, 4, 3, 12)
        fresh.begin(text[:-1], GREEDY, None)
        fresh.settle(decided(new))
        tree, expected = drafter.propose(20), fresh.propose(20)
        assert torch.equal(tree.tokens_N, expected.tokens_N) and torch.equal(tree.parents_N, expected.parents_N)
        kept = tree.tokens_N[tree.path(draw.randrange(13))[1:]].tolist()


def test_a_tree_has_the_most_confident_nodes(pair: Models) -> None:
    """Against a brute-force search of the full tree of 3 levels, where nothing is cut off before it is compared."""
    drafter = SortedTreeDrafter(staged(pair, (3,)), VOCABULARY, 3, 3, 9)
    drafter.begin(TEXT[:-1], GREEDY, None)
    drafter.settle(decided(TEXT[-1]))
    tree = drafter.propose(50)
    level: dict[tuple[int, ...], float] = {(): 0.0}
    found: dict[tuple[int, ...], float] = {}
    for _ in range(3):
        children: dict[tuple[int, ...], float] = {}
        for path, confidence in sorted(level.items(), key=lambda item: -item[1])[:3]:
            log_p = torch.log_softmax(row_at(pair, [*TEXT, *path], 3), -1).topk(3)
            for value, row in zip(*map(torch.Tensor.tolist, log_p), strict=True):
                children[(*path, int(drafter.tokens_R[row]))] = confidence + value
        level, found = children, found | children
    best = sorted(found, key=lambda path: -found[path])[:9]
    got = [tuple(tree.tokens_N[tree.path(node)[1:]].tolist()) for node in range(1, 10)]
    assert sorted(got) == sorted(best) and max(map(len, got)) > 1
    assert len(drafter.propose(4).tokens_N) == 5 and len(drafter.propose(0).tokens_N) == 1


@pytest.mark.parametrize("name", ["sps", "sd2", "sd2-tree"])
@pytest.mark.parametrize("exit_, threshold", [(0, 0.0), (0, 0.7), (0, 1.0), (1, 0.5), (2, 0.5), (3, 0.5)])
def test_every_exit_is_lossless(tiny: Path, tiny_sorted: Path, name: str, exit_: int, threshold: float) -> None:
    pair, limits = models(tiny, tiny_sorted, "bfloat16"), Limits(frozenset(), 60)
    expected = generate(build_method(get_method(BASELINE), pair, {}), TEXT, GREEDY, limits)
    options = {"exit": exit_, "threshold": threshold, "gamma": 4, "depth": 3}
    got = generate(build_method(get_method(name), pair, options), TEXT, GREEDY, limits)
    assert got.token_ids == expected.token_ids
    deepest = name == "sps" or exit_ == 3 or threshold == 1.0
    assert sum(got.accepted) > (30 if deepest else 0)  # the deepest exit is the target but for int8 and its head


@pytest.mark.parametrize("name", ["sps", "sd2", "sd2-tree"])
def test_a_draft_with_a_shorter_context_stops_drafting(tiny: Path, tmp_path: Path, name: str) -> None:
    pair, limits = models(tiny, save_draft(tmp_path, tiny, max_position_embeddings=32)), Limits(frozenset(), 60)
    for count in (1, 20, 32, 33, 40):
        expected = generate(build_method(get_method(BASELINE), pair, {}), TEXT[:count], GREEDY, limits)
        got = generate(build_method(get_method(name), pair, {"branches": 3}), TEXT[:count], GREEDY, limits)
        assert got.token_ids == expected.token_ids
        assert got.drafted[-1] == 0 and (count > 20 or got.drafted[1] > 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A target of five tokens, and its draft that knows four of them."""
    target = save_model(tmp_path_factory.mktemp("target"), seed=5, layers=3, vocab_size=5, initializer_range=0.2)
    return models(target, save_draft(tmp_path_factory.mktemp("draft"), target, [0, 1, 3, 4]))


@pytest.fixture(scope="module")
def exact(small: Models) -> dict[tuple[int, ...], float]:
    """The target's probability of each first three tokens after PROMPT."""
    found = {}
    for tokens in itertools.product(range(5), repeat=3):
        scores = [small.target.prefill(PROMPT + list(tokens[:i])).logits_NV[0] for i in range(3)]
        found[tokens] = float(
            torch.stack([probabilities(s, SAMPLED)[t] for s, t in zip(scores, tokens, strict=True)]).prod()
        )
    return found


PROMPT, SAMPLED = [1, 4, 2], Sampling(1.0)


@pytest.mark.parametrize(
    "name, options",
    [
        ("sps", {}),
        ("sd2", {"threshold": 0.4}),
        ("sd2", {"exit": 1}),
        ("sd2-tree", {"branches": 2, "nodes": 4, "threshold": 0.4}),
        ("sd2-tree", {"branches": 3, "depth": 2, "exit": 2}),
    ],
)
def test_sampled_output_has_the_targets_distribution(
    small: Models, exact: dict[tuple[int, ...], float], name: str, options: dict[str, Any]
) -> None:
    method, runs = build_method(get_method(name), small, options), 700
    counts = Counter(
        tuple(generate(method, PROMPT, Sampling(1.0, seed=seed), Limits(frozenset(), 3)).token_ids)
        for seed in range(runs)
    )
    common = [tokens for tokens, p in exact.items() if p * runs >= 5]
    rest = 1 - sum(exact[tokens] for tokens in common)
    observed = [counts[tokens] for tokens in common]
    expected = [exact[tokens] * runs for tokens in common]
    assert len(common) > 20
    assert chisquare([*observed, runs - sum(observed)], [*expected, rest * runs]).pvalue > 0.001


def test_tokens_outside_the_head_have_no_probability(pair: Models) -> None:
    drafter = ModelDrafter(draft_decoder(pair), VOCABULARY)
    drafter.begin(TEXT, Sampling(1.0), None)
    drafter.settle(decided(4))
    draft = drafter.draft(40)
    assert draft.q_GV is not None and draft.q_GV.shape == (40, VOCABULARY)
    unknown = torch.arange(VOCABULARY) % 4 == 0
    assert draft.q_GV[:, unknown].sum() == 0 and all(token % 4 for token in draft.tokens_G)
    torch.testing.assert_close(draft.q_GV.sum(1), torch.ones(40, dtype=torch.float64))
    assert all(draft.q_GV[i, token] > 0 for i, token in enumerate(draft.tokens_G))


def edited(draft: Path, to: Path, change: Change) -> Path:
    shutil.copytree(draft, to)
    config, weights = json.loads((to / "config.json").read_text()), load_file(to / "model.safetensors")
    change(config, weights)
    (to / "config.json").write_text(json.dumps(config))
    save_file(weights, to / "model.safetensors")
    return to


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda config, weights: config.update(vocab_size=95), r"made for .*vocabulary 95, width 32.*vocabulary 96"),
        (lambda config, weights: config.update(hidden_size=64), r"width 64\), not for this target"),
        (lambda config, weights: config["draft"].update(format=2), r"format in the table .* to be 1, got 2"),
        (lambda config, weights: config["draft"].update(exits=[1, 2]), "end at 3 layers"),
        (lambda config, weights: config["draft"].update(exits=[2, 1, 3]), "ascending exits"),
        (lambda config, weights: config["draft"].update(exits=[{}, "x"]), "exits.0 in the table .* valid integer"),
        (lambda config, weights: config["draft"].update(exits=3), "exits in the table .* valid list"),
        (lambda config, weights: config.update(draft="yes"), "expected the table in the table .*, got 'yes'"),
        (lambda config, weights: weights.pop("lm_head.weight.scale"), "misses weights: lm_head.weight"),
        (lambda config, weights: weights["lm_head.tokens"].add_(50), "tokens below 96"),
        (lambda config, weights: weights.update(extra=torch.ones(1)), "unexpected weights: extra"),
        (lambda config, weights: weights["lm_head.tokens"].fill_(1), "different tokens"),
        (lambda config, weights: weights.update({"lm_head.tokens": torch.ones(72)}), r"list of int32.*float32 \(72,\)"),
        (lambda config, weights: weights.update({"lm_head.tokens": torch.ones(0).int()}), r"int32 \(0,\)"),
        (
            lambda config, weights: weights.update({f"{DOWN}.scale": torch.ones(7)}),
            r"32 real numbers, got float32 \(7,\)",
        ),
        (lambda config, weights: weights.update({f"{DOWN}.scale": torch.ones(32).int()}), "32 real numbers, got int32"),
        (lambda config, weights: weights.update({DOWN: weights[DOWN].int()}), "or int8 for matrices, got int32"),
        (lambda config, weights: weights.update({DOWN: weights[DOWN][0]}), r"of shape \(32, 64\)"),
        (lambda config, weights: weights.update({K: weights[K].float()}), "all in int8, or none"),
        (
            lambda config, weights: weights.update({NORM: weights[NORM].char(), f"{NORM}.scale": torch.ones(32)}),
            "got int8",
        ),
    ],
)
def test_a_draft_that_does_not_fit_is_refused(
    tiny: Path, tiny_sorted: Path, tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _ = draft_model(models(tiny, edited(tiny_sorted, tmp_path / "draft", change)))


def test_mistakes_get_one_sentence(tiny: Path, tiny_draft: Path, tiny_sorted: Path) -> None:
    mistakes: list[tuple[str, Path, dict[str, Any], str]] = [
        ("sd2", tiny_draft, {}, "expected a draft with exits"),
        ("sd2-tree", Path("first-2"), {}, "first-2 has none"),
        ("sd2", tiny_sorted, {"exit": 4}, "or one of 1, 2, 3, got 4"),
        ("sd2-tree", tiny_sorted, {"threshold": 1.5}, "between 0 and 1, got 1.5"),
        ("hf-assisted", tiny_sorted, {}, "Transformers cannot run the draft"),
        ("hf-assisted", Path("int8"), {}, "Transformers cannot run the draft int8"),
        ("hf-assisted", Path("int4-9"), {}, "Transformers cannot run the draft int4-9"),
    ]
    for name, draft, options, message in mistakes:
        with pytest.raises(UserError, match=message):
            build_method(get_method(name), models(tiny, draft), options)


def test_the_context_is_a_hard_limit(pair: Models) -> None:
    decoder = StagedDecoder(draft_model(pair), EXITS, 0.5, max_length=10)
    decoder.prefill(TEXT[:8])
    with pytest.raises(ValueError, match="at most 2 tokens, got 3"):
        decoder.extend(TEXT[:3])
    with pytest.raises(ValueError, match="at most 2 nodes, got 3"):
        decoder.branch(TokenTree.chain([1, 2, 3]), 1)
    with pytest.raises(ValueError, match="length of 0 to 8, got 9"):
        decoder.truncate(9)
    for count in (0, 11):
        with pytest.raises(ValueError, match=f"prompt of 1 to 10 tokens, got {count}"):
            decoder.prefill(TEXT[:count])
