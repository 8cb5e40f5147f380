#!/usr/bin/env bash
# Python 3.11 as the machine has it, with devcluster and the demo's checks to import: for what must run before the
# set-up, and after .venv has gone. Exit code 64 when there is no such Python.
#
# A distribution's is preferred if it is complete: it is compiled with profiles of its use, where pyenv's is not unless
# told, and it is what the cluster of the tests has. Everything here takes a tenth to a third less CPU time with it.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH="${PATH//"$PWD/.venv/bin:"/}"  # the machine's own, also where make puts .venv first
python="${PYTHON:-}"
distribution=/usr/bin/python3.11
if [ -z "$python" ] && [ -e /usr/include/python3.11/Python.h ] && "$distribution" -c 'import ensurepip' 2> /dev/null; then
  python="$distribution"
fi
python="${python:-$(command -v python3.11 || command -v python3 || true)}"
[ -n "$python" ] || { echo "no python3 found. Install Python 3.11 (Debian: apt-get install python3 python3-venv)." >&2; exit 64; }
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "$python is $("$python" -V 2>&1), Python 3.11 is needed: install it, or set PYTHON to it." >&2; exit 64; }
PYTHONPATH="$PWD/devcluster/src:$PWD/demo/src" exec "$python" "$@"
