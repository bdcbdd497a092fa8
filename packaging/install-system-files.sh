#!/bin/sh
# Installs everything that is not Python: units, users, directories, polkit rule, man pages,
# completion.
#
#     DESTDIR=... [UNITDIR=/usr/lib/systemd/system] packaging/install-system-files.sh
#
# Every kind of package calls it, so that none forgets a file.
set -eu
: "${DESTDIR:?says below which directory to install}"
: "${UNITDIR:=/usr/lib/systemd/system}"
cd "$(dirname "$0")/.."

put() { # put DIRECTORY FILE...
	directory=$DESTDIR$1
	shift
	mkdir -p "$directory"
	install -p -m 0644 "$@" "$directory/"
}

put "$UNITDIR" systemd/*.service systemd/*.target systemd/*.slice
# systemd has no drop-ins for all instances whose names begin alike.
for number in 0 1 2 3 4 5 6 7; do
	put "$UNITDIR/rolemesh-llama@cpu$number.service.d" systemd/rolemesh-llama@cpuN.service.d/*.conf
done
put /usr/lib/sysusers.d systemd/sysusers.d/*.conf
put /usr/lib/tmpfiles.d systemd/tmpfiles.d/*.conf
put /usr/share/polkit-1/rules.d systemd/polkit/*.rules
put /etc/rolemesh/gateway.d etc/gateway.d/README
put /etc/rolemesh/node.d etc/node.d/README
for section in 1 5 8; do
	put "/usr/share/man/man$section" docs/man/*."$section"
done
put /usr/share/bash-completion/completions packaging/bash-completion/rolemeshctl
put /etc/needrestart/conf.d packaging/needrestart/rolemesh.conf
