#!/bin/bash
# Everything that gates a change: lint, types, and the tests on this kernel and in the lab, with one
# summary at the end. Installs what it needs on a fresh Debian 12 or 13; arguments go to pytest.
set -euo pipefail
# shellcheck source=deploy/setup.sh
. "$(dirname "$0")/../deploy/setup.sh"

setup_test
setup_lab
cd "$repository"
export PATH=$venv/bin:$PATH
# Hundreds of processes import the same modules: one compiles them.
unset PYTHONDONTWRITEBYTECODE
exec "$python" -m pytest tests/unit tests/kernel tests/bench tests/numa tests/service "$@"
