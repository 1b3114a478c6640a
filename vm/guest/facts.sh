#!/bin/sh
# What this host is, for the table: lines NAME=VALUE.
PATH="$PATH:/usr/sbin:/sbin"
layout() {
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo v2
    elif [ -e /sys/fs/cgroup/unified ]; then echo hybrid
    else echo v1; fi
}
first() { "$@" 2>/dev/null | sed -n 1p; }
echo "kernel=$(uname -r)"
echo "cgroup=$(layout)"
echo "init=$(cat /proc/1/comm)"
echo "system=$(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release)"
echo "crun=$(first crun --version)"
echo "runc=$(first runc --version)"
echo "python=$(first "${PYTHON:-python}" --version)"
