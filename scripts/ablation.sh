#!/usr/bin/env bash
# PEARL with and without each of its halves: scripts/ablation.sh PAIR [FOLDER] [options of eval.sh]
# METHOD=pearl-sd2 takes the other drafter. All are measured in one launch, in turn. Started again, it goes on where it
# stopped.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/ablation.sh PAIR [FOLDER] [options]}"
METHOD="${METHOD:-pearl}"
FOLDER="${2:-$ROOT/results/local/ablation-$METHOD-$PAIR}"
VARIANTS="$METHOD"
for without in pre-verify post-verify both; do VARIANTS="$VARIANTS,$METHOD@without=$without"; done
"$ROOT/eval.sh" "$VARIANTS" "$PAIR" --alone --output "$FOLDER" "${@:3}"
