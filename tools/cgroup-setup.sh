#!/usr/bin/env bash
# Runs a command on a host whose cgroups crun accepts: cgroup-setup.sh COMMAND [ARGUMENT...]
#
# On a hybrid host (v1 controllers beside a v2 tree) crun refuses to start while any controller is left to v2. For the
# time of the command each left-over one is mounted as v1, and unmounted again at the end. So is a v1 hierarchy that is
# there and mounted nowhere, as one is whose cgroups were not all gone when it was unmounted: crun takes plain directories
# for it then. This is for tests and the benchmark, which want both runtimes; Lighterman itself changes nothing on the
# host and takes runc there.
set -euo pipefail
unified=/sys/fs/cgroup/unified
mounted=()

left_over() {
    cat "$unified/cgroup.controllers"
    # Of the v1 hierarchies (column 2 is not 0) those that are not mounted.
    awk '!/^#/ && $2 != 0 { print $1 }' /proc/cgroups | while read -r controller; do
        awk -v wanted="$controller" '{ sub(".* - cgroup ", "") || $0 = ""; n = split($2, o, ",");
            for (i = 1; i <= n; i++) if (o[i] == wanted) found = 1 } END { exit found }' /proc/self/mountinfo && echo "$controller"
    done
}

is_alive() { awk -v wanted="$1" '$1 == wanted && $2 != 0 { found = 1 } END { exit !found }' /proc/cgroups; }

# shellcheck disable=SC2317  # reached by the trap
undo() {
    local at controller try
    for at in "${mounted[@]}"; do
        controller=${at##*/}
        # A hierarchy ends when it is unmounted while it has no cgroup, not even a removed one that the kernel still uses.
        for try in $(seq 50); do
            find "$at" -mindepth 1 -depth -type d -path "$at/lighterman*" -exec rmdir {} + 2>/dev/null || true
            umount "$at" || break
            sleep 0.1
            is_alive "$controller" || break
            [ "$try" = 50 ] || mount -t cgroup -o "$controller" cgroup "$at" || break
        done
        # What stood there before, under the mount, is nobody's failure: a runtime's plain directories, say.
        rmdir "$at" 2>/dev/null || echo "cgroup set-up: $at was no empty directory before, and stays" >&2
        echo "cgroup set-up: unmounted $at" >&2
    done
}

if [ "$(id -u)" = 0 ] && [ -r "$unified/cgroup.controllers" ]; then
    trap undo EXIT
    for controller in $(left_over); do
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
