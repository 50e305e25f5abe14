#!/usr/bin/env bash
# The tests: ./test.sh [pytest options]. Sets up .venv on first use; PYTHON=/path/to/python ./test.sh uses that
# interpreter as it is.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
[[ -n "${PYTHON:-}" ]] || scripts/setup.sh
PY="${PYTHON:-.venv/bin/python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PY" -m pytest "$@"
