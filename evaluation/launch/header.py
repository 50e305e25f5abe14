"""The run headers of a launch: every condition that a reader or a later run must know."""

from dataclasses import replace
from typing import Any

from evaluation.answers.files import answers_of, told
from evaluation.answers.header import Draft, RunHeader, as_it_reads, read_header, what_it_is
from evaluation.launch.config import RunConfig
from evaluation.launch.provenance import environment, huge_page_bytes, read_bandwidth
from evaluation.launch.worker import WARM_UP, Session
from methods import MethodSpec
from methods.errors import UserError
from methods.models import Models


def run_headers(session: Session) -> dict[str, RunHeader]:
    """Of each method. What they have in common is found out once."""
    share, model = session.share, session.models.target.model
    if share.devices[0].type == "cuda":
        _ = session.methods  # where they lie is known when they are loaded
    bandwidth = read_bandwidth(share.threads, share.devices[0])
    # What reading the weights once costs now: no pass can be faster. The parts of a split target are read at once.
    floor = model.weight_bytes / bandwidth
    found = environment() | {"read_bandwidth": bandwidth, "floor_seconds_per_token": floor}
    found["huge_pages"] = huge_page_bytes() if share.devices[0].type == "cpu" else None
    return {spec.name: _header(session, spec, found) for spec in session.config.specs}


def join_run(session: Session, headers: dict[str, RunHeader]) -> dict[str, RunHeader]:
    """The headers of this launch with the id of its run, which is that of the first launch. Raises UserError where that
    was made under other conditions, naming them."""
    if session.config.launch == 1:
        return {name: replace(header, run=session.launch) for name, header in headers.items()}
    return {name: _joined(session.config, name, header) for name, header in headers.items()}


def _joined(config: RunConfig, name: str, header: RunHeader) -> RunHeader:
    first = read_header(answers_of(config.folder_of(1), name))
    if first is None:
        raise UserError(f"launch {config.launch} of {name} has no first one in {config.folder_of(1)}; begin with that")
    if differences := first.differences(as_it_reads(header)):
        named = ", ".join(told(f"{key}={was}, now {now}") for key, (was, now) in differences.items())
        raise UserError(f"the first launch of {name} was made with {named}; go on as then, or choose another --output")
    return replace(header, run=first.run or first.launch)


def _header(session: Session, spec: MethodSpec, found: dict[str, Any]) -> RunHeader:
    c, share, checkpoint = session.config, session.share, session.models.target_checkpoint
    model, other = session.models.target.model, spec.behind(c.options_of(spec))
    common = found | {"launch": session.launch, "methods": list(c.methods), "command": c.command}
    return RunHeader(
        method=spec.method,
        pair=c.pair.name,
        benchmark=session.benchmark.name,
        dtype=c.dtype,
        sampling=c.sampling,
        max_new_tokens=c.max_new_tokens,
        options=c.options_of(spec),
        **what_it_is(spec, c.options_of(spec)),
        taps=[],
        ranks=spec.ranks,
        tensor_parallel=c.tensor_parallel if c.tensor_parallel > 1 else None,
        lossless=spec.is_lossless(c.options_of(spec)),
        target={
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "weight_bytes": model.bytes_of(checkpoint.config),  # of a split one too all
        },
        draft=_draft(session.models_of(spec)) if spec.weights else None,
        behind=_draft(session.models.of_kind(other.weights)) if other and other.weights else None,
        server=session.server(spec),
        apart=any(spec.name in names for names in c.turns[1:]) or None,
        devices=devices_of(session, spec),
        threads=None if spec.served else share.all_threads if spec.all_devices else share.threads,
        replicas=session.ranks.replicas,
        seed=c.seed,
        context_length=checkpoint.config.max_length,
        eos_token_ids=sorted(session.limits.eos_ids),
        template=c.template,
        prompt=session.prompter.description,
        benchmark_sha256=session.benchmark.sha256,
        questions=len(session.benchmark.questions),
        repeats=c.repeats,
        read_once=c.read_once or None,
        warm_up=len(WARM_UP),
        operators=model.stack.operators,
        row_invariant=session.models.target.row_invariant,
        row_counts=None if model.stack.row_counts is None else list(model.stack.row_counts),
        **common,
    )


def devices_of(session: Session, spec: MethodSpec) -> list[str]:
    """Return what a method runs on: all that its ranks own of the cores, of the GPUs those on which its models lie.

    What the draft's rank loads is not known here: it has its whole share."""
    share = session.share
    if server := session.server(spec):
        return [f"the server at {server['url']}"]
    if share.devices[0].type == "cpu":
        return share.all_names if spec.all_devices or spec.ranks > 1 else share.target_names
    names = dict(zip(share.devices, share.names, strict=True))
    models = session.models_of(spec) if spec.ranks == 1 else session.models
    found = [names[device] for device in models.used_devices]
    found += [name for name in share.target_names if name not in share.names]  # of the ranks that follow
    drafts = share.draft_names if spec.ranks > 1 else []
    return [f"{name} for both ranks" if name in drafts else name for name in found] + [
        name for name in drafts if name not in found
    ]


def _draft(models: Models) -> Draft:
    draft: Draft = {"source": models.draft_source or "", "revision": models.draft_checkpoint.revision}
    if models.draft_head is not None and models.frequent is not None:
        draft["tokens"] = models.frequent
    return draft
