"""What values in answer files, run headers and traces may be, for pydantic to check."""

from typing import Annotated

from annotated_types import Ge, Le, Predicate

LARGEST_ID = 2**63 - 1
QuestionId = int | str
Count = Annotated[int, Ge(0), Le(2**40)]
Number = Annotated[float, Ge(-1e30), Le(1e30)]  # neither infinite nor NaN
Line = Annotated[str, Predicate(str.isprintable)]
Positive = Annotated[int, Ge(1), Le(2**40)]
Rate = Annotated[float, Ge(1e-12), Le(1e30)]  # of which the reciprocal is a number too
QuestionNumber = Annotated[int, Ge(-LARGEST_ID), Le(LARGEST_ID)]
