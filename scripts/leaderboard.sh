#!/usr/bin/env bash
# Every method on one pair, in one launch per benchmark: scripts/leaderboard.sh PAIR [FOLDER] [options of eval.sh]
# Methods of one rank run on the target's device. Started again, it goes on where it stopped. Last it calibrates the
# harness on this machine, for the report.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/leaderboard.sh PAIR [FOLDER] [options]}"
FOLDER="${2:-$ROOT/results/local/leaderboard-$PAIR}"
METHODS="${METHODS:-autoregressive-all,sps,pld,sd2,sd2-tree,pearl,pearl-sd2,hf-generate,hf-pld}"
for benchmark in ${BENCHMARKS:-humaneval mini_bench}; do
    "$ROOT/eval.sh" "$METHODS" "$PAIR" --benchmark "$benchmark" --output "$FOLDER" "${@:3}"
done
"$ROOT/eval.sh" --calibrate "$FOLDER"
