#!/usr/bin/env bash
# Ours beside llama.cpp on the same weights: scripts/peers.sh PAIR [FOLDER] [options of eval.sh]
# A launch for each number of threads in THREADS (default "2 1"), all methods in turn. Needs llama-cpp-python. Started
# again, it goes on where it stopped.
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/peers.sh PAIR [FOLDER] [options]}"
FOLDER="${2:-$ROOT/results/local/peers-$PAIR}"
METHODS="${METHODS:-pld,sps,llama-cpp,llama-cpp@loop=binding,llama-cpp-lookup,llama-cpp-lookup@loop=binding}"
for threads in ${THREADS:-2 1}; do
    "$ROOT/eval.sh" "$METHODS" "$PAIR" --alone --threads "$threads" --output "$FOLDER/threads-$threads" "${@:3}"
done
