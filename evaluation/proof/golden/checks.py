"""Which check a folder of goldens gets. A kind is an entry here: the title of its README.md, and a function that yields
what it has compared."""

from collections.abc import Callable, Iterable
from pathlib import Path

from evaluation.proof.golden import eagle, hydra, lookahead, medusa, prompt_lookup, rest, sam
from evaluation.proof.golden.agreement import Agreement
from evaluation.proof.golden.folder import Golden
from methods.errors import UserError

CHECKS: dict[str, Callable[[Golden], Iterable[Agreement]]] = {
    "# Medusa oracles": medusa.check,
    "# Hydra oracles": hydra.check,
    "# EAGLE-1 oracles": eagle.eagle1,
    "# EAGLE-2 oracles": eagle.eagle2,
    "# EAGLE-3 oracles": eagle.eagle3,
    "# Lookahead decoding oracles": lookahead.check,
    "# Prompt lookup decoding oracles": prompt_lookup.check,
    "# SAM-Decoding oracles": sam.check,
    "# REST oracles": rest.check,
}


def check_golden(folder: Path) -> list[Agreement]:
    """Everything that the folder holds, compared with ours. Raises UserError for a folder of another kind."""
    golden = Golden(folder.resolve())
    check = next((check for title, check in CHECKS.items() if golden.title.startswith(title)), None)
    if check is None:
        known = ", ".join(f"'{title}'" for title in CHECKS)
        raise UserError(f"expected {folder}/README.md to begin with one of {known}, got '{golden.title[:60]}'")
    return list(check(golden))
