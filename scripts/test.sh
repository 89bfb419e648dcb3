#!/usr/bin/env bash
# Everything that must hold: style, types, floors, tests. `bash scripts/test.sh [arguments of pytest]`
#
# Makes .venv on the first run (see _venv.sh) and installs Chromium where it may (see _browser.sh). The last line is pytest's own.
# Fails when a process of the tests is left over.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
source "$(dirname "${BASH_SOURCE[0]}")/_browser.sh"
prepare_venv test
prepare_browser
python=$venv/bin/python

# Paths in the arguments are relative to the root, as pytest prints them.
cd "$root"
# Not STEPD_…: tests clear those, and the mark must reach the daemons they start.
mark=_STEPD_TEST_SESSION=$$-$RANDOM$RANDOM

"$python" -m ruff check --quiet --cache-dir "$venv/.ruff_cache" .
"$python" -m ruff format --check --quiet --cache-dir "$venv/.ruff_cache" .
"$python" -m mypy --no-error-summary --cache-dir "$venv/.mypy_cache"
lint=$("$venv/bin/lint-imports" --no-cache 2>&1) || { printf '%s\n' "$lint" && exit 1; }

# Not pytest-xdist: tests that kill, stop and time real processes would measure each other. What mostly computes runs beside them instead, and
# gets what they leave of the two cores (tests/conftest.py says which half is which). Whoever names tests gets one process.
status=0
if [[ " $*" =~ [[:space:]][^-] ]]; then
    env "$mark" "$python" -m pytest "$@" || status=$?
else
    aside=$venv/aside.log
    env "$mark" nice -n 19 "$python" -m pytest --part=aside "$@" >"$aside" 2>&1 </dev/null &
    beside=$!
    trap 'kill $beside 2>/dev/null || true' EXIT
    env "$mark" "$python" -m pytest --part=main "$@" || status=$?
    wait $beside || status=$?
    trap - EXIT
    cat "$aside"
fi

# Daemons of the tests end themselves once their stores are idle; a test that leaves one for longer has forgotten it.
left=$("$python" "$root/scripts/_processes.py" "$mark" --wait 5 --kill) || {
    printf 'error: the tests left processes behind (killed now):\n%s\n' "$left" >&2
    status=1
}
exit "$status"
