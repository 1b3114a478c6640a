#!/usr/bin/env bash
# Runs a command on a host whose cgroups crun accepts: cgroup-setup.sh COMMAND [ARGUMENT...]
#
# On a hybrid host (v1 controllers beside a v2 tree) crun refuses to start while any controller is left to v2. For the
# time of the command each left-over one is mounted as v1, and unmounted again at the end. This is for tests and the
# benchmark, which want both runtimes; Lighterman itself changes nothing on the host and takes runc there.
set -euo pipefail
unified=/sys/fs/cgroup/unified
mounted=()

# shellcheck disable=SC2317  # reached by the trap
undo() {
    local at
    for at in "${mounted[@]}"; do
        # A hierarchy that holds a cgroup outlives its unmounting and keeps the controller; these are empty parents.
        find "$at" -mindepth 1 -depth -type d -path "$at/lighterman*" -exec rmdir {} + 2>/dev/null || true
        umount "$at" && rmdir "$at" && echo "cgroup set-up: unmounted $at" >&2
    done
}

if [ "$(id -u)" = 0 ] && [ -r "$unified/cgroup.controllers" ]; then
    trap undo EXIT
    for controller in $(<"$unified/cgroup.controllers"); do
        at=/sys/fs/cgroup/$controller
        if mkdir -p "$at" 2>/dev/null && mount -t cgroup -o "$controller" cgroup "$at" 2>/dev/null; then
            mounted+=("$at")
            echo "cgroup set-up: mounted $at (v1) for the time of this run, so that crun accepts this host" >&2
        else
            rmdir "$at" 2>/dev/null || true
            echo "cgroup set-up: could not mount $controller as v1; crun may refuse this host, runc does not" >&2
        fi
    done
fi

# In the foreground and without exec: the trap has to run after it.
status=0
"$@" || status=$?
exit "$status"
