#!/bin/bash
# install-venv.sh [remove]: RoleMesh where there is no package of it, in a virtual environment.
#
#     sudo PYTHON=python3.12 packaging/install-venv.sh
#
# The programs and all that they need come to lie in /opt/rolemesh, from this checkout and from
# where pip takes its packages; units, users and the rest where packages have them. Called again it
# upgrades; `remove` takes away what it brought. PYTHON is 3.11 or later (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
home=/opt/rolemesh
manifest=$home/installed-files
units=(rolemesh-gateway.service rolemesh-node-agent.service rolemesh-llama.target)

refuse() {
    echo "install-venv.sh: $1" >&2
    exit 1
}

check() {
    if [ -e /usr/lib/systemd/system/rolemesh-gateway.service ] && [ ! -e "$manifest" ]; then
        refuse "RoleMesh is installed by a package: remove that first"
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        refuse "$python is not Python 3.11 or later: PYTHON=python3.12 $0"
    case $("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))') in
        /home/* | /root/* | /run/user/*) refuse "$python is in a home directory, which no unit sees" ;;
    esac
}

install_programs() {
    "$python" -m venv "$home"
    # Of a copy: pip leaves traces in what it builds from.
    cp -r pyproject.toml README.md LICENSE rolemesh "$work/"
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check "$work[fast]"
}

install_files() {
    local stage=$work/stage program
    DESTDIR=$stage packaging/install-system-files.sh
    mkdir -p "$stage/usr/bin" "$stage/usr/libexec/rolemesh"
    for program in rolemesh-gateway rolemesh-node-agent rolemeshctl; do
        ln -s "$home/bin/$program" "$stage/usr/bin/$program"
    done
    ln -s "$home/bin/rolemesh-llama" "$stage/usr/libexec/rolemesh/rolemesh-llama"
    (cd "$stage" && find . ! -type d -printf '/%P\n' | sort) >"$work/files"
    # What an earlier version had and this one has not.
    if [ -e "$manifest" ]; then
        comm -23 "$manifest" "$work/files" | xargs --no-run-if-empty rm -f
    fi
    cp "$work/files" "$manifest"
    tar --create --directory="$stage" --owner=0 --group=0 . |
        tar --extract --directory=/ --no-overwrite-dir
}

settle() {
    ! command -v restorecon >/dev/null || restorecon -R "$home" /usr/bin/rolemesh* /usr/libexec/rolemesh
    systemd-sysusers rolemesh-common.conf rolemesh-gateway.conf rolemesh-node-agent.conf
    systemd-tmpfiles --create rolemesh-gateway.conf rolemesh-node-agent.conf
    systemctl daemon-reload
    # Those that run hand over to the new program, or start it; the others stay as they are.
    systemctl try-reload-or-restart rolemesh-gateway.service
    systemctl try-restart rolemesh-node-agent.service
}

remove() {
    [ -e "$manifest" ] || refuse "there is no $manifest: nothing was installed by this script"
    systemctl disable --now "${units[@]}" || true
    xargs rm -f <"$manifest"
    sed -n 's,\(/rolemesh[^/]*\)/[^/]*$,\1,p' "$manifest" | sort -u |
        xargs rmdir --ignore-fail-on-non-empty
    rm -rf "$home"
    systemctl daemon-reload
    echo "What is left is yours: /etc/rolemesh, /var/lib/rolemesh, and the users."
}

[ "$(id -u)" = 0 ] || refuse "only root can do that"
if [ "${1:-}" = remove ]; then
    remove
    exit
fi
check
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install_programs
install_files
settle
echo "Installed: $(/usr/bin/rolemesh-gateway --version). To start it:"
echo "    systemctl enable --now ${units[*]}"
