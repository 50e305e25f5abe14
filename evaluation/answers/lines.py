"""JSON lines, as answer files have them."""

import json
from functools import partial
from io import BytesIO
from typing import Any

from jsonlines import Writer

_dumps = partial(json.dumps, allow_nan=False)  # nothing that other readers of JSON would refuse


def to_line(record: dict[str, Any]) -> bytes:
    """The record as one line."""
    line = BytesIO()
    Writer(line, dumps=_dumps).write(record)
    return line.getvalue()
