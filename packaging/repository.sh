#!/bin/bash
# repository.sh KEY PACKAGES OUT URL: adds packages to a signed repository for apt and dnf.
#
#     packaging/repository.sh 0x1234… dist public https://example.org/rolemesh
#
# KEY names a secret key in gpg's own keyring ($GNUPGHOME), which is where it stays. PACKAGES is a
# folder with .deb and .noarch.rpm files. OUT is new or of an earlier call, whose packages stay in
# it; it is what a web server shows at URL:
#
#     rolemesh.asc                      the public key
#     rolemesh.sources                  what users put into /etc/apt/sources.list.d
#     rolemesh-{fedora,el}.repo         the same for /etc/yum.repos.d
#     apt/                              packages, Packages, Release, InRelease
#     rpm/fc43/, rpm/el10/, …           packages, signed themselves, and repodata/, by release
#
# An exit status of 77 says that a program is missing.
set -euo pipefail
if [ $# != 4 ]; then
    echo "usage: $0 KEY PACKAGES OUT URL" >&2
    exit 64
fi
key=$1 packages=$(realpath "$2") out=$(realpath -m "$3") url=${4%/}
shopt -s nullglob
# Sources are not for those who install: *.noarch.rpm, not *.src.rpm.
debs=("$packages"/*.deb) rpms=("$packages"/*.noarch.rpm)

require() {     # require DEBIAN_PACKAGE PROGRAM
    command -v "$2" >/dev/null && return
    echo "$2 is missing here; Debian has it in $1." >&2
    exit 77
}

sign() {        # sign OPTION... FILE
    gpg --batch --yes --quiet --local-user "$key" "$@"
}

add_debs() {
    mkdir -p "$out/apt"
    cp "${debs[@]}" "$out/apt/"
    cd "$out/apt"
    rm -f Release* InRelease
    apt-ftparchive packages . >Packages
    gzip --best --no-name --keep --force Packages
    apt-ftparchive -o APT::FTPArchive::Release::Origin=RoleMesh \
        -o APT::FTPArchive::Release::Label=RoleMesh \
        -o APT::FTPArchive::Release::Architectures=all release . >"$out/Release.part"
    mv "$out/Release.part" Release
    # Clients take the first; programs that copy repositories may want the second.
    sign --clearsign --output InRelease Release
    sign --armor --detach-sign --output Release.gpg Release
    cat >"$out/rolemesh.sources" <<END_OF_FILE
Types: deb
URIs: $url/apt
Suites: ./
Signed-By: /etc/apt/keyrings/rolemesh.asc
END_OF_FILE
}

add_rpm() {     # add_rpm FILE: it is copied before it is signed
    local release name=${1##*/}
    release=$(rpm --query --package --nosignature --queryformat '%{release}' "$1")
    release=$out/rpm/${release##*.}
    mkdir -p "$release"
    cp "$1" "$release/"
    rpmsign --define "_gpg_name $key" --addsign "$release/$name" >/dev/null
}

index_rpms() {  # index_rpms DIRECTORY
    createrepo_c --quiet "$1"
    sign --armor --detach-sign --output "$1/repodata/repomd.xml.asc" "$1/repodata/repomd.xml"
}

add_rpms() {
    local each
    for each in "${rpms[@]}"; do
        add_rpm "$each"
    done
    for each in "$out"/rpm/*/; do
        index_rpms "${each%/}"
    done
    # EL 10.1 takes the packages of EL 10.
    write_repo fedora 'fc$releasever'
    write_repo el 'el$releasever_major'
}

write_repo() {  # write_repo NAME DIRECTORY
    cat >"$out/rolemesh-$1.repo" <<END_OF_FILE
[rolemesh]
name=RoleMesh
baseurl=$url/rpm/$2
enabled=1
gpgcheck=1
repo_gpgcheck=1
gpgkey=$url/rolemesh.asc
END_OF_FILE
}

if [ ${#debs[@]} = 0 ] && [ ${#rpms[@]} = 0 ]; then
    echo "$packages has neither .deb nor .noarch.rpm files" >&2
    exit 1
fi
require gnupg gpg
[ ${#debs[@]} = 0 ] || require apt-utils apt-ftparchive
[ ${#rpms[@]} = 0 ] || { require createrepo-c createrepo_c && require rpm rpmsign; }
gpg --batch --quiet --list-secret-keys "$key" >/dev/null
mkdir -p "$out"
sign --armor --export "$key" >"$out/rolemesh.asc"
[ ${#debs[@]} = 0 ] || (add_debs)
[ ${#rpms[@]} = 0 ] || (add_rpms)
