"""The benchmark of our own writing is complete, well formed and free of repeated text."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

Question = dict[str, Any]
QUESTIONS: list[Question] = [
    json.loads(line)
    for line in (Path(__file__).resolve().parents[1] / "data/mini_bench/question.jsonl").read_text("utf-8").splitlines()
]
MULTI_TURN = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
SINGLE_TURN = ["translation", "summarization", "qa", "math_reasoning", "rag"]
MATH_ANSWERS = {
    33: (160 * 45 + 55 * 320) // 100 - 92,
    34: -(-(204 + 18) // 52) * 408 // 204,
    35: (432 - 5 * 36 - 3 * 12) // 4,
    36: (900 - 900 // 3) // (25 - 5),
    37: 2 * ((182 - 14 - 2 * 14) // 4 + 14),
    38: (450 * 80 // 100 - 30) // 2 // 5,
    39: 24 * 9 + (1110 - 6 - 24 * 30) // 12 * 4,
    40: 150 + 20 + (290 - 80 * 5 // 2) * 60 // 60,
}


def of_category(*categories: str) -> list[Question]:
    return [question for question in QUESTIONS if question["category"] in categories]


def test_ids_run_from_1_to_48() -> None:
    assert [question["question_id"] for question in QUESTIONS] == list(range(1, 49))


def test_eight_questions_per_group_in_order() -> None:
    expected = MULTI_TURN + [category for category in SINGLE_TURN for _ in range(8)]
    assert [question["category"] for question in QUESTIONS] == expected


def test_turns_and_references_are_text() -> None:
    for question in QUESTIONS:
        assert question.keys() <= {"question_id", "category", "turns", "reference"}
        assert len(question["turns"]) == (2 if question["category"] in MULTI_TURN else 1)
        reference = question["reference"] if "reference" in question else question["turns"]
        assert len(reference) == len(question["turns"])
        assert all(text and text == text.strip() for text in question["turns"] + reference)


def test_short_answers_have_references() -> None:
    assert all("reference" in question for question in of_category("translation", "qa", "math_reasoning", "rag"))


@pytest.mark.parametrize("question", of_category("summarization", "rag"), ids=lambda question: question["question_id"])
def test_passages_have_real_length(question: Question) -> None:
    assert 300 <= len(question["turns"][0].split()) <= 700


def test_no_sentence_occurs_twice() -> None:
    texts = [question["turns"][0].removeprefix("Summarize: ") for question in of_category("summarization", "rag")]
    sentences = Counter(part for text in texts for part in re.split(r'(?<=[.!?])"?\s+|\n+', text) if part)
    assert len(sentences) > 300
    assert [sentence for sentence, count in sentences.items() if count > 1] == []


def test_math_references_end_in_the_computed_number() -> None:
    answers = {question["question_id"]: question["reference"][0] for question in of_category("math_reasoning")}
    assert {key: int(text.rsplit("#### ", 1)[1]) for key, text in answers.items()} == MATH_ANSWERS


def test_steps_of_math_references_compute() -> None:
    steps = [
        (left, right)
        for question in of_category("math_reasoning")
        for left, right in re.findall(r"((?:[\d.]+ [-+*/] )+[\d.]+) = \$?([\d.]*\d)", question["reference"][0])
    ]
    assert len(steps) >= 24
    for left, right in steps:
        assert eval(left) == pytest.approx(float(right)), f"{left} = {right}"
