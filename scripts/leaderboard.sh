#!/usr/bin/env bash
# Every method that a pair has weights for, in several launches: scripts/leaderboard.sh PAIR [FOLDER] [options of eval.sh]
# LAUNCHES (5) of each benchmark, all benchmarks in turn, at least PAUSE (0) seconds apart; judged together. Methods of one
# rank run on the target's device. Beside BENCHMARKS, QUESTIONS="FILE..." are answered too, at TEMPERATURES ("0 1") each.
# Started again, also days later, it goes on where it stopped. Last it calibrates the harness here, for the report.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/leaderboard.sh PAIR [FOLDER] [options]}"
FOLDER="${2:-$ROOT/results/local/leaderboard-$PAIR}"
[[ -n "${PYTHON:-}" ]] || "$ROOT/scripts/setup.sh"
METHODS="${METHODS:-$("${PYTHON:-$ROOT/.venv/bin/python}" "$ROOT/scripts/methods_of.py" "$PAIR")}"
measure() { "$ROOT/eval.sh" "$METHODS" "$PAIR" --launches "$launch" --limit 1000 --output "$FOLDER$1" "${@:2}"; }
for launch in $(seq "${LAUNCHES:-5}"); do
    [[ "$launch" == 1 ]] || sleep "${PAUSE:-0}"
    for benchmark in ${BENCHMARKS-humaneval mini_bench}; do measure "" --benchmark "$benchmark" "${@:3}"; done
    for questions in ${QUESTIONS:-}; do
        for temperature in ${TEMPERATURES:-0 1}; do
            place="/temperature-$temperature"
            [[ "$temperature" != 0 ]] || place=""
            measure "$place" --questions "$questions" --temperature "$temperature" "${@:3}"
        done
    done
done
"$ROOT/eval.sh" --calibrate "$FOLDER"
