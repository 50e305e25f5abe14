#!/usr/bin/env bash
# The tests: ./test.sh [pytest options]. Sets up .venv on first use; PYTHON=/path/to/python ./test.sh uses that
# interpreter as it is.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
[[ -n "${PYTHON:-}" ]] || scripts/setup.sh
PY="${PYTHON:-.venv/bin/python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # on tiny models more threads only wait for each other
exec "$PY" -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
