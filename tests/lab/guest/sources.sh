#!/bin/sh
# mmdebstrap setup hook: adds the backports suite, taken from the mirror lines that mmdebstrap wrote.
# $1: the new root.
set -eu
list="$1/etc/apt/sources.list"
suite=$(sed -n 's/^deb .* \([a-z]*\) main$/\1/p' "$list" | head -n 1)
sed -n "s/^\(deb .*\) $suite main\$/\1 $suite-backports main/p" "$list" | head -n 1 \
    >"$1/etc/apt/sources.list.d/backports.list"
test -s "$1/etc/apt/sources.list.d/backports.list"
