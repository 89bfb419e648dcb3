# The one virtual environment of this checkout, for demo.sh and test.sh (sourced, not run).
#
#   prepare_venv EXTRA...   makes .venv if there is none, and installs this package (editable) with the extras
#
# A stamp per set of extras holds a hash of pyproject.toml and of the interpreter: while it fits, nothing is installed, so
# the second run costs milliseconds and needs no network. A lock lets the two scripts be started at the same time.
# Afterwards `$venv/bin/python` is the interpreter, and nothing of the caller's environment steers it.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

# Settings of a user's own runs (another store, another project) must not reach the demo or the tests.
forget_settings() {
    local name
    for name in $(compgen -e); do
        case $name in
            STEPD_* | WANDB_* | PYTHONPATH | PYTHONHOME | PYTHONSTARTUP | PYTHONSAFEPATH | VIRTUAL_ENV) unset "$name" ;;
        esac
    done
}

is_usable_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python; do
        if command -v "$name" >/dev/null 2>&1 && is_usable_python "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

make_venv() {
    local python
    python=$(find_python) || fail "no Python 3.10 or newer was found on PATH" \
        "Try: PYTHON=/path/to/python3 bash $0"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python cannot make virtual environments: its module ensurepip is missing" \
        "Try: apt install python3-venv (Debian, Ubuntu), or PYTHON=/path/to/another/python3 bash $0"
    if [ -e "$venv" ] && [ ! -f "$venv/.stepd-root" ]; then
        fail "$venv was not made by these scripts, so it is left alone" "Try: rm -rf '$venv', or move it away"
    fi
    printf 'making .venv with %s\n' "$("$python" --version 2>&1)"
    rm -rf "$venv"
    mkdir "$venv"
    printf '%s\n' "$venv" >"$venv/.stepd-root" # first, so that a half-made environment is known as ours
    "$python" -m venv "$venv" || fail "cannot make a virtual environment at $venv"
}

# The hash is Python's own, since sha256sum is not everywhere; the interpreter's prefix tells a moved checkout.
expected_stamp() {
    "$venv/bin/python" -I - "$root/pyproject.toml" <<'PYTHON'
import hashlib, sys

with open(sys.argv[1], "rb") as file:
    print(hashlib.sha256(file.read()).hexdigest(), sys.version.split()[0], sys.prefix)
PYTHON
}

# A moved or copied checkout has a .venv whose scripts name another directory; an upgraded system, one without Python; an
# interrupted run, one without pip.
is_venv_ready() {
    [ -f "$venv/.stepd-root" ] && [ "$(cat "$venv/.stepd-root")" = "$venv" ] &&
        [ -x "$venv/bin/pip" ] && is_usable_python "$venv/bin/python"
}

install_extras() {
    local extras=$1 stamp=$2 expected
    expected=$(expected_stamp)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$expected" ] && [ -x "$venv/bin/stepd" ] && return
    rm -f "$stamp"
    printf 'installing stepd[%s] into .venv (once; about a minute)\n' "$extras"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$extras]" ||
        fail "pip could not install stepd[$extras]" "See its message above. Without a network: PIP_NO_INDEX=1 PIP_FIND_LINKS=/directory/of/wheels bash $0"
    printf '%s\n' "$expected" >"$stamp"
}

prepare_venv() {
    local extras
    extras=$(IFS=,; printf '%s' "$*")
    forget_settings
    # What is locked is pyproject.toml itself: it is there, it stays, and a lock needs no file of its own.
    if command -v flock >/dev/null 2>&1; then
        exec 9<"$root/pyproject.toml"
        flock 9
    fi
    is_venv_ready || make_venv
    install_extras "$extras" "$venv/.stepd-${extras//,/-}"
    exec 9<&-
    PATH=$venv/bin:$PATH
}
