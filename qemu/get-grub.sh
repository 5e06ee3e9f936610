#!/usr/bin/env bash
# Prints the folder of what a bootable image is made with. In it:
#
#   bin/              grub-mkimage, xorriso, and of mtools mformat, mmd and mcopy
#   lib/grub/         GRUB's modules for BIOS (i386-pc) and UEFI (x86_64-efi)
#
# The machine's own is used if it has all of it; else what was fetched before; else it is fetched from
# the Debian mirror that this machine's apt already uses, into
# ${XDG_CACHE_HOME:-~/.cache}/longshore/grub-VERSION. Nothing of the machine is changed and no root is
# needed; programs run there through the loader of the C library that they were built for. Status 2,
# with one line that names the packages, where none can be had.
set -euo pipefail

# shellcheck source=private-apt.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/private-apt.sh"
cache="${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/longshore"
programs=(grub-mkimage xorriso mformat mmd mcopy)
packages=(grub-common grub-pc-bin grub-efi-amd64-bin xorriso mtools)
work=

fail() {
    echo "get-grub: $*: install ${packages[*]}" >&2
    exit 2
}

cleanup() { [[ -z "$work" ]] || rm -rf "$work"; }
trap cleanup EXIT

complete() {
    local program
    [[ -r $1/lib/grub/i386-pc/cdboot.img && -r $1/lib/grub/x86_64-efi/multiboot2.mod ]] || return 1
    for program in "${programs[@]}"; do
        [[ -x $1/bin/$program ]] || return 1
    done
}

# The newest one fetched before.
fetched() {
    local found
    while IFS= read -r found; do
        if complete "$found"; then
            echo "$found"
            return 0
        fi
    done < <(ls -d "$cache"/grub-* 2>/dev/null | sort -rV)
    return 1
}

fetch() {
    local tool log apt tree out package program version target
    for tool in apt-get dpkg-deb flock; do
        command -v "$tool" >/dev/null || fail "no GRUB here to make the image with, and no $tool to fetch one"
    done
    [[ $(uname -m) == x86_64 ]] || fail "GRUB is fetched for x86-64 only"
    work=$(mktemp -d "$cache/.fetch.XXXXXX") || fail "cannot write to $cache"
    log=$work/log apt=$work/apt tree=$work/tree out=$work/out
    echo "get-grub: this machine lacks what makes the image: fetching it into $cache (about 20 MB, once)" >&2
    open_mirror "$apt" "$log" || fail "none of this machine's apt mirrors offers Debian $suite"
    apt_get "$apt" -y --download-only install "${packages[@]}" >"$log" 2>&1 ||
        fail "fetching packages failed ($(grep -m1 '^E:' "$log" || tail -n1 "$log"))"
    mkdir -p "$tree" "$out/bin" "$out/lib"
    for package in "$apt"/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$tree" >"$log" 2>&1 ||
            fail "unpacking ${package##*/} failed ($(tail -n1 "$log"))"
    done
    version=$(basename "$apt"/cache/archives/grub-common_*.deb | cut -d_ -f2)
    mv "$tree/usr/lib/grub" "$tree/usr/lib/x86_64-linux-gnu" "$out/lib"
    mkdir "$out/programs"
    for program in "${programs[@]}"; do
        cp -L "$tree/usr/bin/$program" "$out/programs"
        cat >"$out/bin/$program" <<'WRAPPER'
#!/bin/sh
# Starts the program of this name with the libraries beside it.
here=$(dirname "$(dirname "$(readlink -f "$0")")")
libs=$here/lib/x86_64-linux-gnu
exec "$libs/ld-linux-x86-64.so.2" --library-path "$libs" --argv0 "$0" \
    "$here/programs/${0##*/}" "$@"
WRAPPER
        chmod +x "$out/bin/$program"
    done
    complete "$out" || fail "Debian's packages lack something"
    "$out/bin/grub-mkimage" --version >"$log" 2>&1 && "$out/bin/xorriso" -version >"$log" 2>&1 ||
        fail "what was fetched does not run ($(tail -n1 "$log"))"
    target=$cache/grub-${version//:/.}
    # A folder of that name was not complete, or we would not be here.
    [[ ! -e $target ]] || mv -T "$target" "$work/broken"
    mv -T "$out" "$target" || fail "cannot move it to $target"
    echo "$target"
}

if own=$(command -v grub-mkimage) && own=$(dirname "$(dirname "$own")") && complete "$own"; then
    echo "$own"
    exit
fi
if fetched; then
    exit
fi
mkdir -p "$cache" || fail "cannot make $cache"
exec 9>"$cache/lock-grub"
flock -w 900 9 || fail "another get-grub has held $cache/lock-grub for 15 minutes"
# Another one may have fetched it while we waited.
if ! fetched; then
    fetch
fi
