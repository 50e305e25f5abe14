#!/usr/bin/env bash
# Whether greedy output is the target's, token for token: scripts/exactness.sh PAIR [FOLDER] [options of eval.sh]
# By every method of METHODS that runs on one rank, then by PEARL over the drafters of PEARLS, in bf16 and fp32, on whole
# benchmarks. A prompt is read once for all methods, so long ones take little; times mean nothing. Started again, it goes
# on where it stopped. The exit status is 0 if everything was identical.
set -uo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
PAIR="${1:?expected a pair: scripts/exactness.sh PAIR [FOLDER] [options]}"
FOLDER="${2:-$ROOT/results/local/exactness-$PAIR}"
METHODS="${METHODS-sps pld sam rest sd2 sd2-tree recycling lookahead ouroboros medusa hydra eagle eagle2 eagle3 \
sam-model sam-recycling sam-rest sam-eagle3}"
PEARLS="${PEARLS-pearl pearl-pld pearl-sam pearl-sd2 pearl-medusa pearl-hydra pearl-eagle pearl-eagle2 pearl-eagle3 \
pearl-sam-model}"
status=0
for dtype in ${DTYPES:-bfloat16 float32}; do
    for group in turns pearl; do
        [[ $group == turns ]] && chosen="$METHODS" || chosen="$PEARLS"
        [[ -n "${chosen// /}" ]] || continue
        "$ROOT/eval.sh" "$(tr -s ' ' ',' <<<"$chosen")" "$PAIR" --alone --read-once --threads 1 --dtype "$dtype" \
            --output "$FOLDER-$group-$dtype" "${@:3}" || status=$?
    done
done
exit $status
