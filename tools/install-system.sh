#!/usr/bin/env bash
# Installs the system packages that Lighterman needs to run and to be tested; silent when nothing is missing.
# Without apt or without root it prints what is needed, and ends with 1 if the rest can't work without it.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
export LC_ALL=C
# Debian keeps runc in a directory that a user's PATH may lack.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

have() { command -v "$1" >/dev/null 2>&1; }

# The built-in image is one file copied into an empty root, so only a static busybox will do.
static_busybox() {
    local path
    for path in /bin/busybox /usr/bin/busybox; do
        if [ -x "$path" ] && ! ldd "$path" >/dev/null 2>&1; then return 0; fi
    done
    return 1
}

missing_packages() {
    have make || echo make
    have crun || echo crun
    have runc || echo runc
    have catatonit || echo catatonit
    static_busybox || echo busybox-static
    "$here/find-python.sh" >/dev/null 2>&1 || python_packages
}

# Which packages give a Python of 3.11 or later with venv: the release's own one, else the oldest newer one it offers.
python_packages() {
    local version
    version=$(apt-cache policy python3 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9]*\.[0-9]*\).*/\1/p')
    case "$version" in
    3.[0-9] | 3.10)
        for version in 3.11 3.12 3.13 3.14; do
            if apt-cache policy "python$version-venv" 2>/dev/null | grep -q 'Candidate: [0-9]'; then
                echo "python$version python$version-venv"
                return
            fi
        done
        echo "python3.11 python3.11-venv"
        ;;
    *) echo "python3 python3-venv" ;;
    esac
}

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" </dev/null
}

missing=$(missing_packages | tr '\n' ' ')
[ -n "${missing// /}" ] || exit 0

if ! have apt-get; then
    echo "these are missing: $missing" >&2
    echo "they are Debian's package names; install the same by your system's package manager, then run this again" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "system packages are missing; install them, then run this again:" >&2
    echo "    sudo apt-get update && sudo apt-get install --no-install-recommends $missing" >&2
    exit 1
fi

echo "installing system packages: $missing"
# Lists may be absent (an image without them) or older than the archive; both show as a failed install.
# shellcheck disable=SC2086  # one word a package
if ! install $missing >/dev/null 2>&1; then
    apt-get update -q
    missing=$(missing_packages | tr '\n' ' ')
    # shellcheck disable=SC2086
    if ! install $missing; then
        echo "could not install: $missing" >&2
        case "$missing" in *python*) "$here/find-python.sh" >/dev/null || true ;; esac
        exit 1
    fi
fi

missing=$(missing_packages | tr '\n' ' ')
if [ -n "${missing// /}" ]; then
    echo "still missing after the installation: $missing" >&2
    exit 1
fi
