"""Every method of the table on GPUs, which are pretended: on one and split over two, greedy and sampled, both ranks of
PEARL. Then what a pass costs, that it has the bits of any other, and what is said of GPUs that cannot do it."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from methods import BASELINE, METHODS, MethodSpec, get_method
from methods.base import Generation, Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.drafters.draft_model import draft_model
from methods.engine.backends.pytorch import CUDA_ROWS, TorchStack, equal_row_counts
from methods.engine.codec import decode, encode
from methods.engine.decoder import Decoder
from methods.engine.link import Close, LocalLink
from methods.engine.loader import find_checkpoint
from methods.engine.placement import RESERVE, Need
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.engine.weights import tell
from methods.errors import UserError
from methods.models import Models
from methods.pearl.draft import serve, warm_up
from methods.pearl.messages import Row, Window
from methods.pearl.target import Pearl
from methods.peers.hf import device_map
from tests.pretended_gpus import PLENTY, GpuTensor, PretendedGpus, orders_of_hostile_sums, pretended
from tests.tiny import save_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Rows over two drafters as one add nothing that a device computes: one of each loop stands for all, others answer once.
TWO = "sam-eagle3", "pearl-sam-eagle3"
RUN = [name for name, spec in METHODS.items() if spec.loop != "peer"]
OURS = [name for name in RUN if name in TWO or getattr(METHODS[name].drafter, "parts", None) is None]
PEARLS = [name for name in RUN if METHODS[name].loop == "pearl"]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LIMITS = Limits(frozenset(), 7)
LONGEST = 160  # tokens of a sequence
GREEDY, SAMPLED = Sampling(), Sampling(0.8, seed=5)
GPU = [torch.device("cuda", i) for i in range(4)]
PLACES = {"one": GPU[:1], "split": GPU[1:3]}  # of the target; the draft's rank has the last


class Wire(LocalLink):
    """A link within this process over which messages travel as they do between processes: by way of the CPU."""

    def send(self, message: Any) -> None:
        numbers, tensors = encode(message)
        assert not any(isinstance(tensor, GpuTensor) for tensor in tensors)
        following = iter(tensors)
        super().send(decode(type(message), numbers, lambda _: next(following)))


@dataclass
class Rig:
    """Targets on pretended GPUs, by their place, and the draft's rank, which is a thread, on another one."""

    gpus: PretendedGpus
    targets: dict[str, Models]
    drafts: dict[str, str]
    ready: dict[str, Any]

    def answer(self, name: str, sampling: Sampling = GREEDY, place: str = "one", **options: Any) -> Generation:
        spec = get_method(name)
        models = with_weights(self.targets[place], spec, self.drafts)
        method = build_method(spec, models, {"gamma": 3, "nodes": 9} | options)
        if isinstance(method, Pearl):
            method.meet(self.ready[spec.name])
        return generate(method, PROMPT, sampling, LIMITS)


def small(target: Path, devices: list[torch.device], longest: int = 40) -> Models:
    """With a context in which a probe does not take long."""
    return Models(str(target), None, "float32", devices, longest)


def with_weights(models: Models, spec: MethodSpec, drafts: dict[str, str]) -> Models:
    return models.with_draft(drafts[spec.weights]) if spec.weights else models


def draft_rank(gpus: PretendedGpus, models: Models, drafts: dict[str, str], failed: list[BaseException]) -> None:
    """In a thread of its own."""
    link = models.link
    assert isinstance(link, Wire)
    link.turn.acquire()
    torch.set_num_threads(1)
    try:
        with gpus, torch.no_grad():
            specs = [METHODS[name] for name in PEARLS]
            built = {s.name: build_chain_drafter(s, with_weights(models, s, drafts), {}) for s in specs}
            for spec in specs:
                gpus.rows.clear()
                warm_up(built[spec.name], with_weights(models, spec, drafts))
                assert gpus.rows or spec.weights in ("", "toy"), "its device has worked by now"
            serve(link, built)
    except BaseException as error:
        failed.append(error)
        link.end(Close())


@pytest.fixture(scope="module")
def rig(tiny: Path, weights: dict[str, Path]) -> Iterator[Rig]:
    """No GPU of the split target could hold it alone."""
    gpus, failed = PretendedGpus(len(GPU)), list[BaseException]()
    here, there = Wire.pair("target", "draft")
    drafts = {kind: str(path) for kind, path in weights.items()}
    theirs = Models(str(tiny), None, "float32", GPU[3:], LONGEST, link=there, drafts_only=True)
    rank = threading.Thread(target=draft_rank, args=(gpus, theirs, drafts, failed), daemon=True)
    targets = {place: Models(str(tiny), None, "float32", gpu, LONGEST, link=here) for place, gpu in PLACES.items()}
    need = Need.of(targets["split"].target_checkpoint.config, 4, LONGEST)
    with pretended(gpus):
        gpus.memory |= dict.fromkeys((1, 2), RESERVE + need.total - need.layer)
        assert {str(device) for device in targets["split"].target.model.devices} == {"cuda:1", "cuda:2"}
        gpus.memory |= dict.fromkeys((1, 2), PLENTY)
        rank.start()
        ready = {name: here.receive("its drafter") for name in PEARLS if not failed}
        assert not failed, failed
        yield Rig(gpus, targets, drafts, ready)
        here.close()
    rank.join(60)
    assert not failed, failed


@pytest.fixture(scope="module")
def expected(rig: Rig) -> list[int]:
    return rig.answer(BASELINE).token_ids


@pytest.mark.parametrize("name", OURS)
def test_every_method_runs_on_one_gpu_and_split_over_two(rig: Rig, expected: list[int], name: str) -> None:
    assert all(rig.answer(name, GREEDY, place).token_ids == expected for place in PLACES)
    one, split = (rig.answer(name, SAMPLED, place).token_ids for place in PLACES)
    assert one == split != expected
    assert len(one) == LIMITS.max_new_tokens


@pytest.mark.parametrize("name", [name for name in RUN if name not in OURS])
def test_rows_over_two_drafters_as_one_run_where_a_target_is_split(rig: Rig, expected: list[int], name: str) -> None:
    assert rig.answer(name, GREEDY, "split").token_ids == expected


@pytest.mark.parametrize("draft", ["first-1", "first-2", "int8", "int4-50"])
def test_drafts_made_of_a_target_lie_where_it_does(rig: Rig, expected: list[int], draft: str) -> None:
    models = rig.targets["split"].with_draft(draft)
    method = build_method(get_method("sps"), models, {"gamma": 3})
    got = generate(method, PROMPT, GREEDY, LIMITS)
    assert got.token_ids == expected and any(got.drafted)


@pytest.mark.parametrize("dtype, close", [("float32", 1e-4), ("bfloat16", 0.2)])
def test_a_draft_does_not_pay_for_bits_that_it_need_not_have(tiny: Path, dtype: str, close: float) -> None:
    """No row is padded and nothing is in fp64, but what it says is what the exact passes say."""
    generator = torch.Generator().manual_seed(0)
    parents = [-1] + [int(torch.randint(max(0, i - 4), i, (), generator=generator)) for i in range(1, 70)]
    tree = TokenTree(torch.randint(1, 95, (70,), generator=generator).tolist(), parents)
    gpus = PretendedGpus(1)
    with pretended(gpus):
        models = Models(str(tiny), None, dtype, GPU[:1], LONGEST)
        logits = []
        for exact in (True, False):
            decoder = Decoder(models.target.model, LONGEST, exact=exact)
            decoder.prefill(PROMPT)
            gpus.rows.clear()
            logits.append([decoder.extend([7]).logits_NV, decoder.score(tree).logits_NV])
        assert set(gpus.rows) == {1, 70}
        for rows, others in zip(*logits, strict=True):
            assert 0 < float((rows - others).abs().max()) < close * float(rows.abs().max())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("nodes", [1, 4])
def test_a_greedy_pass_waits_once_and_copies_twice(rig: Rig, place: str, nodes: int) -> None:
    from methods.target import Target

    target = Target(rig.targets[place].target)
    target.start(PROMPT, GREEDY)
    before = rig.gpus.log.copy()
    target.judge(TokenTree.chain([target.pending, 7, 8, 9][:nodes]))
    assert rig.gpus.log["read"] - before["read"] == 1
    assert 0 < rig.gpus.log["send"] - before["send"] <= 2


def test_a_pass_of_more_rows_than_any_kernel_is_known_for_is_made_in_parts(rig: Rig) -> None:
    decoder = rig.targets["one"].target
    assert decoder.row_invariant and decoder.model.stack.row_counts == (4, 64)
    generator = torch.Generator().manual_seed(0)
    for nodes, back in ((65, 1), (140, 1), (100, 9)):
        parents = [-1] + [int(torch.randint(max(0, i - back), i, (), generator=generator)) for i in range(1, nodes)]
        tree = TokenTree(torch.randint(1, 95, (nodes,), generator=generator).tolist(), parents)
        decoder.prefill(PROMPT)
        rig.gpus.rows.clear()
        scores = decoder.score(tree, (0,))
        assert set(rig.gpus.rows) <= {4, 64}
        path = tree.path(nodes - 1)
        alone = []
        for node in path:
            alone.append(decoder.score(TokenTree.chain([int(tree.tokens_N[node])]), (0,)))
            decoder.commit([0])
        assert scores.features_NF is not None and len(scores.logits_NV) == nodes
        assert torch.equal(scores.logits_NV[path], torch.cat([one.logits_NV for one in alone]))
        assert torch.equal(scores.features_NF[path], torch.cat([one.features_NF for one in alone]))  # type: ignore[misc]
        decoder.truncate(len(PROMPT))
        known = decoder.score(tree.first(3))
        rest = decoder.score(tree, known=3)
        assert torch.equal(torch.cat((known.logits_NV, rest.logits_NV)), scores.logits_NV)
        decoder.commit(path)  # what a tree left behind is packed as ever


@pytest.mark.parametrize("parts, found", [(orders_of_hostile_sums, (4, 64)), (lambda rows: 1, CUDA_ROWS)])
def test_rows_are_measured_weight_by_weight(tiny: Path, parts: Any, found: tuple[int, ...]) -> None:
    with pretended(PretendedGpus(1, parts)):
        decoder = small(tiny, GPU[:1]).target
        assert (decoder.model.stack.row_counts, decoder.row_invariant) == (found, True)
        layers = decoder.model.layers
        linears = [layers[0].qkv, layers[1].down]
        assert equal_row_counts(linears, CUDA_ROWS) == found  # type: ignore[arg-type]


def test_the_probe_judges_the_rows_that_were_found(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more depends on their number, the surest is kept; where that is not enough, it says so."""

    def believe(self: TorchStack, *others: object) -> None:
        self.row_counts = (8, 64)

    monkeypatch.setattr(TorchStack, "measure_rows", believe)
    with pretended(PretendedGpus(1)):
        decoder = small(tiny, GPU[:1]).target
        assert (decoder.model.stack.row_counts, decoder.row_invariant) == ((64,), True)
    monkeypatch.setattr(TorchStack, "fewer_rows", lambda self: False)
    with pretended(PretendedGpus(1)):
        assert small(tiny, GPU[:1]).target.row_invariant is False


def test_the_probe_sees_a_cache_that_grows_into_another_block(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product whose sums depend on how many rows of the cache are read."""
    from methods.engine.backends import pytorch

    attention = pytorch.cached_attention

    def by_width(q_NHd: Any, keys_KRd: Any, values_KRd: Any, mask_ML: torch.Tensor) -> torch.Tensor:
        return attention(q_NHd, keys_KRd, values_KRd, mask_ML) * (1 + 1e-6 * mask_ML.shape[1])

    monkeypatch.setattr(pytorch, "cached_attention", by_width)
    with pretended(PretendedGpus(1)):
        assert small(tiny, GPU[:1], 80).target.row_invariant is False


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_are_not_rounded_to_the_weights_dtype(tiny: Path, dtype: str) -> None:
    with pretended(PretendedGpus(1)):
        models = Models(str(tiny), "first-2", dtype, GPU[:1], 40)
        logits_1V = models.target.prefill(PROMPT).logits_NV
        assert not torch.equal(logits_1V, logits_1V.to(models.target.model.dtype).float())
        answers = [
            generate(build_method(get_method(name), models, {}), PROMPT, GREEDY, LIMITS) for name in (BASELINE, "sps")
        ]
    assert answers[0].token_ids == answers[1].token_ids


def test_a_target_that_does_not_fit_is_refused_with_the_numbers(tiny: Path) -> None:
    gpus = PretendedGpus(2)
    with pretended(gpus):
        gpus.memory = {0: RESERVE + 1000, 1: 3 * RESERVE}
        with pytest.raises(UserError, match=r"needs 0\.0 GB .* free is 2\.1 GB on cuda:0: give"):
            _ = small(tiny, GPU[:1]).target
        assert small(tiny, GPU[:2]).target.model.devices == [GPU[1]] * 3


def test_a_draft_goes_where_most_room_is_left(tiny: Path, weights: dict[str, Path]) -> None:
    gpus = PretendedGpus(3)
    with pretended(gpus):
        gpus.memory = {0: 3 * RESERVE, 1: 2 * RESERVE, 2: 3 * RESERVE - 1}
        models = small(tiny, GPU[:3])
        assert models.target.model.devices == [GPU[0]] * 3
        for name, kind in (("sps", "model"), ("sd2", "sorted"), ("medusa", "medusa"), ("eagle3", "eagle3")):
            gpus.memory[2] = 3 * RESERVE
            other = models.with_draft(str(weights[kind]))
            generate(build_method(get_method(name), other, {"nodes": 5}), PROMPT, GREEDY, LIMITS)
            assert other.used_devices == [GPU[0], GPU[2]]
        assert models.used_devices == [GPU[0]]


def test_a_pass_ends_when_the_device_is_done_not_when_it_was_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that takes its time: whoever waits for it learns when it is done."""
    took = 0.02
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: time.sleep(took))
    passes = rig.answer("pearl", GREEDY).spans_of[1:]
    for spans in passes:
        scoring, _ = [span for span in spans if span.work == "verify"]
        assert scoring.seconds >= took
        assert all(span.begin >= scoring.end for span in spans if span.work == "wait")


def test_a_rejected_draft_alone_costs_its_row(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = list[Any]()
    send = Wire.send

    def watched(self: Wire, message: Any) -> None:
        sent.append(message)
        send(self, message)

    monkeypatch.setattr(Wire, "send", watched)
    got = rig.answer("pearl", SAMPLED)
    rejected = sum(kept < judged for kept, judged in zip(got.accepted, got.drafted, strict=True))
    rows = [message for message in sent if isinstance(message, Row)]
    assert len(rows) == rejected > 0
    windows = [message for message in sent if isinstance(message, Window)]
    assert all(len(window.q_G or []) == len(window.tokens_G) for window in windows)
    assert {message.number for message in rows} <= {w.first + i for w in windows for i in range(len(w.tokens_G))}


def test_a_draft_in_few_bits_says_that_it_saves_nothing_here(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell.cache_clear()
    with pretended(PretendedGpus(1)):
        models = small(tiny, GPU[:1]).with_draft("int8")
        model = draft_model(models)
        assert model.weight_bytes == models.target.model.weight_bytes
    assert capsys.readouterr().err.count("saves neither memory nor time") == 1


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_own_model_lies_where_room_is_left(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = save_model(tmp_path, layers=3, tie_word_embeddings=tied)
    config, gpus = find_checkpoint(str(folder)).config, PretendedGpus(2)
    need = Need.of(config, 4, 40)
    with pretended(gpus):
        models = small(folder, GPU[:2])
        _ = models.target
        gpus.memory = dict.fromkeys(range(2), RESERVE + need.total - need.layer)
        found = device_map("it", config, models)
        gpus.memory = {0: RESERVE, 1: PLENTY}
        assert device_map("it", config, models) == {"": "cuda:1"}
        gpus.memory = {0: RESERVE, 1: RESERVE}
        with pytest.raises(UserError, match="a second copy of it, which rows named hf- need, needs"):
            device_map("it", config, models)
    assert set(found.values()) == {"cuda:0", "cuda:1"}
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        assert sum(name.startswith(f"{part}.") for part in found) == 1, name
    assert found["lm_head"] == found["model.embed_tokens" if tied else "model.norm"]


def test_the_pretence_refuses_and_counts() -> None:
    gpus = PretendedGpus(2)
    with pretended(gpus):
        x = torch.arange(6.0).view(2, 3).to(GPU[0])
        assert x.device == GPU[0] and (x + 1).is_cuda and x.T.device == GPU[0]
        with pytest.raises(AssertionError, match=r"add: tensors on cpu, cuda:0"):
            _ = torch.add(x, torch.ones(2, 3))
        with pytest.raises(AssertionError, match=r"cuda:0, cuda:1"):
            _ = x @ x.to(GPU[1]).T
        with pytest.raises(AssertionError, match="there is no device cuda:2"):
            _ = x.to("cuda:2")
        with pytest.raises(AssertionError, match=r"numpy\(\)"):
            _ = x.numpy()
        gpus.log.clear()
        assert x[torch.tensor([1])].tolist() == [[3, 4, 5]]
        assert float(x.to(GPU[1]).cpu().sum()) == 15
        assert gpus.log == {"read": 2, "send": 1, "peer": 1}
        many, weight = torch.randn(64, 33).to(GPU[0]), torch.randn(8, 33).to(GPU[0])
        rows = {m: torch.nn.functional.linear(many[:m], weight) for m in (4, 8, 64)}
        assert torch.equal(rows[4], rows[64][:4]) and not torch.equal(rows[8], rows[64][:8])
