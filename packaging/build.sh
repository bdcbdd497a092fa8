#!/bin/bash
# build.sh [DIRECTORY]: Debian packages of this checkout, as it is now, in dist/ or DIRECTORY.
#
# What the build needs is looked at first; root gets it installed, anybody else is told the line
# that installs it (exit status 77).
set -euo pipefail
result=$(realpath -m "${1:-$(dirname "$0")/../dist}")
cd "$(dirname "$0")/.."
# A Python of the user's own must not come before the distribution's.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

# What packages are made of. Named, so that nothing else that lies about gets in.
TREE=(CHANGELOG.md LICENSE README.md pyproject.toml docs etc packaging rolemesh systemd)

build_dependencies_are_there() {
    dpkg-checkbuilddeps packaging/debian/control
}

install_build_dependencies() {
    if ! command -v apt-get >/dev/null; then
        echo "Packages are built on Debian or a relative." >&2
        exit 77
    fi
    # The directory below packaging/ has the name that apt looks for.
    local install="apt-get install --no-install-recommends -y dpkg-dev"
    local build_dep="apt-get build-dep --no-install-recommends -y ./packaging"
    if [ "$(id -u)" != 0 ]; then
        echo "This line installs what the build needs:" >&2
        echo "    sudo apt-get update && sudo $install && sudo $build_dep" >&2
        exit 77
    fi
    apt-get update -q
    export DEBIAN_FRONTEND=noninteractive
    $install
    $build_dep
}

export_tree() {     # export_tree DIRECTORY
    mkdir "$1"
    tar --create --exclude=__pycache__ "${TREE[@]}" | tar --extract --directory="$1"
    cp -r "$1/packaging/debian" "$1/debian"
}

build() {       # build WORK_DIRECTORY: leaves the packages in it
    export_tree "$1/rolemesh"
    (cd "$1/rolemesh" && dpkg-buildpackage --build=binary --no-sign)
}

build_dependencies_are_there 2>/dev/null || install_build_dependencies
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build "$work"
mkdir -p "$result"
rm -f "$result"/rolemesh*.{deb,changes,buildinfo}
cp "$work"/*.deb "$work"/*.changes "$work"/*.buildinfo "$result/"
ls -l "$result"/*.deb
