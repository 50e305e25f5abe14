"""The methods of the table that a pair has weights for, with commas between: `python scripts/methods_of.py PAIR`.

Left out are Transformers' own loops, SPACE, whose target has to be trained for it, and of the drafters that copy first
all but a few: each is a row for every other drafter.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from methods import BASELINE, METHODS
from methods.errors import CommandParser, command_line
from methods.pairs import get_pair

LEFT_OUT = re.compile(r"space|(pearl-)?sam-(?!(model|rest|recycling|eagle3)$).*").fullmatch


def methods_of(pair: str) -> list[str]:
    """Return their names, in the order of the table. Raises UserError for an unknown pair."""
    drafts = get_pair(pair).drafts
    fitting = [name for name, spec in METHODS.items() if spec.loop != "peer" and (spec.weights or "") in ("", *drafts)]
    return [name for name in fitting if name != BASELINE and not LEFT_OUT(name)]


def main() -> int:
    parser = CommandParser(description="The methods of the table that a pair has weights for.")
    parser.add_argument("pair", metavar="PAIR", help="a pair of data/pairs.toml")
    print(",".join(methods_of(parser.parse_args().pair)))
    return 0


if __name__ == "__main__":
    command_line(main)
