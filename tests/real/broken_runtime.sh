#!/bin/sh
# A runtime that calls the real one, and goes wrong where the file `fault` beside it says: OPERATION HOW.
here=${0%/*}
operation= log= pid_file= before=
for word; do
    case $before in
    --log) log=$word ;;
    --pid-file) pid_file=$word ;;
    esac
    case $word in run | exec | delete | update) [ -n "$operation" ] || operation=$word ;; esac
    before=$word
done
wanted= how=
[ -e "$here/fault" ] && read -r wanted how <"$here/fault"
[ "$wanted" = "$operation" ] || how=
[ -n "$how" ] && echo "$operation" >>"$here/met"

fail() {
    echo '{"msg":"broken on request","level":"error","time":"2024-01-01T00:00:00Z"}' >>"$log"
    exit "$1"
}

case $how in
'') exec "$here/real" "$@" ;;
fail-before) fail 3 ;;
hang-before) exec sleep 1000 ;;
killed-before) kill -9 $$ ;;
killed-forked)
    # As crun's: it forks first, and it is the child that makes the container.
    (sh -c 'echo $PPID' >"$here/forked"; read -r _ <"$here/go"; exec "$here/real" "$@") &
    until [ -s "$here/forked" ]; do :; done
    kill -9 $$
    ;;
esac
"$here/real" "$@" || exit
case $how in
fail-after) fail 4 ;;
hang-after) exec sleep 1000 ;;
killed-after) kill -9 $$ ;;
garbage-pid) echo 'no number' >"$pid_file" ;;
huge-pid) echo 99999999999999999999 >"$pid_file" ;;
empty-pid) : >"$pid_file" ;;
foreign-pid) echo "$PPID" >"$pid_file" ;;
no-pid) rm -f "$pid_file" ;;
esac
