"""Whether two answer files hold the same output, turn by turn."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.answers.header import Role, RunHeader
from evaluation.answers.kinds import QuestionId
from evaluation.answers.record import Answer, Choice
from evaluation.answers.run import Run
from evaluation.judge.left_out import too_long_notes

# How a turn of both files compares, and a question as the worst of its turns: the later, the worse.
# "too long" for the context: neither file has an answer.
STATUSES = ("too long", "identical", "different", "missing", "failed")


TOO_LONG, IDENTICAL = STATUSES[:2]


@dataclass(frozen=True)
class Difference:
    """Where the two answers of one turn part. Pairs are (first file, second file)."""

    position: int  # of the first differing token, or character where texts were compared; from 0
    tokens: tuple[list[int], list[int]] | None  # None where texts were compared
    texts: tuple[str, str]
    margins: tuple[float | None, float | None]  # top-1 minus top-2 target logit there, where recorded


@dataclass(frozen=True)
class TurnResult:
    """How one turn of one repeat of a question compares."""

    question_id: QuestionId
    turn: int
    repeat: int
    status: str  # one of STATUSES
    by: str | None = None  # what was compared: "token ids" or "text"
    where: str | None = None  # the files in which it is missing or failed
    difference: Difference | None = None
    shared: tuple[int, int] | None = None  # tokens or characters up to the first difference, of the longer answer's


@dataclass(frozen=True)
class Comparison:
    """Two answer files side by side, turn by turn."""

    names: tuple[str, str]
    turns: list[TurnResult]
    notes: list[str]

    @property
    def questions(self) -> dict[QuestionId, str]:
        """The status of each question that could be compared: the worst of its turns and repeats."""
        return {question: status for question, status in self._worst.items() if status != TOO_LONG}

    @property
    def too_long(self) -> list[QuestionId]:
        """The questions of which not one turn fits the context."""
        return [question for question, status in self._worst.items() if status == TOO_LONG]

    @property
    def _worst(self) -> dict[QuestionId, str]:
        worst: dict[QuestionId, str] = {}
        for turn in self.turns:
            worst[turn.question_id] = max(worst.get(turn.question_id, TOO_LONG), turn.status, key=STATUSES.index)
        return worst

    @property
    def identical(self) -> int:
        """How many questions are identical in all turns and repeats."""
        return Counter(self.questions.values())[IDENTICAL]

    @property
    def equal(self) -> bool:
        """Whether both files hold the same questions, and every turn and repeat that fits the context is identical."""
        return bool(self.questions) and all(turn.status in (TOO_LONG, IDENTICAL) for turn in self.turns)

    @property
    def shared(self) -> float | None:
        """The share of tokens, or characters of texts, up to the first difference of each turn, of the longer of its
        two answers. None where nothing was compared."""
        found = [turn.shared for turn in self.turns if turn.shared is not None]
        longest = sum(length for _, length in found)
        return sum(same for same, _ in found) / longest if longest else None

    @property
    def line(self) -> str:
        """The counts in one line, such as "19/20 identical, 1 different (by token ids)"."""
        counts = Counter(self.questions.values())
        parts = [f"{counts[IDENTICAL]}/{len(self.questions)} identical"]
        parts += [f"{counts[status]} {status}" for status in STATUSES[2:] if counts[status]]
        compared = Counter(turn.by for turn in self.turns if turn.by)
        turns = sum(turn.status != TOO_LONG for turn in self.turns)
        plain = turns == len(self.questions) and len(compared) == 1
        by = ", ".join(f"by {by}" if plain else f"{n} turns by {by}" for by, n in compared.items())
        return ", ".join(parts) + (f" ({by})" if by else "")


def compare(one: Run, other: Run, question_ids: Collection[QuestionId] | None = None) -> Comparison:
    """Compare the output of two runs, on all questions of either or on `question_ids` alone.

    A question in `question_ids` that a file lacks is missing there.
    """
    runs, paths = (one, other), (one.path, other.path)
    names = (paths[0].name, paths[1].name) if paths[0].name != paths[1].name else (str(paths[0]), str(paths[1]))
    answers, headers = (one.answers, other.answers), (one.header, other.header)
    failures = [[failure["question_id"] for failure in run.failures] for run in runs]
    questions = dict.fromkeys([*answers[0], *answers[1], *failures[0], *failures[1]])
    wanted = questions if question_ids is None else dict.fromkeys(question_ids)
    turns: list[TurnResult] = []
    for question in wanted:
        found = answers[0].get(question), answers[1].get(question)
        failed = [n for n, answer, f in zip(names, found, failures, strict=True) if answer is None and question in f]
        if failed:
            turns.append(TurnResult(question, 0, 0, "failed", where=" and ".join(failed)))
        else:
            turns.extend(_compare_question(question, found, names))
    told = too_long_notes({(t.question_id, t.turn, t.repeat): t.status == TOO_LONG for t in turns}, *headers)
    return Comparison(names, turns, told + _notes(headers, names))


def _compare_question(
    question: QuestionId, found: tuple[Answer | None, Answer | None], names: tuple[str, str]
) -> Iterator[TurnResult]:
    one, other = (_turns(answer) for answer in found)
    for repeat, turn in sorted(one.keys() | other.keys()) or [(0, 0)]:
        choices = one.get((repeat, turn)), other.get((repeat, turn))
        missing = [name for name, choice in zip(names, choices, strict=True) if choice is None]
        failed = [name for name, choice in zip(names, choices, strict=True) if choice and choice.failed(turn)]
        if failed or missing:
            status = "failed" if failed else "missing"
            yield TurnResult(question, turn, repeat, status, where=" and ".join(failed or missing))
        elif choices[0] and choices[1] and choices[0].too_long(turn) and choices[1].too_long(turn):
            yield TurnResult(question, turn, repeat, TOO_LONG)
        elif choices[0] and choices[1]:
            by, difference = _compare_turn(choices[0], choices[1], turn)
            status = "different" if difference else IDENTICAL
            shared = _shared(choices[0], choices[1], turn, difference)
            yield TurnResult(question, turn, repeat, status, by, None, difference, shared)


def _turns(answer: Answer | None) -> dict[tuple[int, int], Choice]:
    """The choice that holds each (repeat, turn) of an answer."""
    choices = answer.choices if answer else []
    return {(choice.index, turn): choice for choice in choices for turn in range(len(choice.turns))}


def _compare_turn(one: Choice, other: Choice, turn: int) -> tuple[str, Difference | None]:
    texts = one.turns[turn], other.turns[turn]
    if one.token_ids is None or other.token_ids is None:
        texts = texts[0].strip(), texts[1].strip()  # Spec-Bench's scripts strip what they write
        if texts[0] == texts[1]:
            return "text", None
        return "text", Difference(_parting(*texts), None, texts, (None, None))
    tokens = list(one.token_ids[turn]), list(other.token_ids[turn])
    if tokens[0] == tokens[1]:
        return "token ids", None
    position = _parting(*tokens)
    margins = _margin(one, turn, position), _margin(other, turn, position)
    return "token ids", Difference(position, tokens, texts, margins)


def _shared(one: Choice, other: Choice, turn: int, difference: Difference | None) -> tuple[int, int]:
    """How far two answers go together, and how long the longer one is."""
    if difference is not None:
        return difference.position, max(map(len, difference.tokens or difference.texts))
    length = len(one.turns[turn]) if one.token_ids is None or other.token_ids is None else one.new_tokens[turn]
    return length, length


def _parting(one: Sequence[object], other: Sequence[object]) -> int:
    """The first index at which two sequences differ, which is the end of the shorter if it begins the longer."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(one), len(other)))


def _margin(choice: Choice, turn: int, position: int) -> float | None:
    margins = choice.margins[turn] if choice.margins else []
    return margins[position] if position < len(margins) else None


def _notes(headers: tuple[RunHeader | None, RunHeader | None], names: tuple[str, str]) -> list[str]:
    """What a reader must know before calling a difference a mistake."""
    known = [header for header in headers if header]
    notes = []
    sampled = max((header.sampling["temperature"] for header in known), default=0)
    if sampled > 0:
        notes.append(
            f"temperature {sampled:g}: sampled answers are not expected to be equal, only alike in distribution"
        )
    if len(known) == 2:
        role = Role.OUTPUT | Role.DRAWN if sampled > 0 else Role.OUTPUT
        differences = known[0].differences(known[1], role).items()
        told = [f"{key} is {ours} in one, {theirs} in the other" for key, (ours, theirs) in differences]
        notes += [f"made under different conditions: {', '.join(told)}"] if told else []
    for header, name in zip(headers, names, strict=True):
        if header and not header.exact:
            notes.append(f"{name}: {header.method} is not a lossless method, so it may differ")
    if not all(header.row_invariant is not False for header in known):
        notes.append("not row-invariant here: a difference at a tiny logit margin is rounding, not a mistake")
    return notes


def shared_words(comparison: Comparison) -> str:
    """How far answers that need not be equal are, such as "82% of tokens up to the first difference"."""
    return "nothing compared" if comparison.shared is None else f"{comparison.shared:.1%} up to the first difference"


def document(comparison: Comparison) -> dict[str, Any]:
    """The same for programs, with all turns that are not identical."""
    counts = Counter(comparison.questions.values())
    return {
        "equal": comparison.equal,
        "files": comparison.names,
        "questions": len(comparison.questions),
        **{status: counts[status] for status in STATUSES},
        "shared": comparison.shared,
        "notes": comparison.notes,
        "turns": [asdict(turn) for turn in comparison.turns if turn.status not in (TOO_LONG, IDENTICAL)],
    }
