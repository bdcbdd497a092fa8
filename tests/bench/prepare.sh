#!/bin/bash
# prepare.sh: makes this machine able to run the benchmark, after .venv has been made.
#
# nginx and a C compiler come from the system; vllm-router gets a virtual environment of its own in
# the user's cache. On Debian 12 .venv/debian12 is made: this checkout on the distribution's own
# Python and packages. Root gets missing packages installed; anybody else is told the one line that
# installs them. Whatever cannot be had fails.
set -euo pipefail
cd "$(dirname "$0")/../.."

PATH=$PATH:/usr/sbin
python=${PYTHON:-python3}
system_python=/usr/bin/python3
vllm_router=${XDG_CACHE_HOME:-$HOME/.cache}/rolemesh/bench/vllm-router
debian12=.venv/debian12

missing=()      # the Debian packages that bring what is missing

need() {        # need PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

c_compiler_has_libc() { echo '#include <stdlib.h>' | gcc -E -; }

is_debian12() { grep -qx 'ID=debian' /etc/os-release && grep -qx 'VERSION_ID="12"' /etc/os-release; }

look_for_prerequisites() {
    missing=()
    need nginx command -v nginx
    need gcc command -v gcc
    need libc6-dev c_compiler_has_libc
    if is_debian12; then
        need python3-venv "$system_python" -c 'import ensurepip, venv'
        local module
        for module in aiohttp httptools jeepney jsonschema sdnotify systemd uvloop yaml; do
            need "python3-$module" "$system_python" -c "import $module"
        done
    fi
}

# A web server that is installed for a comparison must not begin to serve this machine's port 80.
without_services() {
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        "$@"
        return
    fi
    (
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        "$@"
    )
}

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    local apt="apt-get install --no-install-recommends -y ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "Missing here (by Debian's package names): ${missing[*]}. Install them, then try again." >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "Missing here: ${missing[*]}. This line installs it:" >&2
        echo "    sudo apt-get update && sudo $apt" >&2
        exit 1
    fi
    echo "Installing ${missing[*]}"
    apt-get update -q
    without_services env DEBIAN_FRONTEND=noninteractive $apt
    look_for_prerequisites
    if [ ${#missing[@]} -gt 0 ]; then
        echo "Still missing: ${missing[*]}." >&2
        exit 1
    fi
}

# Without its declared dependencies, of which it needs few to run.
install_vllm_router() {
    [ ! -e "$vllm_router/.complete" ] || return 0
    echo "Installing vllm-router into $vllm_router"
    if ! "$python" -m venv --clear "$vllm_router" ||
        ! "$vllm_router/bin/python" -m pip install --quiet --no-deps "vllm-router==0.1.*" ||
        ! "$vllm_router/bin/python" -m pip install --quiet aiohttp fastapi orjson requests setproctitle uvicorn
    then
        echo "vllm-router, which RoleMesh is measured beside, could not be installed." >&2
        exit 1
    fi
    touch "$vllm_router/.complete"
}

# This checkout on Debian's own packages: a path, and the three commands.
install_on_debian12() {
    is_debian12 || return 0
    [ -x "$debian12/bin/python" ] ||
        "$system_python" -m venv --system-site-packages --without-pip "$debian12"
    local packages program module
    packages=$("$debian12/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    pwd >"$packages/rolemesh.pth"
    for program in gateway:gateway node-agent:agent llama:llama; do
        module=rolemesh.${program#*:}.main
        program=$debian12/bin/rolemesh-${program%:*}
        printf '#!%s\nimport sys\n\nfrom %s import main\n\nsys.exit(main())\n' \
            "$PWD/$debian12/bin/python" "$module" >"$program"
        chmod +x "$program"
    done
}

look_for_prerequisites
install_missing
install_vllm_router
install_on_debian12
