#!/bin/sh
# runc on a host without CRIU: a checkpoint is two files, and to go on from one is to begin anew, with the files of then.
# It stops where a file `hold-dump` or `hold-restore` is beside it, and a restore fails where `fail-restore` is.
here=${0%/*}
operation= images= before=
for word; do
    shift
    case $before in
    --image-path) images=$word ;;
    esac
    case $before:$word in
    --image-path:* | --work-path:* | *:--image-path | *:--work-path | *:--file-locks | *:--leave-running) ;;
    *:checkpoint) operation=checkpoint ;;
    *:restore) operation=restore && set -- "$@" run ;;
    *) set -- "$@" "$word" ;;
    esac
    before=$word
done

hold() {
    echo >>"$here/$1-begun"
    while [ -e "$here/hold-$1" ]; do sleep 0.02; done
}

case $operation in
checkpoint)
    echo pages >"$images/pages-1.img"
    echo inventory >"$images/inventory.img"
    hold dump
    exit 0
    ;;
restore)
    hold restore
    [ -e "$here/fail-restore" ] && exit 1
    ;;
esac
exec "$here/real" "$@"
