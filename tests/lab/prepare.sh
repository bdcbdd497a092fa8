#!/bin/bash
# prepare.sh LEVEL: makes .venv able to run the demo (LEVEL lab) or the tests (LEVEL test).
#
# What the machine itself must have for that is looked at first. On Debian and its relatives root
# gets what is missing installed; anybody else is told the one line that installs it.
# PYTHON names the interpreter to use (default python3). pip takes its indexes from the machine's
# own configuration.
set -euo pipefail
cd "$(dirname "$0")/../.."

level=$1
python=${PYTHON:-python3}
venv=.venv

missing=()      # the Debian packages that bring what is missing

check_python_is_there() {       # python3 is installed where it is missing, any other is not
    [ "$python" = python3 ] || command -v "$python" >/dev/null && return 0
    echo "PYTHON=$python: no such program" >&2
    exit 1
}

need() {        # need PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

python_can_make_venvs() { "$python" -c 'import ensurepip, venv'; }

# A python3 without its headers is Debian's; any other build brings them along.
python_has_headers() {
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
}

nginx_is_there() { PATH=$PATH:/usr/sbin command -v nginx; }

c_compiler_has_libc() { echo '#include <stdlib.h>' | gcc -E -; }

look_for_prerequisites() {
    missing=()
    need python3 command -v "$python"
    need python3-venv python_can_make_venvs
    if [ "$level" = test ]; then
        need gcc command -v gcc
        need libc6-dev c_compiler_has_libc
        need pkg-config command -v pkg-config
        need libsystemd-dev pkg-config --exists libsystemd
        need python3-dev python_has_headers
        need dbus-daemon command -v dbus-daemon
        need openssl command -v openssl
        need curl command -v curl
        need nginx nginx_is_there
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            look_for_what_hosts_need
        fi
    fi
}

# Without these, or as anybody but root, the tests that need hosts are skipped.
look_for_what_hosts_need() {
    need systemd-container command -v systemd-nspawn
    need mmdebstrap command -v mmdebstrap
    need iproute2 command -v ip
    need zstd command -v zstd
}

# A web server that is installed to be compared with must not begin to serve this machine's port 80.
without_services() {
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        "$@"
        return
    fi
    (
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        "$@"
    )
}

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    local apt="apt-get install --no-install-recommends -y ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "Missing here (by Debian's package names): ${missing[*]}. Install them, then try again." >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "Missing here: ${missing[*]}. This line installs it:" >&2
        echo "    sudo apt-get update && sudo $apt" >&2
        exit 1
    fi
    echo "Installing ${missing[*]}"
    apt-get update -q
    without_services env DEBIAN_FRONTEND=noninteractive $apt
    look_for_prerequisites
    if [ ${#missing[@]} -gt 0 ]; then
        echo "$(command -v "$python") still lacks what these packages bring: ${missing[*]}." >&2
        echo "If it is not the distribution's python3, try: make PYTHON=/usr/bin/python3" >&2
        exit 1
    fi
}

check_python_version() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && return 0
    echo "RoleMesh needs Python 3.11 or newer, $python is $("$python" -V 2>&1)." >&2
    echo "With a newer one installed: make PYTHON=python3.12" >&2
    exit 1
}

make_venv() {
    # An interpreter that was upgraded or removed leaves a .venv that does not run.
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
}

install_project() {
    echo "Installing rolemesh[$level] into $venv"
    # The build tools are installed once, rather than once for each source package.
    "$venv/bin/python" -m pip install --quiet "setuptools>=70.1" wheel
    "$venv/bin/python" -m pip install --quiet --no-build-isolation --editable ".[$level]"
    if [ "$level" = test ]; then
        touch "$venv/.has-lab"
    fi
    touch "$venv/.has-$level"
}

exec 9>.venv.lock       # two makes at once: the second waits, then finds the work done
flock 9
if [ "$venv/.has-$level" -nt pyproject.toml ] && [ "$venv/.has-$level" -nt rolemesh/__init__.py ]; then
    exit 0
fi
check_python_is_there
look_for_prerequisites
install_missing
check_python_version
make_venv
install_project
