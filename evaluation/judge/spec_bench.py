"""What Spec-Bench's own figure is made of, and what its reader must know."""

from collections.abc import Sequence

from evaluation.judge.summary import Count, Summary
from methods.errors import UserError


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
    unknown = any(summary.spec_bench_speedup is None for summary in summaries)
    return [anew] * recorded + [undefined] * unknown
