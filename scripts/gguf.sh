#!/usr/bin/env bash
# Adds llama-cpp-python to .venv, for exports as GGUF and their tests; without it these are refused and skipped. Costs
# nothing where it is there as pinned.
#
# The registry has its source alone: it is compiled, which takes minutes of two cores. uv keeps what was built, under its
# settings, so another checkout takes seconds; so what is included lies in the cache. It is built for any x86-64 machine
# with AVX2, since the cache may move to another.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
as_pinned='import sys, llama_cpp; from importlib.metadata import version
sys.exit(any(version(name) != pin for name, pin in (line.split("==") for line in sys.stdin.read().split())))'
if .venv/bin/python -c "$as_pinned" < constraints/gguf.txt 2> /dev/null; then exit 0; fi
if ! { command -v c++ && command -v make; } > /dev/null; then
  echo "gguf: llama.cpp is compiled here, which needs a C++ compiler (Debian: apt-get install g++ make)." >&2; exit 64
fi

cache="$(scripts/plain-python.sh -c 'from devcluster.config import cache_root; print(cache_root())')"
include="$cache/gguf-$(sha256sum < scripts/gguf.cmake | cut -c1-16).cmake"
cp scripts/gguf.cmake "$include"
settings=(GGML_NATIVE=OFF LLAVA_BUILD=OFF LLAMA_OPENSSL=OFF "CMAKE_PROJECT_llama_cpp_INCLUDE=$include")
echo "gguf: llama-cpp-python (compiled once, for minutes)"
UV_LINK_MODE="${UV_LINK_MODE:-hardlink}" UV_HTTP_TIMEOUT=300 "$cache/uv/bin/uv" pip install -q --python .venv/bin/python \
  --no-deps -r constraints/gguf.txt "${settings[@]/#/-Ccmake.define.}"
.venv/bin/python -c 'import llama_cpp'
