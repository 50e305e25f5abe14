#!/usr/bin/env bash
# The main job: ./eval.sh METHOD[,METHOD...] PAIR [options]; without arguments: help. Sets up .venv on first use;
# PYTHON=/path/to/python ./eval.sh ... uses that interpreter as it is. ./eval.sh --calibrate: is the harness right?
set -euo pipefail
ROOT="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
[[ -n "${PYTHON:-}" ]] || "$ROOT/scripts/setup.sh"
PY="${PYTHON:-$ROOT/.venv/bin/python}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
DOOR=run
if [[ "${1:-}" == --calibrate ]]; then
    DOOR=calibrate
    shift
fi
exec "$PY" "$ROOT/evaluation/$DOOR.py" "$@"
