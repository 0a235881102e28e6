# What tests/run.sh and deploy/try.sh both need on a fresh Debian 12 or 13. Sourced, not run.
# shellcheck shell=bash
#
#   setup_run      what the checkout needs to run: a virtual environment at .venv, the extension
#   setup_test     the tests' needs besides: linters, test libraries, promtool, the wheel
#   setup_wheel    what builds the wheel, and the wheel in dist/
#   setup_lab      what builds and runs the lab: QEMU, mmdebstrap, e2fsprogs
#
# Each installs only what is missing, so the second time it takes no time and needs no network.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repository/.venv
stamp=$venv/.gmemd-installed
python=$venv/bin/python

say() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

die() {
    say "$1"
    test $# -lt 2 || printf 'hint: %s\n' "$2" >&2
    exit 3
}

setup_run() {
    _packages python3:python3 gcc:gcc _c_headers:libc6-dev _python_headers:python3-dev _venv:python3-venv
    _environment ".[run]"
    _extension
}

setup_test() {
    _packages python3:python3 gcc:gcc _c_headers:libc6-dev _python_headers:python3-dev _venv:python3-venv \
        shellcheck:shellcheck git:git numastat:numactl curl:curl openssl:openssl
    _environment ".[test]"
    _extension
    _promtool
    _wheel
}

setup_wheel() {
    _packages python3:python3 gcc:gcc _c_headers:libc6-dev _python_headers:python3-dev _venv:python3-venv
    _environment ".[run]"
    _wheel
}

setup_lab() {
    _packages qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs mount:mount
    test "$(id -u)" -eq 0 || _packages newuidmap:uidmap
}

# Arguments NEED:PACKAGE. A need is a program, or a function here that tells whether it is met.
_packages() {
    local pair missing=()
    for pair in "$@"; do
        _has "${pair%%:*}" || missing+=("${pair#*:}")
    done
    test ${#missing[@]} -gt 0 || return 0
    command -v apt-get >/dev/null ||
        die "missing: ${missing[*]}" "these are Debian's package names; install yours"
    say "installing ${missing[*]}"
    _quietly _as_root apt-get update
    _quietly _as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}"
}

# Runs a command and shows its output only if it fails.
_quietly() {
    local log
    log=$(mktemp)
    "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        rm -f "$log"
        die "failed: $*"
    }
    rm -f "$log"
}

_has() {
    case $1 in
    _*) "$1" ;;
    *) command -v "$1" >/dev/null || test -x "/usr/sbin/$1" || test -x "/sbin/$1" ;;
    esac
}

_c_headers() {
    test -e /usr/include/stdlib.h
}

_python_headers() {
    command -v python3 >/dev/null && python3 - <<'PROBE'
import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())
PROBE
}

_venv() {
    command -v python3 >/dev/null && python3 -c 'import ensurepip, venv' 2>/dev/null
}

_as_root() {
    if test "$(id -u)" -eq 0; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed for: $*" "run that as root, then this again"
    fi
}

# The virtual environment with the checkout's dependencies; $1 is the requirement, whose extra
# names what is installed. Anew when pyproject.toml has changed since.
_environment() {
    local wanted
    wanted="$1 $(cat "$repository/pyproject.toml" "$repository/setup.py" | sha256sum)"
    if test -x "$python" && grep -qxF "$wanted" "$stamp" 2>/dev/null; then
        return 0
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            die "$(python3 --version) is too old" "gmemd needs Python 3.11"
        say "making a virtual environment at $venv"
        python3 -m venv --clear "$venv"
    fi
    say "installing Python packages"
    "$python" - "$repository/pyproject.toml" "$1" <<'LIST' >"$venv/.gmemd-requirements"
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)
wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
if sys.argv[2] == ".[test]":
    wanted += project["project"]["optional-dependencies"]["test"]
print("\n".join(wanted))
LIST
    "$python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$venv/.gmemd-requirements"
    cat >"$venv/bin/gmemd" <<SCRIPT
#!/bin/sh
# The checkout's gmemd.
PYTHONPATH='$repository' exec '$python' -m gmemd "\$@"
SCRIPT
    chmod +x "$venv/bin/gmemd"
    # What the tests need includes what a run needs.
    printf '%s\n' "$wanted" ".[run] ${wanted#* }" >"$stamp"
}

# The kernel extension, in place; again when its source is newer.
_extension() {
    local built
    built=$(find "$repository/gmemd/kernel" -name '_kernel*.so' | head -n 1)
    if test -n "$built" &&
        test -z "$(find "$repository/gmemd/kernel" \( -name 'build.py' -o -name '*.h' -o -name '*.c' \) -newer "$built")"; then
        return 0
    fi
    say "building the kernel extension"
    _quietly env -C "$repository" "$python" gmemd/kernel/build.py
}

# The wheel, in dist/: the same bytes from the same commit, compiler and Python, in whatever folder.
# What an earlier build left would go into it, and so would debugging information and the library
# paths of the Python that builds it.
_wheel() {
    local epoch
    epoch=$(git -C "$repository" log -1 --format=%ct 2>/dev/null) || epoch=
    say "building the wheel"
    rm -rf "$repository/build" "$repository"/dist/gmemd-*.whl
    _quietly env -C "$repository" SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-${epoch:-315532800}}" \
        CC=gcc LDSHARED="gcc -shared -Wl,--strip-all" \
        "$python" -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation \
        --wheel-dir dist .
    rm -rf "$repository/build" "$repository/gmemd.egg-info"
}

# promtool alone: the whole package would start a Prometheus on this machine.
_promtool() {
    local unpacked
    if command -v promtool >/dev/null || test -x "$venv/bin/promtool"; then
        return 0
    fi
    command -v apt-get >/dev/null || return 0
    say "fetching promtool"
    unpacked=$(mktemp -d)
    chmod 755 "$unpacked"
    if (cd "$unpacked" && apt-get -qq download prometheus 2>/dev/null && dpkg-deb -x prometheus_*.deb .); then
        install "$unpacked/usr/bin/promtool" "$venv/bin/promtool"
    else
        say "promtool can't be had: its test is left to the lab, which has Prometheus"
    fi
    rm -rf "$unpacked"
}
