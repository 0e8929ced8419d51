#!/bin/sh
# Installs what is missing on this machine, or says in one line what to install.
#   tools/setup.sh cc postgres chromium
# On Debian and its kin it installs with apt-get, as root or through sudo. It changes nothing that is
# there already, and makes no database cluster: the daemon runs its own.
set -eu

say() { printf 'setup: %s\n' "$*" >&2; }

# Runs a command as root, or fails.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

can_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null 2>&1
}

updated=no
apt_install() {
    if [ "$updated" = no ]; then
        as_root apt-get update -qq >/dev/null || return 1
        updated=yes
    fi
    say "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# need WHAT "how to install it by hand" PACKAGE…
need() {
    what=$1 by_hand=$2
    shift 2
    if can_install && apt_install "$@"; then return; fi
    say "$what is missing: $by_hand"
    exit 1
}

has_postgres() {
    [ -z "${CONVOKE_DATABASE__BIN_DIR:-}" ] || return 0
    for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb /opt/homebrew/opt/postgresql*/bin/initdb \
        /usr/local/opt/postgresql*/bin/initdb "$(command -v initdb 2>/dev/null || true)"; do
        [ -x "$initdb" ] && return 0
    done
    return 1
}

# The tests use the headless build, which needs a quarter of the processor time, where there is one
# (examples/web/tests/browser/harness/chromium.ts has the same paths).
has_chromium() {
    if [ -n "${CHROMIUM:-}" ]; then [ -x "$CHROMIUM" ]; else [ -x /usr/bin/chromium-headless-shell ]; fi
}

# A Chromium that is there already serves if the headless build cannot be installed.
install_chromium() {
    [ -z "${CHROMIUM:-}" ] || return 1
    if can_install; then
        if [ ! -x /usr/bin/chromium ] || apt-cache show chromium-headless-shell >/dev/null 2>&1; then
            if apt_install chromium-headless-shell; then return; fi
        fi
    fi
    [ -x /usr/bin/chromium ] || { can_install && apt_install chromium; }
}

# The newest server of the distribution, without the cluster that Debian makes and starts with it.
install_postgres() {
    can_install || return 1
    apt_install postgresql-common || return 1
    package=$(apt-cache pkgnames postgresql- | grep -E '^postgresql-[0-9]+$' | sort -t- -k2 -n | tail -n 1)
    [ -n "$package" ] || return 1
    conf=/etc/postgresql-common/createcluster.conf
    kept=$(mktemp)
    as_root cp "$conf" "$kept" 2>/dev/null || : >"$kept"
    printf 'create_main_cluster = false\n' | as_root tee -a "$conf" >/dev/null || return 1
    installed=yes
    apt_install "$package" || installed=no
    as_root cp "$kept" "$conf"
    as_root rm -f "$kept"
    [ "$installed" = yes ]
}

for part in "$@"; do
    case $part in
        cc)
            command -v cc >/dev/null 2>&1 ||
                need "a C compiler" "sudo apt-get install build-essential (or your system's equivalent)" build-essential
            ;;
        postgres)
            if ! has_postgres && ! install_postgres; then
                say "the PostgreSQL server (14 or later) is missing: sudo apt-get install postgresql (or your system's equivalent)"
                exit 1
            fi
            ;;
        chromium)
            if ! has_chromium && ! install_chromium; then
                say "Chromium is missing: sudo apt-get install chromium-headless-shell (or chromium), or set CHROMIUM to its program"
                exit 1
            fi
            ;;
        *)
            say "unknown part $part"
            exit 64
            ;;
    esac
done
