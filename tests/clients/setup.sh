#!/bin/sh
# Installs the real JavaScript and Python clients that the integration tests run, from their lock files.
# Does nothing, and needs no network, when they are there already. Safe to run again at any time.
set -eu
cd "$(dirname "$0")"

fail() {
    echo "tests/clients/setup.sh: $*" >&2
    exit 1
}

# Installs Debian packages as root or through sudo; the rest of us are told what to type.
packages() {
    command -v apt-get >/dev/null || fail "install $* with your package manager, then run this again"
    if [ "$(id -u)" = 0 ]; then
        root=""
    elif command -v sudo >/dev/null; then
        root="sudo"
    else
        fail "as root: apt-get install -y $*"
    fi
    echo "installing $*"
    # An older index is good enough when it has the packages.
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$@" >/dev/null 2>&1 ||
        { $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$@" >/dev/null; } ||
        fail "as root: apt-get install -y $*"
}

current() { # stamp, lock file
    [ -f "$1" ] && [ "$(cat "$1")" = "$(sha256sum <"$2")" ]
}

if ! current js/node_modules/.installed js/package-lock.json; then
    { command -v node && command -v npm; } >/dev/null || packages nodejs npm
    major=$(node -p 'process.versions.node.split(".")[0]')
    if [ "$major" -lt 20 ]; then
        # Debian 12 has 18; the registry has newer ones as packages.
        echo "installing a Node.js for the tests, because $(node -v) is older than v20"
        (cd node && npm ci --silent --no-progress) || fail "npm ci failed in tests/clients/node"
        [ -x node/node_modules/.bin/node ] ||
            fail "Node.js 20 or newer is needed, found $(node -v): see https://nodejs.org/en/download"
    fi
    echo "installing the JavaScript clients"
    (cd js && npm ci --silent --no-progress) || fail "npm ci failed in tests/clients/js"
    sha256sum <js/package-lock.json >js/node_modules/.installed
fi

if ! current python/.venv/.installed python/requirements.txt || ! python/.venv/bin/python -c ''; then
    command -v python3 >/dev/null || packages python3 python3-venv
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed, found $(python3 -V)"
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages python3-venv
    echo "installing the Python client"
    rm -rf python/.venv
    python3 -m venv python/.venv || fail "python3 -m venv failed: apt-get install -y python3-venv"
    python/.venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r python/requirements.txt ||
        fail "pip install failed in tests/clients/python"
    sha256sum <python/requirements.txt >python/.venv/.installed
fi
