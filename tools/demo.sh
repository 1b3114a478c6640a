#!/usr/bin/env bash
# The main job, shown: one isolated container, supervised to its exit. Ends with 0 if the engine did its part.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# shellcheck disable=SC2016  # expanded by the container's shell
program='
echo "hostname   $(hostname)"
echo "user       $(id -u):$(id -g)"
echo "pid        $$, sees $(ls -d /proc/[0-9]* | wc -l) processes"
echo "interfaces $(ls /sys/class/net 2>/dev/null | tr "\n" " ")"
echo "seccomp    mode $(sed -n "s/^Seccomp:[[:space:]]*//p" /proc/self/status), capabilities $(sed -n "s/^CapEff:[[:space:]]*//p" /proc/self/status)"
echo "this line goes to stderr" >&2
exit 3
'
echo '$ lighterman run --timings busybox sh -c "..."'
status=0
.venv/bin/lighterman run --timings busybox sh -c "$program" </dev/null || status=$?

if [ "$status" -ge 125 ] && [ "$status" -le 127 ]; then
    echo "lighterman ended with $status: the container could not be run (lighterman doctor says what this host lacks)" >&2
    exit 1
fi
echo "exit code  $status (the program above ends with 3)"
[ "$status" = 3 ]
