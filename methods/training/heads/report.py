"""What the training of a head shows: table.md and curve.png from its log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from methods.training.report import read_log


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
    _plot(log, folder / "curve.png")


def _plot(log: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for depth in log[-1]["acceptance"]:
        shares = [line["acceptance"][depth] for line in log]
        axes.plot([line["tokens"] / 1e6 for line in log], shares, marker=".", label=f"token {depth}")
    axes.set(xlabel="tokens seen (millions)", ylabel="accepted, where all before are", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
