"""How much faster a method is than its baseline: `python evaluation/speed.py --file-path F --base-path B`.

Of two results folders: how the speedups of each run in F have changed since B.

Works on our answer files and on those of Spec-Bench's own scripts. `evaluation/run.py` calls `summarize` too. The
numbers are defined in `evaluation/stats.py`, and shown by `evaluation/tables.py`.
"""

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from evaluation.answers.header import Header, any_path, header_differences, read_header, uncompressed
from evaluation.answers.packing import pack
from evaluation.answers.record import Answer, Choice, QuestionId, read_answers
from evaluation.judge.left_out import (
    lacking_notes,
    left_out_notes,
    nothing_to_compare,
    refuse_zeros,
    share_categories,
    turns_too_long,
)
from evaluation.judge.wording import shares_of_machine, valued
from evaluation.show.tables import LEGEND, OVERALL, SPEC_BENCH_LEGEND, Summary, details, print_tables, table, terminal
from methods import VARIANT
from methods.errors import UserError, command_line

if TYPE_CHECKING:
    import pandas as pd

# Runs that differ in one of these did other work, or did it elsewhere: the ratio of their times would mean nothing.
SAME_WORK = {"benchmark", "benchmark_sha256", "target", "dtype", "sampling", "max_new_tokens", "eos_token_ids"}
SAME_WORK |= {"template", "cpu", "gpu"}
SAME_LAUNCH = ("methods", "created")

CONVERSATION = "multi-turn conversation"
MT_BENCH = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})
SPEC_BENCH_ORDER = (CONVERSATION, "translation", "summarization", "qa", "math_reasoning", "rag")

Count = Callable[[str], int]  # the tokens of a text, as Spec-Bench's script counts them


@dataclass(frozen=True)
class Run:
    """One answer file with its header, which is None beside Spec-Bench's files."""

    path: Path
    answers: dict[QuestionId, Answer]
    header: Header | None

    @classmethod
    def read(cls, path: str | Path) -> "Run":
        return cls(uncompressed(path), read_answers(path, pack), read_header(path))

    @property
    def method(self) -> str:
        return self.header["method"] if self.header else next(iter(self.answers.values())).model_id

    @property
    def label(self) -> str:
        """The method, or the variant of it that the file is named after."""
        return self.path.stem if self.path.stem.startswith(self.method + VARIANT) else self.method

    @property
    def questions(self) -> set[QuestionId]:
        """The questions the run was given: answered or failed."""
        failures = self.header.get("failures", []) if self.header else []
        return set(self.answers) | {failure["question_id"] for failure in failures}

    @cached_property
    def finished(self) -> set[QuestionId]:
        """The questions with at least one repeat in which no turn failed and one turn fits the context."""
        return {q for q, answer in self.answers.items() if any(choice.usable for choice in answer.choices)}

    @property
    def too_long(self) -> set[QuestionId]:
        """The questions of which not one turn fits the context."""
        return {q for q, answer in self.answers.items() if all(choice.never_fits for choice in answer.choices)}


@dataclass(frozen=True)
class Comparison:
    """A method's run beside the baseline's, and what a reader must know about the two."""

    method: Run
    baseline: Run
    pairs: "pd.DataFrame"  # as `stats.pair_answers` gives it, with a column "group"
    questions: set[QuestionId]  # that were to be compared, whether or not they could be
    too_long: int  # of these questions: how many do not fit the context
    interleaved: bool
    notes: list[str]

    def lines(self, group: str) -> tuple[list[Answer], list[Answer]]:
        """What both files hold of the questions in a group, failed answers and those without a partner included."""
        runs = [run.answers.items() for run in (self.method, self.baseline)]
        ours, theirs = ([a for q, a in run if q in self.questions and _belongs(a.category, group)] for run in runs)
        return ours, theirs


def summarize(
    method_path: str | Path,
    base_path: str | Path,
    question_ids: Collection[QuestionId] | None = None,
    count: Count | None = None,
) -> Summary:
    """The overall figures of a method against its baseline, on their common questions or on `question_ids` alone.

    Rates are tokens per second, prefill included; a figure the files do not record is None. `count`: of the baseline's
    tokens, for Spec-Bench's own figure. Raises UserError where the two files cannot be compared.
    """
    comparison = pair_files(method_path, base_path, question_ids)
    return _summary(comparison, OVERALL, comparison.pairs, count)


def summarize_by_category(method_path: str | Path, base_path: str | Path, count: Count | None = None) -> list[Summary]:
    """One summary for each category, those of MT-bench taken as one as Spec-Bench does, then the overall one."""
    comparison = pair_files(method_path, base_path)
    groups = dict(list(comparison.pairs.groupby("group")))
    known = [group for group in SPEC_BENCH_ORDER if group in groups]
    order = known + sorted(set(groups) - set(known))
    parts = [(group, groups[group]) for group in order]
    return [_summary(comparison, group, pairs, count) for group, pairs in [*parts, (OVERALL, comparison.pairs)]]


def pair_files(
    method_path: str | Path, base_path: str | Path, question_ids: Collection[QuestionId] | None = None
) -> Comparison:
    """Read and pair two answer files. Raises UserError, one sentence, where a comparison would mean nothing."""
    from evaluation.judge.stats import KEYS, pair_answers

    method, base = share_categories(Run.read(method_path), Run.read(base_path))
    if not method.questions & base.questions:
        example = " and ".join(repr(next(iter(run.answers))) for run in (method, base))
        raise UserError(
            f"{method.path} and {base.path} have no question in common (they begin with {example}); "
            "name two answer files of the same benchmark"
        )
    notes = _compare_headers(method, base)
    wanted = method.questions | base.questions if question_ids is None else set(question_ids)
    common = method.finished & base.finished & wanted
    pairs = pair_answers(*([run.answers[q] for q in run.answers if q in common] for run in (method, base)))
    too_long = turns_too_long(method, base, wanted)
    pairs = pairs[[not too_long[turn] for turn in zip(*(pairs[key] for key in KEYS), strict=True)]]
    if pairs.empty:
        raise UserError(nothing_to_compare(method, base, wanted))
    refuse_zeros(method, base, pairs)
    pairs["group"] = _groups(pairs["category"])
    notes += left_out_notes(method, base, wanted, too_long, len(pairs))
    notes += lacking_notes(method, base, paired_choices(method, pairs))
    unfit = len((method.too_long | base.too_long) & wanted)
    return Comparison(method, base, pairs, wanted, unfit, _interleaved(method, base), notes)


def _compare_headers(method: Run, base: Run) -> list[str]:
    """Notes on conditions that differ or are unknown. UserError where the work or the machine was another."""
    notes = []
    if method.header is None or base.header is None:
        missing = " and ".join(str(run.path) for run in (method, base) if run.header is None)
        notes.append(
            f"conditions not checked: no run header beside {missing}, so whether times include prefill is unknown"
        )
    else:
        differences = header_differences(method.header, base.header)
        named = {
            key: f"{key} is {valued(ours)} in one, {valued(theirs)} in the other"
            for key, (ours, theirs) in differences.items()
        }
        if fatal := [text for key, text in named.items() if key.split(".")[0] in SAME_WORK]:
            raise UserError(
                f"{method.path} and {base.path} cannot be compared: {', '.join(fatal)}; measure both the same way"
            )
        shares = shares_of_machine(method.header, base.header)  # may differ on purpose: told, not refused
        notes += [f"not the same share of the machine: {share}" for share in shares]
    if not _interleaved(method, base):
        notes.append("not interleaved: the files are not of one launch, so drift of the machine is not in the interval")
    return notes


def _interleaved(method: Run, base: Run) -> bool:
    """Whether one launch measured both, taking turns: then the machine was the same for both, question by question."""
    ours, theirs = method.header, base.header
    return ours is not None and theirs is not None and all(ours.get(k) == theirs.get(k) for k in SAME_LAUNCH)


def _groups(categories: "pd.Series[str]") -> "pd.Series[str]":
    """Each row's group: MT-bench's categories are one where several of them occur, the others stand for themselves."""
    conversation = categories.isin(MT_BENCH)
    return categories.mask(conversation, CONVERSATION) if categories[conversation].nunique() > 1 else categories


def _belongs(category: str, group: str) -> bool:
    return group in (category, OVERALL) or (group == CONVERSATION and category in MT_BENCH)


def _summary(comparison: Comparison, group: str, pairs: "pd.DataFrame", count: Count | None) -> Summary:
    from evaluation.judge import stats

    method, base = comparison.method, comparison.baseline
    result = stats.speedup(pairs)
    choices = paired_choices(method, pairs)
    drafted = stats.drafted_tokens(choices)
    header = method.header or {}
    return {
        "method": method.label,
        "baseline": base.label,
        "pair": header.get("pair"),
        "benchmark": header.get("benchmark"),
        "group": group,
        "conditions": _conditions(base.header or header),
        "questions": result.questions,
        "tokens_per_second": float(pairs["tokens"].sum() / pairs["time"].sum()),
        "baseline_tokens_per_second": float(pairs["tokens_base"].sum() / pairs["time_base"].sum()),
        "floor_tokens_per_second": _floor(method, base),
        "speedup": result.ratio,
        "low": result.low,
        "high": result.high,
        "significant": result.significant,
        "geometric_mean": result.geometric_mean,
        "decode_speedup": stats.decode_speedup(pairs),
        "spec_bench_speedup": stats.spec_bench_speedup(*comparison.lines(group), count),
        "mat": stats.mean_accept_length(choices),
        "passes": sum(len(choice.accept_lengths) for choice in choices) or None,
        "draft_seconds_per_pass": stats.seconds_per_pass(choices, "draft_time"),
        "verify_seconds_per_pass": stats.seconds_per_pass(choices, "verify_time"),
        "wait_seconds_per_pass": stats.seconds_per_pass(choices, "wait_time"),
        "run_length": stats.run_length(choices),
        "acceptance_rate": stats.acceptance_rate(choices),
        "drafted": drafted,
        "drafted_per_token": None if drafted is None else float(drafted / pairs["tokens"].sum()),
        "acceptance_by_position": stats.acceptance_by_position(choices),
        "repetition": stats.repetition_share(choices),
        "too_long": comparison.too_long,
        "interleaved": comparison.interleaved,
        "notes": comparison.notes,
    }


def paired_choices(run: Run, pairs: "pd.DataFrame") -> list[Choice]:
    paired = set(zip(pairs["question"], pairs["repeat"], strict=True))
    return [c for q, answer in run.answers.items() for c in answer.choices if (q, c.index) in paired]


def _conditions(header: Header) -> str:
    """What was run, in words for a title, threads as the baseline had them; says so where it is not known."""
    if not header:
        return "conditions unknown: no run header"
    sampling = header["sampling"]
    drawn = [f"{name} {sampling[name]:g}" for name in ("temperature", "top_k", "top_p") if sampling.get(name)]
    words = [
        header["pair"],
        header["benchmark"],
        header["dtype"],
        " ".join(drawn) if sampling["temperature"] else "greedy",
    ]
    words.append(f"at most {header['max_new_tokens']} new tokens")
    threads = header.get("threads")
    return ", ".join(words + ([f"{threads} thread{'s' * (threads > 1)}"] if threads else []))


def _floor(*runs: Run) -> float | None:
    """Tokens per second if each token cost one reading of the target's weights, where a header has measured it."""
    seconds = [run.header.get("floor_seconds_per_token") for run in runs if run.header]
    return next((1 / s for s in seconds if s), None)


def read_counter(tokenizer: str) -> Count:
    """Counts tokens as Spec-Bench's script does: less one for a BOS, whether or not the tokenizer writes one."""
    from transformers import AutoTokenizer

    try:
        encode = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot read a tokenizer from {tokenizer}: {reason}; name a folder or a hub id") from None
    return lambda text: len(encode(text)["input_ids"]) - 1


def spec_bench_notes(summaries: Sequence[Summary], recorded: bool) -> list[str]:
    """What a reader of Spec-Bench's figure must know. `recorded`: the baseline's tokens were not counted anew."""
    anew = (
        "Spec-Bench's figure counts the baseline's tokens as recorded; --spec-bench TOKENIZER counts as its script does"
    )
    undefined = "Spec-Bench's figure is undefined where a line has no time, by which its script divides"
    unknown = any(summary["spec_bench_speedup"] is None for summary in summaries)
    return [anew] * recorded + [undefined] * unknown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="How much faster a method is than its baseline, with an interval.")
    parser.add_argument(
        "--file-path", required=True, metavar="F", type=any_path, help="the method's answers, or a results folder"
    )
    parser.add_argument(
        "--base-path",
        required=True,
        metavar="B",
        type=any_path,
        help="the baseline's answers, or an earlier folder",
    )
    parser.add_argument("--by", choices=["category"], help="a row for each category too")
    parser.add_argument(
        "--spec-bench",
        nargs="?",
        const="",
        metavar="TOKENIZER",
        help="show Spec-Bench's own figure beside ours; TOKENIZER (a folder or hub id) counts the baseline's tokens as "
        "its script does",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document: a list of summaries, overall last"
    )
    return parser


def main() -> int:
    options = _parser().parse_args()
    if options.file_path.is_dir() and options.base_path.is_dir():
        if options.by or options.spec_bench is not None:
            raise UserError("two folders are compared run by run; --by and --spec-bench need two answer files")
        from evaluation.judge.change import compare_folders

        return compare_folders(options.file_path, options.base_path, options.json)
    count = read_counter(options.spec_bench) if options.spec_bench else None
    if options.by:
        summaries = summarize_by_category(options.file_path, options.base_path, count)
    else:
        summaries = [summarize(options.file_path, options.base_path, count=count)]
    if options.json:
        print(json.dumps(summaries, indent=2))
    else:
        show(summaries, options.spec_bench is not None, count is None)
    return 0


def show(summaries: Sequence[Summary], spec_bench: bool, recorded: bool) -> None:
    """Print the tables and the notes. `spec_bench`: with its own figure, of tokens `recorded` or counted anew."""
    console = terminal()
    print_tables(console, table(summaries, spec_bench), details(summaries))
    console.print(LEGEND + SPEC_BENCH_LEGEND * spec_bench, style="dim", soft_wrap=True)
    notes = summaries[-1]["notes"] + (spec_bench_notes(summaries, recorded) if spec_bench else [])
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


if __name__ == "__main__":
    command_line(main)
