#!/usr/bin/env bash
# The tables and figures of the PEARL paper (Liu et al. 2025) for a pair: scripts/pearl_paper.sh PAIR [FOLDER] [options of
# eval.sh]. Its methods on HumanEval, GSM8K, MGSM and MT-bench, LAUNCHES (1) of each; its ablation and its window on
# HumanEval; then a report with the figures. scripts/fetch.py brings the benchmarks; BENCHMARKS="humaneval" takes fewer, and
# QUESTIONS="FILE..." others. Started again, it goes on where it stopped.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/pearl_paper.sh PAIR [FOLDER] [options]}"
FOLDER="${2:-$ROOT/results/local/pearl-paper-$PAIR}"
LAUNCHED=(--launches "${LAUNCHES:-1}")
measure() {
    "$ROOT/eval.sh" autoregressive-all,sps,hf-assisted,lookahead,ouroboros,pearl "$PAIR" "${LAUNCHED[@]}" \
        --output "$FOLDER/tables" "$@"
}
for benchmark in ${BENCHMARKS-humaneval gsm8k mgsm mt_bench}; do measure --benchmark "$benchmark" "${@:3}"; done
for questions in ${QUESTIONS:-}; do measure --questions "$questions" "${@:3}"; done
"$ROOT/scripts/ablation.sh" "$PAIR" "$FOLDER/ablation" "${LAUNCHED[@]}" "${@:3}"
"$ROOT/scripts/gamma_sweep.sh" "$PAIR" "$FOLDER/window" "${LAUNCHED[@]}" "${@:3}"
"${PYTHON:-$ROOT/.venv/bin/python}" "$ROOT/evaluation/report.py" "$FOLDER"
