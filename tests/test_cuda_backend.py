"""Models and methods on the CUDA backend, whose kernels run in Triton's interpreter where there is no GPU: they say
what they say by PyTorch's operators, a pass costs one wait and two copies, and one that is recorded replays as any
other."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

pytest.importorskip("triton")

from methods import BASELINE, get_method
from methods.base import Generation, Limits, generate
from methods.build import build_method
from methods.engine import decoder as decoder_module
from methods.engine import traffic
from methods.engine.backends import cuda
from methods.engine.backends.best import best_of
from methods.engine.backends.cuda import attention, graphs, launch, linear, stack
from methods.engine.backends.cuda.linear import CudaLinear
from methods.engine.config import ModelConfig
from methods.engine.decoder import Decoder, Scores
from methods.engine.head import Head
from methods.engine.link import Close, LocalLink
from methods.engine.loader import find_checkpoint
from methods.engine.sampling import Sampling
from methods.engine.split import Part, SplitWeights, part_of
from methods.engine.team import Team
from methods.engine.tensor_parallel import Follower, LeadingDecoder
from methods.engine.transformer import FINAL, Layers, Transformer
from methods.engine.tree import TokenTree
from methods.engine.weights import expected_shapes
from methods.models import Models
from methods.target import Target
from tests.pretended_gpus import PretendedGpus, mapped, place_of, plain, pretended, tensors_in
from tests.tiny import save_model
from tests.weights import WEIGHTS

pytestmark = [
    pytest.mark.parametrize("operators", ["torch"], indirect=True),
    pytest.mark.usefixtures("operators", "one_thread", "even_products"),
]

CPU = torch.device("cpu")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
ROWS = (1, 2, 4)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TREE = TokenTree([5, 6, 7, 8], [-1, 0, 0, 2])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For passes of few rows, of which the interpreter takes long."""
    monkeypatch.setattr(stack, "ROWS", ROWS)
    monkeypatch.setattr(decoder_module, "PROBED", 3)
    yield monkeypatch


def usable(here: pytest.MonkeyPatch) -> None:
    here.setattr(cuda, "usable", lambda device: device == DEVICE)


def config_of(family: str) -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "model_type": family,
            "vocab_size": 96,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
        }
    )


def passes(config: ModelConfig, weights: dict[str, Tensor], device: torch.device) -> tuple[str, list[Tensor]]:
    """A prompt, a tree behind it, a path of it and what follows; with taps. By whose operators."""
    model = Transformer(config, weights, torch.float32, [device] * config.layers)
    decoder, taps = Decoder(model, 40), (0, FINAL)
    found = [decoder.prefill(PROMPT, taps), decoder.score(TREE, taps)]
    decoder.commit([0, 2, 3])
    found.append(decoder.score(TokenTree.chain([9, 8]), taps))
    tensors = [part for scores in found for part in (scores.logits_NV, scores.features_NF) if part is not None]
    return model.stack.operators, [tensor.cpu() for tensor in tensors]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])  # with a bias; with norms of queries and keys
def test_a_model_says_what_it_says_by_pytorchs_operators(family: str, here: pytest.MonkeyPatch) -> None:
    config = config_of(family)
    torch.manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape) for name, shape in expected_shapes(config).items()}
    theirs, expected = passes(config, weights, CPU)
    usable(here)
    ours, found = passes(config, weights, DEVICE)
    assert (theirs, ours) == ("torch", "triton")
    for got, wanted in zip(found, expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        assert torch.equal(got.argmax(1), wanted.argmax(1))


class Turns(Team):
    """Of ranks that are threads, one of which runs at a time, as Triton's interpreter asks. `meetings`: the partial
    sums that each has brought, by how often they have met."""

    def __init__(self, index: int, link: LocalLink, meetings: dict[int, dict[int, Tensor]]) -> None:
        group: Any = None
        super().__init__(Part(index, 2), group, [link], collective=False)
        self.link, self.meetings, self.met = link, meetings, 0

    def _gathered(self, own_ND: Tensor) -> Tensor:
        brought = self.meetings.setdefault(self.met, {})
        self.met += 1
        brought[self.part.index] = own_ND
        while len(brought) < 2:
            self.link.give_way()
        return torch.stack([brought[0], brought[1]])


@contextmanager
def split_target(config: ModelConfig, weights: dict[str, Tensor]) -> Iterator[LeadingDecoder]:
    """Of two ranks, on DEVICE."""
    dtype = torch.float32
    here, there = LocalLink.pair("the first rank", "the second")
    meetings: dict[int, dict[int, Tensor]] = {}

    def own(index: int) -> tuple[ModelConfig, SplitWeights]:
        part = Part(index, 2)
        return part_of(config, part, ""), SplitWeights(config, weights, part)

    def follow() -> None:
        there.turn.acquire()
        torch.set_num_threads(1)
        follower = Follower(*own(1), dtype, [DEVICE] * config.layers, Turns(1, there, meetings))
        follower.load(40)
        follower.follow()

    rank = threading.Thread(target=follow, daemon=True)
    rank.start()
    team = Turns(0, here, meetings)
    yield LeadingDecoder(Transformer(*own(0), dtype, [DEVICE] * config.layers, team.gather), team, 40)
    here.end(Close())
    rank.join(60)
    assert not rank.is_alive()


def test_a_split_target_has_the_same_bits_in_any_pass(here: pytest.MonkeyPatch) -> None:
    """On the kernels too, and it says what PyTorch's operators say. None of its passes is recorded, for the other rank
    must be told of each."""
    config = config_of("llama")
    torch.manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape) for name, shape in expected_shapes(config).items()}
    with split_target(config, weights) as decoder:
        assert decoder.model.stack.operators == "torch"
        wanted, expected = decoder.prefill(PROMPT).logits_NV, decoder.score(TREE).logits_NV
    usable(here)
    here.setattr(stack, "ROWS", (1, 4))
    here.setattr(stack, "records", lambda device: True)
    with split_target(config, weights) as decoder:
        assert decoder.model.stack.operators == "triton" and decoder._recorder is None
        near = 1e-4 * float(expected.abs().max())
        assert torch.allclose(decoder.prefill(PROMPT).logits_NV.cpu(), wanted, atol=near)
        forked_NV = decoder.score(TREE).logits_NV
        assert torch.allclose(forked_NV.cpu(), expected, atol=near)
        for node in (0, 2):
            alone_1V = decoder.score(TokenTree.chain([int(TREE.tokens_N[node])])).logits_NV
            assert torch.equal(alone_1V[0], forked_NV[node])
            decoder.commit([0])


def head_passes(config: ModelConfig, weights: dict[str, Tensor], device: torch.device) -> list[Tensor]:
    """Two layers of a head, the first of which reads what lies beside, over rows and over a tree that grows."""
    layers = Layers(config, weights, torch.float32, [device] * config.layers)
    head = Head(layers, 20)
    random = torch.Generator().manual_seed(0)
    rows = [torch.randn(count, config.width, generator=random).to(device) for count in (5, 5, 2, 2, 3, 3)]
    found = [head.feed(rows[0], rows[1]), head.feed(rows[2], rows[3]), head.branch(TREE, 1, rows[4], rows[5])]
    return [tensor.cpu() for tensor in found]


def test_a_head_says_what_it_says_by_pytorchs_operators(here: pytest.MonkeyPatch) -> None:
    config = config_of("llama")
    torch.manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape) for name, shape in expected_shapes(config).items()}
    prefix = "model.layers.0"
    for part in ("q_proj", "k_proj", "v_proj"):
        weights[f"{prefix}.self_attn.{part}.weight"] = weights[f"{prefix}.self_attn.{part}.weight"].repeat(1, 2)
    weights[f"{prefix}.beside_norm.weight"] = weights.pop(f"{prefix}.input_layernorm.weight")
    expected = head_passes(config, weights, CPU)
    usable(here)
    for got, wanted in zip(head_passes(config, weights, DEVICE), expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("target"), layers=1)


@pytest.fixture(scope="module")
def head(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WEIGHTS["eagle"](tmp_path_factory.mktemp("head"), target)


def answer(models: Models, name: str) -> Generation:
    method = build_method(get_method(name), models, {"gamma": 2, "nodes": 4, "branches": 2, "depth": 2})
    return generate(method, PROMPT, Sampling(), Limits(frozenset(), 4))


def test_methods_give_the_baselines_answer(target: Path, head: Path, here: pytest.MonkeyPatch) -> None:
    """Over a draft in 4 bits, which reads them as such and works in the target's cache, and over trees of a head."""
    expected = answer(Models(str(target), None, "float32", [CPU], 20), BASELINE)
    usable(here)
    models = Models(str(target), None, "float32", [DEVICE], 20)
    assert models.target.row_invariant and models.target.model.stack.row_counts == ROWS
    assert answer(models, BASELINE).token_ids == expected.token_ids
    for name, draft in (("sps", "int4"), ("eagle2", str(head))):
        got = answer(models.with_draft(draft), name)
        assert got.token_ids == expected.token_ids and any(got.drafted)


def test_bits_that_differ_by_the_number_of_rows_are_found(target: Path, here: pytest.MonkeyPatch) -> None:
    """Another compiler may yet sum otherwise in another tile: then passes have the numbers of rows that agree."""
    usable(here)
    call: Any = CudaLinear.__call__

    def other(self: CudaLinear, x_NI: Tensor, *rest: Any, **more: Any) -> Tensor:
        return call(self, x_NI, *rest, **more) * (1 + 1e-6 * (len(x_NI) == 2))

    here.setattr(CudaLinear, "__call__", other)
    decoder = Decoder(
        Models(str(target), None, "float32", [DEVICE], 40).target_checkpoint.transformer("float32", [DEVICE])
    )
    decoder.model.measure_rows()
    assert decoder.model.stack.row_counts == (1, 4)


class Recording:
    """Stands for a CUDA graph: keeps what runs while it is entered, PyTorch's operations and launches of kernels. A
    replay runs them again on the tensors of then, whose numbers may be others by now; numbers of the host stay what
    they were."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def operation(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        def again() -> None:
            for old, new in zip(tensors_in(result), tensors_in(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.steps.append(again)

    def replay(self) -> None:
        for step in self.steps:
            step()


class Watch(TorchDispatchMode):
    """Tells a recording of every operation."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.recording.operation(func, args, kwargs or {}, result)
        return result


@pytest.fixture
def recordings(here: pytest.MonkeyPatch) -> list[Recording]:
    """Those that stand for graphs, as they come."""
    made: list[Recording] = []

    def capture(run: Callable[[], Any], device: torch.device) -> Any:
        recording, run_kernel = Recording(), launch.launch
        run()

        def launched(*args: Any, **kwargs: Any) -> None:
            with _disable_current_modes():
                run_kernel(*args, **kwargs)
            recording.steps.append(partial(run_kernel, *args, **kwargs))

        with here.context() as patch, Watch(recording):
            for module in (attention, linear, stack):
                patch.setattr(module, "launch", launched)
            outputs = run()
        made.append(recording)
        return recording, outputs

    here.setattr(graphs, "capture", capture)
    here.setattr(stack, "records", lambda device: True)
    return made


@pytest.mark.skipif(DEVICE != CPU, reason="on a GPU there are graphs")
def test_a_recorded_pass_replays_for_other_tokens_trees_and_lengths(
    target: Path, here: pytest.MonkeyPatch, recordings: list[Recording]
) -> None:
    """What was frozen into the recording of the first pass would be wrong in the others."""
    usable(here)
    model = find_checkpoint(str(target)).transformer("float32", [CPU])
    decoder, taps = Decoder(model, 300), (0,)
    grown = TokenTree([4, 3, 2, 1, 5, 6, 7], [-1, 0, 0, 0, 2, 4, 1])
    trees = [TREE, TokenTree.chain([9, 8, 7]), grown.first(4), grown]
    found, expected = list[Scores](), list[Scores]()
    for scores, recorder in ((found, decoder._recorder), (expected, None)):
        decoder._recorder = recorder
        decoder.prefill(PROMPT)
        for tree, length, known in zip(trees, (8, 11, 255, 255), (0, 0, 0, 4), strict=True):
            decoder.length = length
            scores.append(decoder.score(tree, taps, known))
    assert len(recordings) == 1
    for got, wanted in zip(found, expected, strict=True):
        assert got.features_NF is not None and wanted.features_NF is not None
        assert torch.equal(got.logits_NV, wanted.logits_NV) and torch.equal(got.features_NF, wanted.features_NF)
        assert isinstance(got.best_N2, torch.Tensor) and torch.equal(got.best_N2, best_of(wanted.logits_NV))


@pytest.mark.skipif(DEVICE != CPU, reason="on a GPU there are graphs")
def test_what_greedy_decoding_decides_by_comes_of_the_recording(
    target: Path, here: pytest.MonkeyPatch, recordings: list[Recording]
) -> None:
    usable(here)
    here.setattr(stack, "ROWS", (2,))
    side = Target(Decoder(find_checkpoint(str(target)).transformer("float32", [CPU]), 40))
    side.start(PROMPT, Sampling())
    scores = side.score(TokenTree.chain([side.pending, 3]))
    assert scores.best_N2 is not None
    said = scores._replace(best_N2=torch.tensor([[7.0, 1.0]] * 2, dtype=torch.float64))
    assert side.decide(TokenTree.chain([side.pending, 3]), said).tokens == [7]


@pytest.mark.skipif(DEVICE != CPU, reason="on a GPU there are graphs")
def test_passes_are_recorded_before_the_first_round(
    target: Path, here: pytest.MonkeyPatch, recordings: list[Recording]
) -> None:
    usable(here)
    here.setattr(stack, "ROWS", (1, 2))
    decoder = Decoder(find_checkpoint(str(target)).transformer("float32", [CPU]), 40)
    side = Target(decoder, (0,))
    assert len(recordings) == 2
    read = traffic.moment().read
    side.start(PROMPT, Sampling())
    side.judge(TokenTree.chain([side.pending, 3]))
    assert len(recordings) == 2 and traffic.moment().read - read == 2 * decoder.model.weight_bytes


@pytest.mark.skipif(DEVICE != CPU, reason="on a GPU there are graphs")
def test_where_passes_cannot_be_recorded_they_run_as_they_are(target: Path, here: pytest.MonkeyPatch) -> None:
    def refuse(run: Any, device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    usable(here)
    decoder = Decoder(find_checkpoint(str(target)).transformer("float32", [CPU]), 40)
    decoder.prefill(PROMPT)
    expected = decoder.score(TREE).logits_NV
    here.setattr(graphs, "capture", refuse)
    here.setattr(stack, "records", lambda device: True)
    decoder = Decoder(decoder.model, 40)
    decoder.prefill(PROMPT)
    with pytest.warns(UserWarning, match="passes cannot be recorded, .* capturing"):
        assert torch.equal(decoder.score(TREE).logits_NV, expected)
    assert torch.equal(decoder.score(TREE).logits_NV, expected)


class Again:
    """Stands for a graph on a pretended GPU: what it replays is run again."""

    def __init__(self, run: Callable[[], Any], outputs: Any) -> None:
        self.run, self.outputs = run, outputs

    def replay(self) -> None:
        for old, new in zip(tensors_in(self.outputs), tensors_in(self.run()), strict=True):
            old.copy_(new)


@pytest.mark.parametrize("place, recorded", [([0], False), ([0, 1], False), ([0], True)])
@pytest.mark.skipif(DEVICE != CPU, reason="there is a GPU that is not pretended")
def test_a_pass_waits_once_and_copies_twice(here: pytest.MonkeyPatch, place: list[int], recorded: bool) -> None:
    """On one pretended GPU, and with layers on each of two, in nine launches a layer; where it is recorded it copies
    once."""
    here.setattr(cuda, "usable", lambda device: device.type == "cuda")
    here.setattr(stack, "records", lambda device: recorded)
    here.setattr(graphs, "capture", lambda run, device: (Again(run, outputs := run()), outputs))

    names = list[str]()

    def launched(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        names.append(kernel.fn.__name__)
        assert len({place_of(part) for part in tensors_in(arguments)}) == 1
        with torch._C.DisableTorchFunction():
            launch.launch(kernel, grid, *mapped(plain, arguments), **constants)

    for module in (attention, linear, stack):
        here.setattr(module, "launch", launched)
    gpus = PretendedGpus(2)
    devices = [torch.device("cuda", number) for number in place]
    with pretended(gpus):
        config = config_of("llama") if len(place) == 1 else replace(config_of("llama"), layers=2)
        torch.manual_seed(0)
        weights = {name: 0.3 * torch.randn(shape) for name, shape in expected_shapes(config).items()}
        model = Transformer(config, weights, torch.float32, devices)
        side = Target(Decoder(model, 40))
        side.start(PROMPT, Sampling())
        before, names[:] = gpus.log.copy(), []
        side.judge(TokenTree([side.pending, 6, 7, 8], TREE.parents))
        assert len(names) == len(place) * (1 + 9) + 2, "a view on each GPU; behind the layers a norm and the head"
        assert model.stack.operators == "triton"
        assert gpus.log["read"] - before["read"] == 1
        assert gpus.log["send"] - before["send"] == (1 if recorded else 2)
