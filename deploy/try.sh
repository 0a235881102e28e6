#!/bin/bash
# Tries gmemd out: the daemon with a demo VM of two guest nodes, on this very machine.
#
#   deploy/try.sh               installs what is missing, starts it, shows it, stays until Ctrl-C
#   deploy/try.sh --once        exits instead: 0 if all memory is where it should be
#   deploy/try.sh --lab         the same in an emulated hypervisor of four NUMA nodes, with one more
#                               VM that drifts on purpose; --lab --once: 0 if the drift was found
#
# Everything it starts ends with it; its files are in a folder of its own below /tmp.
set -euo pipefail
# shellcheck source=deploy/setup.sh
. "$(dirname "$0")/setup.sh"

lab=no
options=()
for argument in "$@"; do
    case $argument in
    --once) options+=(--once) ;;
    --lab) lab=yes ;;
    -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
    *)
        say "unknown argument $argument" >&2
        echo "hint: deploy/try.sh [--lab] [--once]" >&2
        exit 2
        ;;
    esac
done

setup_run
cd "$repository"
export PYTHONPATH=$repository
if test $lab = no; then
    exec "$python" deploy/demo.py "${options[@]}"
fi
setup_lab
exec "$python" -m tests.lab run --timeout 864000 -- python3 deploy/demo.py --lab "${options[@]}"
