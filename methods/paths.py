"""Where things lie: the repository and the user's cache folder. Used by the loader, the questions and the scripts."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def cache_dir() -> Path:
    """Converted weights and fetched benchmarks: `PEARL_BENCH_CACHE`, else ~/.cache/pearl-bench. Not created here."""
    return Path(os.environ.get("PEARL_BENCH_CACHE") or "~/.cache/pearl-bench").expanduser()
