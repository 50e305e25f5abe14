#!/usr/bin/env bash
# PEARL by its window: scripts/gamma_sweep.sh PAIR [FOLDER] [options of eval.sh]
# METHOD=pearl-sd2 takes the other drafter, METHOD=sps GAMMAS="1 2 3 4 5" draft-then-verify. All are measured in one
# launch, in turn. Started again, it goes on where it stopped.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/gamma_sweep.sh PAIR [FOLDER] [options]}"
METHOD="${METHOD:-pearl}"
FOLDER="${2:-$ROOT/results/local/gamma-$METHOD-$PAIR}"
VARIANTS=""
for gamma in ${GAMMAS:-auto free 1 2 3 4 5 6 7 8 9 10}; do VARIANTS="$VARIANTS${VARIANTS:+,}$METHOD@gamma=$gamma"; done
"$ROOT/eval.sh" "$VARIANTS" "$PAIR" --alone --output "$FOLDER" "${@:3}"
