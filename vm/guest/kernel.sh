#!/bin/sh
# Puts Debian's cloud kernel into a root that is being made: kernel.sh ROOT
# Unpacked and not installed: it boots without an initramfs (NVMe and ext4 are built in), so it needs no tool to make one.
set -eu
root=$1

chroot "$root" sh -eu -c '
    mkdir /kernel && cd /kernel
    package=$(apt-cache depends --important linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image.*\)/\1/p")
    apt-get -q -o APT::Sandbox::User=root download "$package"
    dpkg-deb -x ./*.deb /kernel/files
    mv files/lib/modules /usr/lib/modules
    mv files/boot/vmlinuz-* /boot/
    cd / && rm -r /kernel
    depmod "$(ls /usr/lib/modules)"
'
