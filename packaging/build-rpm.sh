#!/bin/bash
# build-rpm.sh [DIRECTORY]: rpms of this checkout, as it is now, in dist/ or DIRECTORY.
#
# RPM_TARGETS says for which distributions, by their Python and the end of a release's name:
# "3.14:.fc43 3.12:.el10". This is for Debian, which has none of Fedora's macros; on Fedora itself the
# .src.rpm builds in mock. What the build needs is looked at first; root gets it installed, anybody
# else is told the line that installs it (exit status 77).
set -euo pipefail
result=$(realpath -m "${1:-$(dirname "$0")/../dist}")
cd "$(dirname "$0")/.."
# A Python of the user's own must not come before the distribution's.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
read -ra targets <<<"${RPM_TARGETS:-3.13:.fc42 3.14:.fc43 3.14:.fc44 3.15:.fc45 3.12:.el10}"

build_dependencies_are_there() {
    # setuptools first: in Debian 12 it must come before pip.
    command -v rpmbuild && python3 -c 'import setuptools, pip, wheel, packaging'
}

install_build_dependencies() {
    local install="apt-get install --no-install-recommends -y"
    install+=" python3 python3-packaging python3-pip python3-setuptools python3-wheel rpm"
    if ! command -v apt-get >/dev/null; then
        echo "This builds on Debian or a relative; elsewhere see packaging/rpm/rolemesh.spec." >&2
        exit 77
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "This line installs what the build needs:" >&2
        echo "    sudo apt-get update && sudo $install" >&2
        exit 77
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive $install
}

write_spec() {      # write_spec: the spec with version and changelog, on stdout
    local changelog
    changelog=$(python3 packaging/changelog.py rpm)
    sed -e "s/@VERSION@/$VERSION/" -e '/^@CHANGELOG@$/ {
        r /dev/stdin
        d
    }' packaging/rpm/rolemesh.spec <<<"$changelog"
}

# rpm reads macros from the home directory before it reads a spec.
build() {       # build TOP PYTHON DIST: leaves packages in TOP/RPMS and TOP/SRPMS
    HOME=$1/home rpmbuild -ba --quiet \
        --define "_topdir $1" \
        --define "target_python $2" \
        --define "dist $3" \
        --define "_buildhost localhost" \
        --define "use_source_date_epoch_as_buildtime 1" \
        --define "build_mtime_policy clamp_to_source_date_epoch" \
        --define "clamp_mtime_to_source_date_epoch 1" \
        --nodeps "$1/SPECS/rolemesh.spec"
}

build_dependencies_are_there >/dev/null 2>&1 || install_build_dependencies
. packaging/tree.sh
# A .src.rpm says where it was built. So that two are equal, that is always the same place.
work=/var/tmp/rolemesh-rpm
mkdir -m 700 -p "$work"
if [ ! -O "$work" ] || [ -L "$work" ]; then
    echo "$work belongs to somebody else" >&2
    exit 1
fi
exec 9<"$work"      # two builds at once: the second waits
flock 9
trap 'rm -rf "$work"/*' EXIT
rm -rf "$work"/*
mkdir "$work"/{SOURCES,SPECS,home}
cp packaging/rpm/macros.debian-ci "$work/home/.rpmmacros"
write_spec >"$work/SPECS/rolemesh.spec"
pack_tree "rolemesh-$VERSION" | gzip --no-name -9 >"$work/SOURCES/rolemesh-$VERSION.tar.gz"
touch -d "@$SOURCE_DATE_EPOCH" "$work"/{SOURCES,SPECS}/*
for target in "${targets[@]}"; do
    build "$work" "${target%%:*}" "${target#*:}"
done
mkdir -p "$result"
rm -f "$result"/rolemesh*.rpm
cp "$work"/RPMS/noarch/*.rpm "$work"/SRPMS/*.rpm "$result/"
ls -l "$result"/*.rpm
