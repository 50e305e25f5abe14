"""SAM-Decoding's goldens: the automaton, and generations by it alone and before Token Recycling.

Its loops differ from ours in three things, which are followed here: an accept length counts the pending token and not
what is behind an EOS; Token
Recycling learns from the prompt; and behind the text's end ours goes on with what it has copied. There theirs ends if
the automaton is alone, and ours is cut to it; before Token Recycling it copies behind a shorter match instead, of which
Token Recycling learns other rows, so a trace is compared up to there. Traces with a corpus are left out: ours is a
drafter of its own, as the docstring of methods/drafters/sam.py says.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from evaluation.proof.golden.agreement import Agreement, same
from evaluation.proof.golden.folder import Golden
from evaluation.proof.golden.replay import Items, greedy
from methods.drafters.base import ChainDrafter, Drafter
from methods.drafters.either import Either
from methods.drafters.recycling import RecyclingDrafter
from methods.drafters.sam import SamDrafter
from methods.drafters.static_tree import Path, StaticShape
from methods.drafters.suffix_automaton import SuffixAutomaton
from methods.engine.sampling import Sampling
from methods.engine.tree import TokenTree
from methods.options import MOST
from methods.target import Outcome, Target

ALPHA, MOST_PREDICTED = 4.0, 60  # of the automaton alone, the pending token included
LEAST, PREDICTED = 5, 40  # before Token Recycling


def check(golden: Golden) -> Iterator[Agreement]:
    """Matches, drafts, accept lengths and tokens."""
    cases = golden.lines("automaton_cases.jsonl")
    yield same("matches", [item for number, case in enumerate(cases, 1) for item in _matched(case, f"line {number}")])
    yield greedy(golden)
    shape = _shape(golden.table("token_recycle_tree.json")["children"])
    traces = [trace for trace in golden.lines("traces.jsonl") if not trace["config"]["static"]]
    for setting in dict.fromkeys(trace["setting"] for trace in traces):
        drafts, lengths, tokens = list[Any](), list[Any](), list[Any]()
        for number, trace in enumerate(traces, 1):
            if trace["setting"] == setting:
                _replay(golden, _drafter(trace["code"], shape), trace, f"trace {number}", (drafts, lengths, tokens))
        yield same(f"trees, {setting}", drafts)
        yield same(f"accept lengths, {setting}", lengths)
        yield same(f"tokens, {setting}", tokens)


def _matched(case: Mapping[str, Any], line: str) -> Items:
    text = SuffixAutomaton(latest=False)
    text.extend(case["tokens"])
    got = *text.match([case["start_token"]]), text.states
    drafter = _drafter("only", StaticShape([]))
    drafter.begin(case["tokens"], Sampling(), None)
    drafter.settle(Outcome([case["start_token"]], [0]))
    draft = drafter.propose(len(case["draft"]) - 1).tokens
    expected = case["match_length"], case["min_endpos"], case["n_states"]
    return [(f"{line}, match", got, expected), (f"{line}, draft", draft, case["draft"])]


def _drafter(code: str, shape: StaticShape) -> Drafter:
    if code == "only":
        return SamDrafter(1, ALPHA, MOST_PREDICTED - 1, latest=False)
    copier = SamDrafter(LEAST, MOST, PREDICTED - 1, latest=False)
    return Either(copier, RecyclingDrafter(len(shape.paths), shape=shape))


def _shape(children: list[list[int]]) -> StaticShape:
    """A tree whose nodes are numbered level by level, the root being 0."""
    paths: dict[int, Path] = {0: ()}
    for node, below in enumerate(children):
        paths |= {child: (*paths[node], rank) for rank, child in enumerate(below)}
    return StaticShape([path for path in paths.values() if path])


def _replay(golden: Golden, drafter: Drafter, trace: dict[str, Any], line: str, found: tuple[Items, ...]) -> None:
    drafts, lengths, outputs = found
    prompt = _of_the_prompt(golden, trace["prompt"])
    target = Target(golden.models.target)
    first, _ = target.start(trace["prompt"], Sampling())
    drafter.begin(trace["prompt"], Sampling(), None)
    if isinstance(drafter, Either):
        drafter.other.settle(prompt)
    drafter.settle(first)
    tokens, stop = [target.pending], trace["eos_token_id"]
    for step, expected in enumerate(trace["accept_length"]):
        tree = drafter.propose(target.room - 1)
        if step < len(trace["drafts"]):
            theirs = trace["drafts"][step]["tokens"]
            if tree.is_chain:
                tree = TokenTree.chain(tree.tokens[: len(theirs)])
            drafts.append((f"{line}, pass {step}", tree.tokens, theirs))
        if isinstance(drafter, Either) and tree.is_chain and _beyond_the_text(drafter.first, tree.drafted):
            break
        emitted = [target.pending, *(outcome := target.judge(tree)).tokens[:-1]]
        emitted = emitted[: emitted.index(stop) + 1] if stop in emitted else emitted
        drafter.settle(outcome)
        tokens += outcome.tokens
        lengths.append((f"{line}, pass {step}", len(emitted), expected))
    shorter = min(len(tokens), len(trace["output"]))
    outputs.append((line, tokens[:shorter], trace["output"][:shorter]))


def _beyond_the_text(copier: ChainDrafter, drafted: int) -> bool:
    """Whether the draft has tokens behind those of prompt and answer."""
    assert isinstance(copier, SamDrafter)
    return copier.text.match()[1] + drafted > len(copier.text.tokens)


def _of_the_prompt(golden: Golden, prompt_T: list[int]) -> Outcome:
    """What the target says behind each token of a prompt, as if one pass had scored them."""
    decoder = golden.models.target
    first = decoder.prefill(prompt_T[:1]).logits_NV
    others = decoder.score(TokenTree.chain(prompt_T[1:])).logits_NV
    return Outcome(prompt_T[-1:], [0], logits_NV=torch.cat((first, others)), nodes_N=prompt_T)
