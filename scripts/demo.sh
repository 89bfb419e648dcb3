#!/usr/bin/env bash
# The whole way once: set up, train two small classifiers on real data, look at what was logged.
#
# Needs Python 3.10 or newer and, the first time, a package index. Everything stays in this directory: .venv, and the store
# .stepd-demo, which is made anew on each run and kept afterwards to be looked at. Nothing is left running, also on failure.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

store=$root/.stepd-demo
mark=_STEPD_DEMO_SESSION=$$-$RANDOM$RANDOM

# Prints what a reader can paste (given the two variables told below), then does it.
show() {
    local text=$*
    printf '\n$ %s\n' "${text/#train /python scripts/demo_train.py }"
    "$@"
}

stepd() { env "$mark" STEPD_DIR="$store" "$venv/bin/python" -m stepd "$@"; }

train() { env "$mark" STEPD_DIR="$store" "$venv/bin/python" "$root/scripts/demo_train.py" "$@"; }

stop_everything() {
    trap - EXIT INT TERM HUP
    if [ -x "$venv/bin/python" ]; then
        [ -d "$store" ] && stepd stop >/dev/null 2>&1
        "$venv/bin/python" "$root/scripts/_processes.py" "$mark" --wait 5 --kill >&2
    fi
}

prepare_venv demo

# One demo at a time: the second would empty the store under the first.
if command -v flock >/dev/null 2>&1; then
    exec 8<"$venv/.stepd-root"
    flock --nonblock 8 || fail "another demo runs in $root" "Wait until it has ended."
fi

trap 'status=$?; stop_everything || status=1; exit $status' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

cd "$root"
# A demo that was killed -9 may have left its daemon; it must not serve the directory that is removed now.
[ -d "$store" ] && { stepd stop >/dev/null 2>&1 || true; }
rm -rf "$store"
mkdir -m 700 "$store"
printf '*\n' >"$store/.gitignore"

printf '\nA store of its own: %s. To look around in it afterwards:\n' "$store"
printf '  cd %q; export PATH=$PWD/.venv/bin:$PATH STEPD_DIR=$PWD/.stepd-demo\n' "$root"
show stepd start
show train --name plain-sgd --learning-rate 0.05 --momentum 0
show train --name momentum --learning-rate 0.1 --momentum 0.9
show stepd plot plain-sgd momentum train/loss
show stepd plot plain-sgd momentum val/accuracy
show stepd show latest
show stepd export latest --format csv -o .stepd-demo/latest.csv
show stepd runs
show stepd compare plain-sgd momentum
show stepd report plain-sgd momentum -o .stepd-demo/report.html

stop_everything || fail "a process of the demo did not end"
