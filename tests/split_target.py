"""What the ranks of a target that is split do in tests, and one of a target that is not: a module of its own, for each
process that is started has to import it."""

import os
import signal
from typing import Any
from unittest import mock

import torch

from evaluation.launch.ranks import join_ranks, open_team
from methods import BASELINE, get_method
from methods.base import Limits, generate
from methods.build import build_chain_drafter, build_method
from methods.engine import loader
from methods.engine.backends import joined
from methods.engine.sampling import Sampling
from methods.engine.team import Rest
from methods.engine.tensor_parallel import Follower
from methods.engine.transformer import FINAL
from methods.engine.tree import TokenTree
from methods.models import Models
from methods.pearl.draft import local_draft_rank
from methods.pearl.target import Pearl

CPU = [torch.device("cpu")]
RANKS = 2
CONTEXT = 160
METHODS = (BASELINE, "sps", "sps@draft=first-2", "pld", "recycling", "eagle3", "pearl", "pearl-eagle3")
PROMPTS = [[(i * i + 7 * i * k + k) % 90 + 1 for i in range(3 + 4 * k)] for k in range(20)]
TOKENS = 5
ROWS = [(11 * i) % 90 + 1 for i in range(12)]


def together(models: Models) -> dict[str, Any]:
    """Scores of the same tokens one by one, in chains of every length, and in a tree with siblings between them."""
    target, taps = models.target, (0, FINAL)
    target.prefill(PROMPTS[9])
    rows = []
    for token in ROWS:
        rows.append(target.score(TokenTree.chain([token]), taps))
        target.commit([0])
    target.truncate(len(PROMPTS[9]))
    chains = {n: target.score(TokenTree.chain(ROWS[:n]), taps).logits_NV for n in range(1, len(ROWS) + 1)}
    target.prefill(PROMPTS[9])
    nodes = [ROWS[0]] + [t for token in ROWS[1:] for t in (token + 1, token)]
    parents = [-1] + [max(0, 2 * i) for i in range(len(ROWS) - 1) for _ in range(2)]
    tree = target.score(TokenTree(nodes, parents), taps)
    target.score(TokenTree(nodes[:9], parents[:9]))
    grown = target.score(TokenTree(nodes, parents), known=9).logits_NV
    kept = list(range(0, len(nodes), 2))
    target.commit(kept)
    assert tree.features_NF is not None
    return {
        "invariant": target.row_invariant,
        "bytes": target.model.weight_bytes,
        "alone": torch.cat([row.logits_NV for row in rows]),
        "features": torch.cat([row.features_NF for row in rows if row.features_NF is not None]),
        "chains": chains,
        "tree": tree.logits_NV[kept],
        "grown": grown[1::2],  # the kept ones from the fifth on
        "tree features": tree.features_NF[kept],
        "behind the tree": target.score(TokenTree.chain([7])).logits_NV,
        "long prompt": target.prefill((PROMPTS[9] * 3)[:100]).logits_NV,
    }


def answers(models: Models, name: str) -> list[list[int]]:
    """What a method answers; where it has a draft's rank, that is a thread here."""
    spec, options = get_method(name), {"gamma": 3, "nodes": 6}
    own = models.with_draft(spec.draft or models.drafts.get(spec.weights))

    def all_answers(method: Any) -> list[list[int]]:
        limits = Limits(frozenset(), TOKENS)
        return [generate(method, prompt, Sampling(), limits).token_ids for prompt in PROMPTS]

    if spec.ranks == 1:
        return all_answers(build_method(spec, own, options))
    drafting = Models(models.target_source, own.draft_source, models.dtype, CPU, models.max_length, drafts_only=True)
    with local_draft_rank({name: build_chain_drafter(spec, drafting, options)}) as (own.link, ready):
        method = build_method(spec, own, options)
        assert isinstance(method, Pearl)
        method.meet(ready[name])
        return all_answers(method)


def compute(target: str, drafts: dict[str, str], out: str) -> int:
    """A rank of two that share a target; the first one writes what comes of it, by dtype."""
    torch.set_num_threads(1)
    joined.GATHERED = 16  # so that a prompt is added up in parts
    ranks = join_ranks(RANKS, RANKS)
    team = open_team(ranks, "cpu")
    assert team is not None
    found: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        models = Models(target, None, dtype, CPU, CONTEXT, team=team, drafts=drafts)
        team.collective = dtype == "bfloat16"  # as NCCL gathers
        if ranks.follows:
            models.follower.follow()
            continue
        names = METHODS if dtype == "float32" else (BASELINE, "eagle3")
        found[dtype] = together(models) | {"answers": {name: answers(models, name) for name in names}}
        team.tell(Rest())
    team.close()
    if ranks.leads:
        torch.save(found, out)
    return 0


class Killed(Follower):
    """A follower that ends in the middle of a pass."""

    def _run(self, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Unlucky(Follower):
    """A follower that fails in the middle of an answer."""

    passes = 0

    def _run(self, *arguments: Any) -> None:
        self.passes += 1
        if self.passes == 50:
            raise RuntimeError("out of luck")
        super()._run(*arguments)


def end_in_a_pass(target: str) -> int:
    """A rank of two that share a target, of which the second is killed."""
    ranks = join_ranks(RANKS, RANKS)
    models = Models(target, None, "float32", CPU, CONTEXT, team=open_team(ranks, "cpu"))
    with mock.patch.object(loader, "Follower", Killed):
        if ranks.follows:
            models.follower.follow()
        return len(answers(models, BASELINE))
