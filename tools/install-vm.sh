#!/usr/bin/env bash
# Installs what `make test-vm` needs beyond tools/install-system.sh; silent when nothing is missing.
# Ends with 1 where it can't be had, and says why.
set -euo pipefail
export LC_ALL=C
export PATH="$PATH:/usr/sbin:/sbin"

have() { command -v "$1" >/dev/null 2>&1; }

missing_packages() {
    have qemu-system-x86_64 || echo qemu-system-x86
    have mmdebstrap || echo mmdebstrap
    have mke2fs || echo e2fsprogs
    have setpriv || echo util-linux
    # Ubuntu knows only its own keys.
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || echo debian-archive-keyring
}

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" </dev/null
}

if [ "$(uname -m)" != x86_64 ]; then
    echo "virtual machines: the image is for x86_64, this is $(uname -m)" >&2
    exit 1
fi
missing=$(missing_packages | tr '\n' ' ')
[ -n "${missing// /}" ] || exit 0
if ! have apt-get || [ "$(id -u)" != 0 ]; then
    echo "virtual machines: these packages of Debian are missing, and installing them needs apt and root: $missing" >&2
    exit 1
fi

echo "installing system packages: $missing"
# shellcheck disable=SC2086  # one word a package
if ! install $missing >/dev/null 2>&1; then
    apt-get update -q
    # shellcheck disable=SC2086
    install $missing
fi
missing=$(missing_packages | tr '\n' ' ')
if [ -n "${missing// /}" ]; then
    echo "virtual machines: still missing after the installation: $missing" >&2
    exit 1
fi
