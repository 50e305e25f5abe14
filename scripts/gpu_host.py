"""What first_gpu_day.py measures of the host beside a GPU: what it makes before a pass, and what PEARL's ranks send
each other where a draft is rejected."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gpu_engine import Came, Sizes, decoder_of, seconds

from methods.engine.sampling import Sampling, draw
from methods.engine.socket_link import SocketLink
from methods.engine.tree import TokenTree
from methods.pearl.messages import Row


def host(sizes: Sizes, device: torch.device, most_before: float, most_row: float) -> Came:
    """Milliseconds of a tree of as many nodes as a pass has rows and of what these see, by the tokens before it; and of
    the probabilities of a whole vocabulary on their way from the draft's GPU. Expected: no more than these."""
    nodes = max(sizes.rows)
    parents = [-1, *(i // 2 for i in range(nodes - 1))]
    made = {
        f"tree of {nodes}": lambda: TokenTree([1] * nodes, parents),
        "chain of 1": lambda: TokenTree.chain([1]),
    }
    before: dict[str, dict[int, float]] = {}
    with decoder_of(list(sizes.models.values())[-1], device, sizes.most) as decoder:
        cache, rounds = decoder.model.new_cache(sizes.most), 3 * sizes.rounds
        for name, tree in made.items():
            times = {n: seconds(lambda t=tree, n=n: cache.view(n, t()), device, rounds) for n in sizes.lengths}
            before[name] = {length: 1e3 * value for length, value in times.items()}
    row = row_of(max(shape.vocab_size for shape in sizes.shapes.values()), device, sizes.rounds)
    worst, whole = max(max(times.values()) for times in before.values()), sum(row["ms"].values())
    text = f"a tree and what it sees at most {worst:.2f} ms, a row of probabilities {whole:.2f} ms"
    return Came(text, worst <= most_before and whole <= most_row, {"ms before a pass": before, "a row": row})


def row_of(vocabulary: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Milliseconds of the steps of a row: to the host, over a link, and a token drawn by it."""
    q_V = torch.rand(vocabulary, dtype=torch.float64, device=device)
    on_host_V, generator = q_V.cpu(), Sampling(1.0).generator("verify")
    with linked() as (here, there):

        def send() -> None:
            there.send(Row(0, on_host_V))
            here.receive("a row")

        times = {
            "to the host": seconds(q_V.cpu, device, rounds),
            "over the link": seconds(send, device, rounds),
            "a token": seconds(lambda: draw(on_host_V, generator), device, rounds),
        }
    return {"tokens": vocabulary, "ms": {name: 1e3 * value for name, value in times.items()}}


@contextmanager
def linked() -> Iterator[tuple[SocketLink, SocketLink]]:
    """Both ends of a link, in this process."""
    names, ends = ("the target's end", "the draft's end"), socket.socketpair()
    here, there = SocketLink(ends[0], names, 60, [Row]), SocketLink(ends[1], names[::-1], 60, [Row])
    try:
        yield here, there
    finally:
        closing = threading.Thread(target=there.close)
        closing.start()
        here.close()
        closing.join()
