# tree.sh: what all builds share. To be sourced, by a shell (bash) in the root of the checkout.
#
# Sets VERSION, and exports SOURCE_DATE_EPOCH: equal trees give equal packages, whoever builds them.

# What packages are made of. Named, so that nothing else that lies about gets in.
TREE=(CHANGELOG.md LICENSE README.md pyproject.toml docs etc packaging rolemesh systemd)

# Assigned first: `export NAME=$(...)` would hide a failure.
VERSION=$(python3 packaging/changelog.py version)
SOURCE_DATE_EPOCH=$(python3 packaging/changelog.py epoch)
export SOURCE_DATE_EPOCH
umask 022

# pack_tree NAME: the tree as a tar, on stdout, in a directory NAME. Equal trees give equal tars,
# whoever's umask and clock they were checked out by.
pack_tree() {
    tar --create --format=gnu --sort=name --exclude=__pycache__ --exclude-backups \
        --owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX --mtime="@$SOURCE_DATE_EPOCH" \
        --transform="s,^,$1/,S" "${TREE[@]}"
}

# export_tree DIRECTORY: the tree, in a new directory.
export_tree() {
    local name
    name=$(basename "$1")
    pack_tree "$name" | tar --extract --no-same-owner --preserve-permissions --directory="$(dirname "$1")"
}
