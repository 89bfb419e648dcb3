# Chromium, for the tests that open a report in a real browser (tests/browser.py); sourced by test.sh, or run by itself.
#
#   prepare_browser   installs it where that is possible without asking; else says what to do. Never fails: such tests are then skipped.

prepare_browser() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
        command -v "$name" >/dev/null 2>&1 && return
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        printf 'installing chromium for the tests of reports\n'
        _install_chromium && return
        # The lists of packages may be old, or not there at all, as in a container.
        apt-get update >/dev/null 2>&1 && _install_chromium && return
    fi
    printf 'note: no Chromium is here and none could be installed; the tests that need a browser are skipped\n' >&2
    printf '  Try, as root: apt-get update && apt-get install -y chromium\n' >&2
}

_install_chromium() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium >/dev/null 2>&1
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    prepare_browser
fi
