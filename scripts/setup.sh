#!/usr/bin/env bash
# Creates .venv with the pinned dependencies; eval.sh and test.sh call it before every start. It does nothing when .venv
# fits requirements.lock and pyproject.toml. Without a GPU the smaller build of torch is enough:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu scripts/setup.sh
set -euo pipefail

ROOT="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
VENV="$ROOT/.venv"
STAMP="$VENV/.setup-done"            # holds what was installed, written last
UNFINISHED="$ROOT/.venv.unfinished"  # there while installing: what a killed set-up left is not trusted

wanted() { { echo "$ROOT"; cat "$ROOT/requirements.lock" "$ROOT/pyproject.toml"; } | sha256sum | cut -d ' ' -f 1; }
is_done() { [[ -x "$VENV/bin/python" && ! -e "$UNFINISHED" && "$(cat "$STAMP" 2>/dev/null)" == "$(wanted)" ]]; }
say() { echo "$*" >&2; }
fail() { say "error: $*"; exit 2; }

find_python() {
    local python
    for python in python3.11 python3.12 python3.13 python3.14 python3 python; do
        # a name on the path may be a shim that does not run, and Debian's python3 may lack ensurepip
        if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$python"
            return
        fi
    done
    fail "Python 3.11 or newer with its venv module was not found: install it (Debian, Ubuntu:" \
        "apt install python3 python3-venv), or name an interpreter that has the dependencies: PYTHON=/path/to/python"
}

pip() {
    "$VENV/bin/python" -m pip --no-input --disable-pip-version-check install -qq --no-warn-script-location \
        "$@" || fail "installing the dependencies failed (pip's message is above); the next start tries again"
}

install() {
    local start=$SECONDS python clear=()
    python="$(find_python)"
    say "setting up .venv with $("$python" --version) (once, some minutes) ..."
    # also when the interpreter that .venv was made of is gone
    if [[ -e "$UNFINISHED" ]] || ! "$VENV/bin/python" -c '' 2>/dev/null; then clear=(--clear); fi
    touch "$UNFINISHED"
    rm -f "$STAMP"
    "$python" -m venv "${clear[@]}" "$VENV" >&2 || fail "'$python -m venv' failed (its message is above)"
    say "  torch"
    pip -c "$ROOT/requirements.lock" "$(grep '^torch==' "$ROOT/requirements.lock")"
    say "  the other dependencies"
    pip --no-deps -r "$ROOT/requirements.lock"
    pip --no-deps --no-build-isolation -e "$ROOT"
    wanted >"$STAMP"
    rm "$UNFINISHED"
    say "  done in $((SECONDS - start)) s"
}

is_done && exit 0
exec 9>"$ROOT/.venv.lock" || fail "$ROOT is not writable, so .venv cannot be made there: use PYTHON=/path/to/python"
# pip inherits descriptor 9: after a kill the next set-up waits for a pip that outlived its own
flock -n 9 || { say "waiting for another set-up of .venv to end ..."; flock 9; }
is_done || install
