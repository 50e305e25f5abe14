"""What a training run shows: agreement and cost of each exit, what they promise, and the learning curve.

Used by train.py. a: chance that a drafted token is accepted; c: target pass time / draft token time.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WINDOWS = range(1, 17)


def best_speedup(a: float, c: float) -> tuple[float, int]:
    """(speedup, window) of draft-then-verify at its best window, by Leviathan et al. 2023, independent acceptance."""
    return max((sum(a**i for i in range(g + 1)) / (1 + g / c), g) for g in WINDOWS)


def table(agreement: Mapping[str, float], costs: Mapping[str, float]) -> str:
    """Markdown: per exit its agreement, c by weights read, and the best draft-then-verify speedup they promise."""
    lines = ["| layers | agreement | c (weights read) | predicted speedup | at window |", "|---|---|---|---|---|"]
    for number, share in agreement.items():
        speedup, window = best_speedup(share, costs[number])
        lines.append(f"| {number} | {share:.3f} | {costs[number]:.2f} | {speedup:.2f} | {window} |")
    return "\n".join(lines)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The validations of a run; after an interruption only those that its checkpoint knows of count."""
    kept: list[dict[str, Any]] = []
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        while kept and kept[-1]["tokens"] >= line["tokens"]:
            kept.pop()
        kept.append(line)
    return kept


def write_report(folder: Path, costs: Mapping[str, float]) -> None:
    """table.md and curve.png from the run's log."""
    log = read_log(folder)
    (folder / "table.md").write_text(table(log[-1]["agreement"], costs) + "\n")
    plot(log, "agreement", "{} layers", "agreement with the target", folder / "curve.png")


def plot(log: list[dict[str, Any]], key: str, label: str, axis: str, path: Path) -> None:
    """The learning curve: the shares that each validation has below `key`, one line for each of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in log[-1][key]:
        shares = [line[key][name] for line in log]
        axes.plot([line["tokens"] / 1e6 for line in log], shares, marker=".", label=label.format(name))
    axes.set(xlabel="tokens seen (millions)", ylabel=axis, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
