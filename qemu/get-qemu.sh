#!/usr/bin/env bash
# Prints the path of a QEMU that has vfio-user-pci (QEMU 10.1 or newer).
#
# QEMU=path        use that one, or fail with status 2
# otherwise        the machine's own, if it is new enough; else one fetched before; else one fetched
#                  now from the Debian mirror that this machine's apt already uses.
#
# Nothing of the machine is changed and no root is needed: apt works on a state of its own, and the
# packages are unpacked into ${XDG_CACHE_HOME:-~/.cache}/longshore/qemu-VERSION. QEMU runs there with
# the C library that it was built for, through that library's own loader.
set -euo pipefail

name=qemu-system-x86_64
device=vfio-user-pci
# shellcheck source=private-apt.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/private-apt.sh"
cache="${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/longshore"
work=

fail() {
    local status=$1
    shift
    echo "get-qemu: $*" >&2
    exit "$status"
}

say() { echo "get-qemu: $*" >&2; }

cleanup() { [[ -z "$work" ]] || rm -rf "$work"; }
trap cleanup EXIT

# Does this QEMU run, and does it know the device?
usable() {
    local devices
    devices=$("$1" -device help 2>/dev/null </dev/null) || return 1
    [[ "$devices" == *"\"$device\""* ]]
}

version_of() { "$1" --version 2>/dev/null </dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p'; }

# The newest one fetched before that still runs.
fetched() {
    local found
    while IFS= read -r found; do
        if usable "$found"; then
            echo "$found"
            return 0
        fi
    done < <(ls -d "$cache"/qemu-*/"$name" 2>/dev/null | sort -rV)
    return 1
}

fetch() {
    local tool log apt tree version package target
    for tool in apt-get dpkg-deb flock; do
        command -v "$tool" >/dev/null ||
            fail 1 "no QEMU with $device here and no $tool to fetch one: install QEMU 10.1 or newer, or give QEMU=path"
    done
    [[ $(uname -m) == x86_64 ]] ||
        fail 1 "packages of QEMU are fetched for x86-64 only: install QEMU 10.1 or newer, or give QEMU=path"
    mkdir -p "$cache" || fail 1 "cannot make $cache"
    work=$(mktemp -d "$cache/.fetch.XXXXXX") || fail 1 "cannot write to $cache"
    log=$work/log apt=$work/apt tree=$work/tree

    say "this machine has no QEMU with $device: fetching one into $cache (about 40 MB, once)"
    open_mirror "$apt" "$log" ||
        fail 1 "none of this machine's apt mirrors offers Debian $suite-backports: install QEMU 10.1 or newer, or give QEMU=path"
    apt_get "$apt" -y --download-only -t "$suite-backports" install qemu-system-x86 seabios \
        >"$log" 2>&1 ||
        fail 1 "fetching packages failed: $(grep -m1 '^E:' "$log" || tail -n1 "$log")"

    mkdir "$tree"
    for package in "$apt"/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$tree" >"$log" 2>&1 ||
            fail 1 "unpacking ${package##*/} failed: $(tail -n1 "$log")"
    done
    # What is not needed to run the one program.
    find "$tree" -mindepth 1 -maxdepth 1 ! -name usr -exec rm -rf {} +
    find "$tree/usr/share" -mindepth 1 -maxdepth 1 ! -name qemu ! -name seabios -exec rm -rf {} +
    find "$tree/usr/bin" -mindepth 1 ! -name "$name" -exec rm -rf {} +

    cat >"$tree/$name" <<'WRAPPER'
#!/bin/sh
# Starts the QEMU in this folder with the libraries beside it.
here=$(dirname "$(readlink -f "$0")")
libs=$here/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$libs/qemu
export QEMU_MODULE_DIR
exec "$here/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libs" \
    "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"
WRAPPER
    chmod +x "$tree/$name"
    usable "$tree/$name" || fail 1 "the QEMU that was fetched does not run or lacks $device"
    version=$(version_of "$tree/$name")
    target=$cache/qemu-${version:-unknown}
    # A folder of that name did not work, or we would not be here.
    [[ ! -e "$target" ]] || mv -T "$target" "$work/broken"
    mv -T "$tree" "$target" || fail 1 "cannot move QEMU to $target"
    echo "$target/$name"
}

if [[ -n "${QEMU:-}" ]]; then
    path=$(command -v -- "$QEMU") || fail 2 "QEMU=$QEMU: no such program"
    [[ -n "$(version_of "$path")" ]] || fail 2 "QEMU=$QEMU does not run as a QEMU"
    usable "$path" ||
        fail 2 "QEMU=$QEMU is version $(version_of "$path") without $device: version 10.1 or newer is needed"
    echo "$path"
    exit
fi

if path=$(command -v "$name") && usable "$path"; then
    echo "$path"
    exit
fi
if fetched; then
    exit
fi
mkdir -p "$cache" || fail 1 "cannot make $cache"
exec 9>"$cache/lock"
flock -w 900 9 || fail 1 "another get-qemu has held $cache/lock for 15 minutes"
# Another one may have fetched it while we waited.
if ! fetched; then
    fetch
fi
