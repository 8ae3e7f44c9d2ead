#!/usr/bin/env bash
# Usage: scripts/install.sh VENV EXTRAS. Creates VENV with a supported Python and installs the project, editable, at the tested versions.
# TORCH_INDEX_URL=... chooses where torch comes from (a CPU-only or a particular CUDA build); a torch that is already in VENV is kept.
set -euo pipefail

venv=$1
extras=$2

supported() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.12 python3.11 python3.10; do
        if supported "$candidate"; then echo "$candidate" && return; fi
    done
    echo "No Python 3.10-3.12 with venv and pip was found. On Debian or Ubuntu: apt-get install -y python3 python3-venv python3-pip" >&2
    return 1
}

[[ -x "$venv/bin/python" ]] || "$(find_python)" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade "pip>=24"
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    echo "$venv: installing $(grep -E '^torch==' constraints.txt), the largest download: 0.2 GB for a CPU, several GB with CUDA"
    "$venv/bin/python" -m pip install --quiet "$(grep -E '^torch==' constraints.txt)" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
fi
echo "$venv: installing the project and what it needs (${extras//,/, }): some minutes without another word"
# Without setuptools' warning of folders that are called like packages, which says nothing of this project.
PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable ".[$extras]"
echo "$venv is ready; commands of the documents want it active: source $venv/bin/activate"
