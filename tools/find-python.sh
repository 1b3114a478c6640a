#!/usr/bin/env bash
# Prints the path of a Python of 3.11 or later that can make a virtual environment; $PYTHON goes first if set.
set -euo pipefail

usable='
import ensurepip, sys, venv
if sys.version_info < (3, 11):
    raise SystemExit(1)
print(sys.executable)
'

if [ -n "${PYTHON:-}" ]; then
    "$PYTHON" -c "$usable" && exit 0
    echo "PYTHON=$PYTHON: must be a Python of 3.11 or later with the modules venv and ensurepip" >&2
    exit 1
fi
# A pyenv shim can stand first in PATH for a version that it does not have: each candidate is run, not only looked up.
for candidate in python3 python3.11 python3.12 python3.13 python3.14 \
    /usr/bin/python3 /usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3.13 /usr/bin/python3.14; do
    if found=$("$candidate" -c "$usable" 2>/dev/null) && [ -n "$found" ]; then
        printf '%s\n' "$found"
        exit 0
    fi
done
echo "no Python of 3.11 or later with venv found: install one (Debian: python3-venv), or set PYTHON=/path/to/python3" >&2
exit 1
