#!/bin/sh
# Installs what the pages and their tests need, from the lock file. Does nothing when it is there already.
#   setup.sh [FOLDER]    FOLDER has another lock file, relative to this folder
set -eu
cd "$(dirname "$0")"
folder=${1:-.}

fail() {
    echo "examples/web/setup.sh: $*" >&2
    exit 1
}

new_enough() {
    ./with-node node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null
}

sum=$(sha256sum <"$folder/package-lock.json")
if [ -f "$folder/node_modules/.installed" ] && [ "$(cat "$folder/node_modules/.installed")" = "$sum" ] && new_enough; then exit 0; fi
# Brings a Node.js where the system's is missing or too old.
new_enough || ../../tests/clients/setup.sh
new_enough || (cd ../../tests/clients/node && npm ci --silent --no-progress) || fail "Node.js 20.19 or newer is needed"
new_enough || fail "Node.js 20.19 or newer is needed, found $(node -v): see https://nodejs.org/en/download"
echo "installing the pages' packages"
./with-node npm --prefix "$folder" ci --silent --no-progress || fail "npm ci failed (npm 11 is needed: npm --version prints $(npm --version))"
echo "$sum" >"$folder/node_modules/.installed"
