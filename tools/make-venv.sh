#!/usr/bin/env bash
# Makes .venv with the package (editable) and its development tools; an existing one that works is brought up to date.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# A virtual environment dies with the Python that it was made from.
if ! .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$(tools/find-python.sh)
    echo "making .venv with $python"
    "$python" -m venv --clear .venv
fi
.venv/bin/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]' </dev/null
touch .venv/.installed
