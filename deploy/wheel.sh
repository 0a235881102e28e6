#!/bin/bash
# Builds the wheel of this checkout and prints its path: one for CPython 3.11 and later, for every
# Linux of its architecture whose glibc is not older than its name says. Installs what it needs on
# a fresh Debian 12 or 13.
set -euo pipefail
# shellcheck source=deploy/setup.sh
. "$(dirname "$0")/setup.sh"

setup_wheel
printf '%s\n' "$repository"/dist/gmemd-*.whl
