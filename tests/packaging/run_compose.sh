#!/bin/bash
# run_compose.sh BASE MODEL: what docs/install.md says of containers, done; for a root with the tools.
#
# Builds the image from BASE, a .tar.zst with a Debian in place of one that has llama-server, which is
# shown at /app, and runs compose.yaml. In /results there is then what each step said.
set -euo pipefail
base=$1 model=$2

# Podman wants the one kind of control groups, and would raise limits that may not be raised here.
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /etc/containers
cat >/etc/containers/containers.conf <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
cgroups = "disabled"
[engine]
events_logger = "file"
END
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=overlay
export LLAMA_IMAGE=localhost/base ROLEMESH_USER=1234:1234 ROLEMESH_MODELS=/models

into() {        # into NAME COMMAND...
    local name=$1
    shift
    "$@" >"/results/$name" 2>&1
}

import_base() {
    zstd --decompress --stdout "$base" |
        podman import --quiet --change 'ENV LLAMA_ARG_HOST=0.0.0.0' - localhost/bare
    # Everything is in there already, and nothing can be reached.
    printf 'FROM localhost/bare\nRUN rm -f /etc/apt/sources.list\n' | podman build -t localhost/base -f -
}

configure() {
    cp -r /source/packaging/oci /project
    cd /project
    printf client-key >client.key
    printf node-key >node.key
    chown 1234:1234 client.key node.key
    chmod 600 client.key node.key
    cat >node.d/60-coder.yaml <<END
llama_server: {path: /app/bin-at-app/llama-server}
models: [{model_id: tiny, path: /var/lib/rolemesh/models/$model, roles: [coder], context_size: 1024}]
END
    sed -i -e 's,context: ../..,context: /source,' -e 's,- ./node.d,- /app:/app:ro\n      - ./node.d,' \
        compose.yaml
}

ask() {
    curl --silent --show-error --fail --retry 60 --retry-delay 1 --retry-all-errors \
        -H 'Authorization: Bearer client-key' http://127.0.0.1:8000/v1/chat/completions \
        -d '{"model": "coder", "messages": [{"role": "user", "content": "Hello"}]}' 2>/results/retries
}

into import import_base
configure
into build podman-compose build
into up podman-compose up --detach
into answer ask
into models curl --silent http://127.0.0.1:8000/v1/models
for name in gateway node; do
    into "$name.health" podman healthcheck run "rolemesh_${name}_1"
    into "$name.rights" podman exec "rolemesh_${name}_1" cat /proc/1/status
    into "$name.write" podman exec "rolemesh_${name}_1" sh -c 'touch /usr/x; touch /etc/rolemesh/x' || true
done
into status podman exec rolemesh_gateway_1 rolemeshctl status
into state podman exec rolemesh_gateway_1 find /var/lib/rolemesh/gateway -type f
for name in gateway node; do
    into "$name.log" podman logs "rolemesh_${name}_1"
done
into down podman-compose down
