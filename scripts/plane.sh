#!/usr/bin/env bash
# Every drafter of chains by every loop, in one launch per benchmark: scripts/plane.sh PAIR [FOLDER] [options of eval.sh]
# Draft-then-verify, PEARL, PEARL without pre-verify, and with branches where the drafter can prepare them.
# Started again, it goes on where it stopped.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/plane.sh PAIR [FOLDER] [options]}"
FOLDER="${2:-$ROOT/results/local/plane-$PAIR}"
METHODS=autoregressive-all,sps,pearl,pearl@without=pre-verify,pearl@branches=3
for drafter in ${DRAFTERS:-pld sd2 medusa hydra eagle eagle3}; do
    turns="$drafter" branches=""
    case "$drafter" in
        medusa | hydra) turns="$drafter@shape=chain@gamma=3" ;;
        eagle | eagle3) turns="$drafter@shape=chain@gamma=3" branches=",pearl-$drafter@branches=3" ;;
        sd2) branches=",pearl-$drafter@branches=3" ;;
    esac
    METHODS+=",$turns,pearl-$drafter,pearl-$drafter@without=pre-verify$branches"
done
for benchmark in ${BENCHMARKS:-humaneval mini_bench}; do
    "$ROOT/eval.sh" "$METHODS" "$PAIR" --alone --benchmark "$benchmark" --output "$FOLDER" "${@:3}"
done
