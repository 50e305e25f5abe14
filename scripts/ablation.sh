#!/usr/bin/env bash
# PEARL with and without each of its halves: scripts/ablation.sh PAIR [FOLDER] [options of eval.sh]
# METHOD=pearl-sd2 takes the other drafter. Started again, it goes on where it stopped.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/ablation.sh PAIR [FOLDER] [options]}"
METHOD="${METHOD:-pearl}"
FOLDER="${2:-$ROOT/results/local/ablation-$METHOD-$PAIR}"
for without in nothing pre-verify post-verify both; do
    "$ROOT/eval.sh" "$METHOD" "$PAIR" --alone --without "$without" --output "$FOLDER/without-$without" "${@:3}"
done
