#!/bin/bash
# rpm_life.sh RPMS: a life of our rpms (tests/lab/rpms.py) in a root where no systemd runs, as in an
# image that is being made. Each step has its output below a line "== STEP".
set -euo pipefail
rpms=$1
ours=(rolemesh rolemesh-common rolemesh-gateway rolemesh-node-agent)

step() { echo "== $1"; }

everything() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /srv -o -path /tmp \
        -o -path /var/lib/rpm -o -path /var/tmp \) -prune -o -print | sort
}

rpm --install "$rpms"/stand-in/*.rpm
everything >/tmp/before

step install
rpm --install "$rpms"/ours/*.noarch.rpm
step verify
rpm --verify "${ours[@]}"
step users
getent passwd | grep rolemesh | cut -d: -f1,5-
getent group | grep rolemesh | cut -d: -f1
step directories
stat --format='%a %U %G %n' /etc/rolemesh/*.d /var/lib/rolemesh/models /run/rolemesh/llama
step programs
for program in /usr/bin/rolemesh{-gateway,-node-agent,ctl} /usr/libexec/rolemesh/rolemesh-llama; do
    "$program" --version
done
rolemesh-gateway --check
rolemesh-node-agent --check

echo '# mine' >>/etc/rolemesh/gateway.d/README
echo 'listen: {port: 8123}' >/etc/rolemesh/gateway.d/50-mine.yaml
step upgrade
rpm --upgrade "$rpms"/newer/*.noarch.rpm
step 'verify the upgrade'
rpm --verify "${ours[@]}" || true
step 'versions after the upgrade'
rolemesh-gateway --version
step 'kept by the upgrade'
cd /etc/rolemesh/gateway.d
tail -n 1 README
ls

step erase
rpm --erase "${ours[@]}"
step leftovers
everything >/tmp/after
comm -13 /tmp/before /tmp/after
