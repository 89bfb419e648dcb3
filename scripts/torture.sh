#!/usr/bin/env bash
# Breaks everything that can break, and compares what is stored with what was logged. `bash scripts/torture.sh [--full]`
#
# One line for each torture: how many cases ran, how many records were accepted, how many of them were lost. --full takes
# hours; stopped at any moment, the same command goes on. --list says what there is, --only TEXT chooses.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"
prepare_venv test
cd "$root"
exec "$venv/bin/python" -m tests.torture "$@"
