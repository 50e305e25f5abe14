"""Which GPU holds what: tables of well-known models and cards, and what any plan must keep to."""

from dataclasses import replace

import pytest

from methods.engine.config import ModelConfig, Rope
from methods.engine.placement import RESERVE, Need, place, spread

GB = 10**9
H100, A5000 = 84 * GB, 25 * GB  # bytes that are free on a card of 80 GiB, of 24 GiB
LLAMA = ModelConfig("llama", 128256, 4096, 32, 32, 8, 128, 14336, 1e-5, 8192, Rope(5e5), False, False, False)
LLAMA_8B = LLAMA
LLAMA_70B = replace(LLAMA, width=8192, layers=80, heads=64, mlp_width=28672)
VICUNA_33B = replace(LLAMA, vocab_size=32000, width=6656, layers=60, heads=52, kv_heads=52, mlp_width=17920)


def need(config: ModelConfig, rows: int = 4096, size: int = 2) -> Need:
    return Need.of(config, size, rows)


def counts(places: list[int] | None) -> dict[int, int]:
    """Layers of each GPU."""
    assert places is not None
    assert places == sorted(places), "a pass goes through the GPUs once"
    return {gpu: places.count(gpu) for gpu in dict.fromkeys(places)}


def test_bytes_are_those_of_the_models() -> None:
    assert need(LLAMA_8B, rows=0).total / 2 == pytest.approx(8.03e9, rel=1e-3)
    assert need(LLAMA_70B, rows=0).total / 2 == pytest.approx(70.55e9, rel=1e-3)
    cached = need(LLAMA_8B, rows=1000).total - need(LLAMA_8B, rows=0).total
    assert cached == 2 * 32 * 8 * 128 * 1000 * 2
    tied = need(replace(LLAMA_8B, tied=True), rows=0)
    assert need(LLAMA_8B, rows=0).total - tied.total == tied.first == tied.apart == 2 * 128256 * 4096


@pytest.mark.parametrize(
    "config, free, expected",
    [
        (LLAMA_8B, [H100], {0: 32}),
        (LLAMA_8B, [H100] * 4, {0: 32}),
        (LLAMA_8B, [A5000], {0: 32}),
        (LLAMA_70B, [H100] * 2, {0: 40, 1: 40}),
        (LLAMA_70B, [H100] * 3, {0: 40, 1: 40}),
        (LLAMA_70B, [H100] * 4, {0: 40, 1: 40}),
        (LLAMA_70B, [A5000] * 8, dict.fromkeys(range(7), 11)),
        (LLAMA_70B, [10 * GB, H100, H100], {1: 40, 2: 40}),
        (VICUNA_33B, [A5000] * 4, {0: 15, 1: 15, 2: 15, 3: 15}),
        (VICUNA_33B, [H100, 30 * GB], {0: 60}),
    ],
    ids=str,
)
def test_a_model_takes_the_fewest_gpus_and_shares_them_evenly(
    config: ModelConfig, free: list[int], expected: dict[int, int]
) -> None:
    found = counts(place(need(config), dict(enumerate(free))))
    assert found.keys() == expected.keys()
    assert all(abs(found[gpu] - expected[gpu]) <= 1 for gpu in expected)


@pytest.mark.parametrize(
    "config, free", [(LLAMA_8B, [16 * GB]), (LLAMA_70B, [H100]), (LLAMA_70B, [A5000] * 5), (VICUNA_33B, [A5000] * 2)]
)
def test_what_does_not_fit_is_not_placed(config: ModelConfig, free: list[int]) -> None:
    assert place(need(config), dict(enumerate(free))) is None


def test_a_draft_finds_the_room_that_a_target_leaves() -> None:
    """70B on four GPUs leaves two alone; on two of them it leaves room for 8B on neither, but on both together."""
    for cards, expected in ((4, {2: 32}), (3, {2: 32}), (2, None)):
        free = dict.fromkeys(range(cards), H100)
        target = place(need(LLAMA_70B), free)
        assert target is not None
        wanted = need(LLAMA_70B)
        for gpu in free:
            free[gpu] -= (
                target.count(gpu) * wanted.layer + wanted.first * (target[0] == gpu) + wanted.last * (target[-1] == gpu)
            )
        draft = counts(place(need(LLAMA_8B), free))
        assert draft == expected if expected else sorted(draft) == [0, 1]


def test_a_longer_cache_needs_more_gpus() -> None:
    short, long = (place(need(LLAMA_8B, rows), {0: A5000, 1: A5000}) for rows in (4096, 1 << 17))
    assert len(counts(short)) == 1 and len(counts(long)) == 2


@pytest.mark.parametrize("seed", range(200))
def test_no_gpu_is_filled_beyond_its_room_and_none_is_filled_more_than_need_be(seed: int) -> None:
    from itertools import combinations
    from random import Random

    random = Random(seed)
    wanted = Need(
        random.randint(1, 7), random.randint(1, 20), random.randint(0, 30), random.randint(0, 30), random.randint(0, 9)
    )
    rooms = [random.randint(5, 120) for _ in range(random.randint(1, 4))]

    def fullest(layers: list[int]) -> float:
        beside = [0] * len(layers)
        beside[0] += wanted.first
        beside[-1] += wanted.last + wanted.apart * (len(layers) > 1)
        return max((n * wanted.layer + b) / room for n, b, room in zip(layers, beside, rooms, strict=True))

    cuts = combinations(range(1, wanted.layers), len(rooms) - 1)
    ways = [[b - a for a, b in zip((0, *cut), (*cut, wanted.layers), strict=True)] for cut in cuts]
    best = min(map(fullest, ways), default=2.0)
    found = spread(wanted, rooms)
    assert (found is None) == (best > 1)
    if found is not None:
        assert sum(found) == wanted.layers and min(found) > 0
        assert fullest(found) == pytest.approx(best)


def test_room_is_left_on_each_gpu() -> None:
    wanted = need(LLAMA_8B)
    assert place(wanted, {0: wanted.total + RESERVE}) is not None
    assert place(wanted, {0: wanted.total + RESERVE - 1}) is None
