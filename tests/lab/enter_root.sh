#!/bin/bash
# enter_root.sh SCRATCH LOWER WHERE [ro|rw SOURCE TARGET]... -- COMMAND...: runs COMMAND in a root.
#
# Its root is an overlay of SCRATCH over LOWER: whatever it writes is in SCRATCH, but for what it is
# lent to write in (rw). It is called in a mount namespace of its own, so nothing is left mounted.
set -euo pipefail
scratch=$1 lower=$2 where=$3
shift 3

mkdir -p "$scratch"/{upper,work,root}
root=$scratch/root
mount -t overlay -o "lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
    mkdir -p "$root$3"
    mount --bind "$2" "$root$3"
    [ "$1" = rw ] || mount -o remount,bind,ro "$root$3"
    shift 3
done
shift
# A network of its own has but a loopback device, and that is down.
ip link set lo up
# Not chroot: who enters this mount namespace later (podman exec) is to come out here, too.
cd "$root"
pivot_root . mnt
umount --lazy /mnt
exec /usr/bin/env --chdir="$where" -- "$@"
