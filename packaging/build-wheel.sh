#!/bin/bash
# build-wheel.sh [DIRECTORY]: a wheel of this checkout whose hot path is compiled, in dist/ or
# DIRECTORY, for the Python that $PYTHON names (default python3) and this kind of machine.
#
# It takes a C compiler and that Python's headers; pip gets mypyc into a place of the build's own.
set -euo pipefail
result=$(realpath -m "${1:-$(dirname "$0")/../dist}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
. packaging/tree.sh

BUILD_REQUIRES='requires = ["setuptools>=77", "mypy==2.4.1", "types-PyYAML", "types-jsonschema"]'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/rolemesh
export_tree "$tree"
cp packaging/wheel/setup.py "$tree/"
sed -i "s|^requires = .*|$BUILD_REQUIRES|" "$tree/pyproject.toml"
# Symbols are half of its size, and tell where it was built.
export LDFLAGS="${LDFLAGS:-} -Wl,--strip-all"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$tree"
mkdir -p "$result"
rm -f "$result"/rolemesh-*.whl
cp "$work"/wheel/*.whl "$result/"
ls -l "$result"/*.whl
