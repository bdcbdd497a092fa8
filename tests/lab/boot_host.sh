#!/bin/bash
# boot_host.sh NAME FOLDER LOWER CGROUP NAMESPACE [OPTION...]: becomes the systemd-nspawn of one host.
#
# Its root is an overlay of FOLDER/upper over LOWER, so what it writes outlives it. It is called in
# a mount namespace of its own, which ends with it: nothing that is mounted here is ever seen or
# left elsewhere.
set -euo pipefail
name=$1 folder=$2 lower=$3 cgroup=$4 namespace=$5
shift 5

# The host gets a tree of control groups of its own, of the one kind that systemd wants.
echo $$ > "$cgroup/cgroup.procs"
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup

mkdir -p "$folder"/{upper,work,root}
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root"

# Where nspawn notes its machines: ours are nobody else's business.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn

# With bpf let in, IPAddressDeny=, DeviceAllow= and SocketBindDeny= of units work in there;
# otherwise they would silently do nothing.
exec systemd-nspawn --quiet --register=no --keep-unit --directory="$folder/root" --machine="$name" \
    --boot --console=pipe --network-namespace-path="$namespace" --resolv-conf=off --timezone=off \
    --link-journal=no --capability=CAP_BPF,CAP_PERFMON,CAP_NET_ADMIN --system-call-filter=bpf \
    "$@" systemd.journald.forward_to_console=0
