#!/bin/bash
# build.sh [deb|rpm|all] [DIRECTORY]: packages of this checkout, as it is now, in dist/ or DIRECTORY.
#
# Without a kind: Debian packages, binary and source, and a bill of materials (CycloneDX). What the
# build needs is looked at first; root gets it installed, anybody else is told the line that
# installs it (exit status 77).
set -euo pipefail
kind=deb
case ${1:-} in deb | rpm | all)
    kind=$1
    shift
    ;;
esac
result=$(realpath -m "${1:-$(dirname "$0")/../dist}")
cd "$(dirname "$0")/.."
# A Python of the user's own must not come before the distribution's.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

build_dependencies_are_there() {
    dpkg-checkbuilddeps packaging/debian/control
}

install_build_dependencies() {
    if ! command -v apt-get >/dev/null; then
        echo "Packages are built on Debian or a relative." >&2
        exit 77
    fi
    # The directory below packaging/ has the name that apt looks for.
    local install="apt-get install --no-install-recommends -y dpkg-dev python3"
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

build_debs() {      # build_debs WORK_DIRECTORY: leaves the packages in it
    local tree=$1/rolemesh-$VERSION
    export_tree "$tree"
    pack_tree "rolemesh-$VERSION" | gzip --no-name -9 >"$1/rolemesh_$VERSION.orig.tar.gz"
    cp -a "$tree/packaging/debian" "$tree/debian"
    python3 packaging/changelog.py debian >"$tree/debian/changelog"
    (cd "$tree" && dpkg-buildpackage --build=full --no-sign)
}

if [ "$kind" != rpm ]; then
    build_dependencies_are_there 2>/dev/null || install_build_dependencies
    . packaging/tree.sh
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    build_debs "$work"
    mkdir -p "$result"
    rm -f "$result"/rolemesh*.{deb,dsc,changes,buildinfo,cdx.json} "$result"/rolemesh*.{orig,debian}.tar.*
    cp "$work"/rolemesh_* "$work"/rolemesh-*.deb "$result/"
    python3 packaging/sbom.py "$VERSION" >"$result/rolemesh-$VERSION.cdx.json"
    ls -l "$result"/*.deb
fi
if [ "$kind" != deb ]; then
    packaging/build-rpm.sh "$result"
fi
