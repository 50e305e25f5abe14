"""What the training of a head shows: table.md and curve.png from its log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods.training.report import plot, read_log


def table(line: Mapping[str, Any]) -> str:
    """Markdown: what the last validation found."""
    shares = line["acceptance"]
    names = [f"depth {depth}" for depth in shares]
    head = ["tokens seen", *names, "accept length, 3 drafted", "5 drafted"]
    values = [f"{line['tokens']}", *(f"{share:.3f}" for share in shares.values())]
    values += [f"{line['accept_length_3']:.2f}", f"{line['accept_length']:.2f}"]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), values))


def write_report(folder: Path) -> None:
    log = read_log(folder)
    (folder / "table.md").write_text(table(log[-1]) + "\n")
    plot(log, "acceptance", "token {}", "accepted, where all before are", folder / "curve.png")
