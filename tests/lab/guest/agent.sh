#!/bin/sh
# Runs the command of the share, sends its output through the virtio ports and leaves its exit code.
# shellcheck source=/dev/null
. /run/lab/settings

# The device of the virtio port with the given name, whether or not udev made a link.
port() {
    for entry in /sys/class/virtio-ports/*; do
        if test "$(cat "$entry/name")" = "$1"; then
            echo "/dev/$(basename "$entry")"
        fi
    done
}

cd "$LAB_CHECKOUT" || exit 1
if test "$LAB_SHELL" = 1; then
    # The size belongs to the open terminal: it is set by whoever keeps it open.
    size="stty rows $LAB_ROWS cols $LAB_COLUMNS"
    setsid -c sh -c "$size; exec sh /run/lab/command" </dev/hvc0 >/dev/hvc0 2>&1
    echo $? >/run/lab/exit.part
else
    # Pipes stand between the command and the ports, so that /dev/stdout can be opened again.
    mkfifo /run/lab-out /run/lab-err
    cat /run/lab-out >"$(port lab.out)" &
    out=$!
    cat /run/lab-err >"$(port lab.err)" &
    err=$!
    sh /run/lab/command </dev/null >/run/lab-out 2>/run/lab-err
    echo $? >/run/lab/exit.part
    # What the command left running may hold the pipes open: its later output isn't waited for.
    tries=0
    while kill -0 $out 2>/dev/null || kill -0 $err 2>/dev/null; do
        tries=$((tries + 1))
        test $tries -lt 20 || break
        sleep 0.1
    done
fi
mv /run/lab/exit.part /run/lab/exit
