#!/usr/bin/env bash
# PEARL by its window: scripts/gamma_sweep.sh PAIR [FOLDER] [options of eval.sh]
# METHOD=pearl-sd2 takes the other drafter, METHOD=sps draft-then-verify. Started again, it goes on where it stopped.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/gamma_sweep.sh PAIR [FOLDER] [options]}"
METHOD="${METHOD:-pearl}"
FOLDER="${2:-$ROOT/results/local/gamma-$METHOD-$PAIR}"
for gamma in ${GAMMAS:-auto free 1 2 3 4 5 6 7 8 9 10}; do
    "$ROOT/eval.sh" "$METHOD" "$PAIR" --alone --gamma "$gamma" --output "$FOLDER/gamma-$gamma" "${@:3}"
done
