"""This module puts a comparison of outputs into words."""

from rich.text import Text

from evaluation.answers.run import launch_of, repeat_within
from evaluation.judge.equality import IDENTICAL, TOO_LONG, Comparison, Difference, TurnResult, _parting

FIRST = 5  # turns shown that are not identical, unless all are asked for


TOKENS_AROUND = 5


TEXT_AROUND = 30  # characters


def report(comparison: Comparison, show_all: bool) -> Text:
    """Show the first turns that are not identical, or all of them, and then the verdict."""
    odd = [turn for turn in comparison.turns if turn.status not in (TOO_LONG, IDENTICAL)]
    shown = odd if show_all else odd[:FIRST]
    text = Text()
    for turn in shown:
        text.append(_describe(turn, comparison.names) + "\n")
    if len(shown) < len(odd):
        text.append(f"... and {len(odd) - len(shown)} more turns; --all shows them\n")
    for note in comparison.notes:
        text.append(f"note: {note}\n", style="yellow")
    verdict = f"{'equal' if comparison.equal else 'NOT equal'}: {comparison.line}"
    return text.append(verdict, style="bold green" if comparison.equal else "bold red")


def _describe(result: TurnResult, names: tuple[str, str]) -> str:
    place = f"question {result.question_id}, turn {result.turn + 1}"
    place += f", launch {launch_of(result.repeat) + 1}" if launch_of(result.repeat) else ""
    place += f", repeat {repeat_within(result.repeat) + 1}" if repeat_within(result.repeat) else ""
    if result.difference is None:
        return f"{place}: {result.status} in {result.where}"
    unit = "token" if result.difference.tokens else "character"
    lines = [f"{place}: different from {unit} {result.difference.position + 1} on{_margin_words(result.difference)}"]
    width = max(map(len, names))
    for side, name in enumerate(names):
        first, *others = _excerpts(result.difference, side)
        lines += [f"    {name:<{width}}  {first}"] + [f"    {'':<{width}}  {excerpt}" for excerpt in others]
    return "\n".join(lines)


def _margin_words(difference: Difference) -> str:
    known = [f"{margin:.3g}" for margin in difference.margins if margin is not None]
    return f", logit margin {' and '.join(known)}" if known else ""


def _excerpts(difference: Difference, side: int) -> list[str]:
    """What one file has around the difference: its tokens, the differing one in brackets, and its text."""
    excerpts = []
    if difference.tokens:
        at, tokens = difference.position, difference.tokens[side]
        words = [str(token) for token in tokens[max(0, at - TOKENS_AROUND) : at + TOKENS_AROUND + 1]]
        here = min(at, TOKENS_AROUND)
        words[here : here + 1] = [f"[{words[here]}]" if here < len(words) else "[end]"]
        excerpts.append(("... " if at > TOKENS_AROUND else "") + " ".join(words))
    at, text = _parting(*difference.texts), difference.texts[side]
    same = difference.texts[0] == difference.texts[1]
    excerpts.append("(the same text)" if same else repr(text[max(0, at - TEXT_AROUND) : at + TEXT_AROUND]))
    return excerpts
