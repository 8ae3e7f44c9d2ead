#!/usr/bin/env bash
# Checks for the Debian packages that software rendering needs. With --install, and as root on Debian or Ubuntu, installs them.
set -euo pipefail

library_present() { ldconfig -p 2>/dev/null | grep -q "$1" || [[ -n "$(find /usr/lib /usr/lib64 -name "$1*" -print -quit 2>/dev/null)" ]]; }

[[ "$(uname -s)" == Linux ]] || exit 0
library_present libOSMesa.so && exit 0

command="apt-get update && apt-get install -y libosmesa6"
if [[ "${1:-}" == --install && "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
    echo "libosmesa6 (software OpenGL for the simulator) is missing; installing it: $command"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libosmesa6 >/dev/null
    library_present libOSMesa.so && exit 0
fi
echo "libosmesa6 (software OpenGL for the simulator) is missing. Install it with:" >&2
echo "    sudo sh -c '$command'" >&2
exit 1
