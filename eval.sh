#!/usr/bin/env bash
# The main job: ./eval.sh METHOD[,METHOD...] PAIR [options]; without arguments: help. ./eval.sh page: the web page;
# ./eval.sh --calibrate: is the harness right? Sets up .venv on first use; PYTHON=/path/to/python ./eval.sh ... uses that
# interpreter as it is.
set -euo pipefail
ROOT="$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
[[ -n "${PYTHON:-}" ]] || "$ROOT/scripts/setup.sh"
PY="${PYTHON:-$ROOT/.venv/bin/python}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
case "${1:-}" in
    page) DOOR=web ;;
    --calibrate) DOOR=calibrate ;;
    *) DOOR=run ;;
esac
[[ "$DOOR" == run ]] || shift
exec "$PY" "$ROOT/evaluation/$DOOR.py" "$@"
