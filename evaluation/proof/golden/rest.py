"""REST's goldens: retrievals, and whole generations.

Theirs are not deterministic, so a golden says which nodes were in all of twelve retrievals (`always`) and in some
(`sometimes`). Its way of cutting a tree to size is a fault that ours does not have: it is applied here to our trie, so
that what occurs, how often, and the order by frequency are compared; and wherever theirs drafted, our whole tree keeps
as many tokens or more. The corpus is one document here, as theirs does not separate them.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.proof.golden.agreement import Agreement, same
from evaluation.proof.golden.folder import Golden
from evaluation.proof.golden.replay import Items, greedy
from methods.drafters.datastore import Datastore, Trie, write
from methods.drafters.rest import LENGTH, RestDrafter
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.target import Outcome, Target

SHORTEST, MATCHES = 2, 5000
Paths = set[tuple[int, ...]]


def check(golden: Golden) -> Iterator[Agreement]:
    """Retrievals, those of every pass of a generation, and tokens."""
    vocabulary = golden.models.vocabulary
    with tempfile.TemporaryDirectory() as folder:
        documents: list[Any] = golden.lines("corpus.jsonl")
        write(Path(folder), [[token for document in documents for token in document]], vocabulary)
        store = Datastore(Path(folder), vocabulary)
        yield same("retrievals", _retrievals(store, golden.lines("search_cases.jsonl")))
        yield greedy(golden)
        for wanted in (64, 16):
            traces = [trace for trace in golden.lines("traces.jsonl") if trace["max_num_draft"] == wanted]
            found: tuple[Items, Items] = [], []
            for number, trace in enumerate(traces, 1):
                _replay(store, trace, f"trace {number}", found)
            yield same(f"trees, {wanted} nodes", found[0])
            yield same(f"accept lengths, {wanted} nodes", found[1])
            outputs = [(f"prompt {t['prompt_index']}", _generated(golden, store, t), t["output"]) for t in traces]
            yield same(f"tokens, {wanted} nodes", outputs)


def _retrievals(store: Datastore, cases: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, object, object]]:
    for number, case in enumerate(cases, 1):
        rows = store.occurrences(case["query"])
        yield f"line {number}, occurrences", len(rows), case["occurrences"]
        if rows:
            paths = published(store.trie(rows, len(case["query"]), LENGTH, MATCHES), case["choices"])
            yield f"line {number}, nodes", *_within(paths, case)


def _within(paths: Paths, lookup: Mapping[str, Any]) -> tuple[object, object]:
    """What is missing of the nodes that are always there, and what is none of theirs; both should be nothing."""
    always, sometimes = ({tuple(path) for path in lookup[name]} for name in ("always", "sometimes"))
    return (sorted(always - paths), sorted(paths - always - sometimes)), ([], [])


def published(trie: Trie, choices: int) -> Paths:
    """Of the most frequent nodes their code takes the longest paths away until the numbers of different tokens in all
    that are left come to `choices`; their prefixes stay."""
    paths: list[tuple[int, ...]] = []
    for parent, token in zip(trie.parents_K.tolist(), trie.tokens_K.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    counts = trie.counts_K.tolist()
    best = sorted(range(len(paths)), key=lambda node: -counts[node])[:choices]
    left = sorted((paths[node] for node in best), key=lambda path: len(set(path)))
    while left and sum(len(set(path)) for path in left) > choices:
        left.pop()
    return {path[:end] for path in left for end in range(1, len(path) + 1)}


def _replay(store: Datastore, trace: dict[str, Any], line: str, found: tuple[Items, Items]) -> None:
    """At each place where they drafted, their tree and ours, and how much of either the target keeps."""
    trees, lengths = found
    drafter = RestDrafter(store, trace["max_num_draft"], SHORTEST, MATCHES)
    drafter.begin(trace["prompt"], Sampling(), None)
    output, decided, known = trace["output"], 0, 0
    for step, accepted in enumerate(trace["accept_length"]):
        drafter.settle(Outcome(output[known : decided + 1], [0]))
        known = decided + 1
        if step < len(trace["steps"]):
            lookup = trace["steps"][step]["lookup"] or {"span": 0, "always": [], "sometimes": []}
            span, rows = store.longest(drafter.recent, SHORTEST)
            paths = published(store.trie(rows, span, LENGTH, MATCHES), trace["max_num_draft"]) if rows else Paths()
            got, expected = _within(paths, lookup)
            trees.append((f"{line}, pass {step}", (span, got), (lookup["span"], expected)))
        kept = _kept(drafter.propose(trace["max_num_draft"]), output[known:])
        # Behind the output's end nothing is known of theirs.
        most = min(accepted, len(output) - known)
        lengths.append((f"{line}, pass {step}", min(kept, most), most))
        decided += accepted + 1


def _kept(tree: TokenTree, following: Sequence[int]) -> int:
    node = kept = 0
    for token in following:
        below = [child for child in tree.children[node] if tree.tokens[child] == token]
        if not below:
            break
        node, kept = below[0], kept + 1
    return kept


def _generated(golden: Golden, store: Datastore, trace: dict[str, Any]) -> list[int]:
    """Our own generation."""
    target, drafter = Target(golden.models.target), RestDrafter(store, trace["max_num_draft"], SHORTEST, MATCHES)
    first, _ = target.start(trace["prompt"], Sampling())
    drafter.begin(trace["prompt"], Sampling(), None)
    drafter.settle(first)
    tokens = list(first.tokens)
    while len(tokens) < len(trace["output"]):
        outcome = target.judge(drafter.propose(target.room - 1))
        drafter.settle(outcome)
        tokens += outcome.tokens
    return tokens[: len(trace["output"])]
