#!/usr/bin/env bash
# Prints the folder of an unmodified Debian Linux kernel, for the test that its ioatdma driver works
# on our engine. In it:
#
#   vmlinuz       the kernel
#   busybox       Debian's static busybox
#   modules/N-*.ko  the modules that the test loads, in this order, decompressed
#   version       the kernel's release
#
# One that was fetched before is used; else one is fetched from the Debian mirror that this machine's
# apt already uses, into ${XDG_CACHE_HOME:-~/.cache}/longshore/linux-VERSION. Nothing of the machine
# is changed and no root is needed. Status 1, with one line of reason, where none can be had.
set -euo pipefail

# shellcheck source=../private-apt.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../private-apt.sh"
cache="${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/longshore"
work=

# Modules, each after those that it needs.
modules=(dca ioatdma)

fail() {
    echo "get-linux: $*" >&2
    exit 1
}

cleanup() { [[ -z "$work" ]] || rm -rf "$work"; }
trap cleanup EXIT

complete() { [[ -r $1/vmlinuz && -x $1/busybox && -r $1/version ]]; }

# The newest one fetched before.
fetched() {
    local found
    while IFS= read -r found; do
        if complete "$found"; then
            echo "$found"
            return 0
        fi
    done < <(ls -d "$cache"/linux-* 2>/dev/null | sort -rV)
    return 1
}

fetch() {
    local tool log apt tree out package version kernel module number=0 file target
    for tool in apt-get dpkg-deb flock; do
        command -v "$tool" >/dev/null || fail "no $tool to fetch a Linux kernel with"
    done
    [[ $(uname -m) == x86_64 ]] || fail "Linux kernels are fetched on x86-64 only"
    work=$(mktemp -d "$cache/.fetch.XXXXXX") || fail "cannot write to $cache"
    log=$work/log apt=$work/apt tree=$work/tree out=$work/out
    echo "get-linux: fetching Debian's Linux kernel into $cache (about 100 MB, once)" >&2
    open_mirror "$apt" "$log" || fail "none of this machine's apt mirrors offers Debian $suite"
    mkdir -p "$tree" "$out/modules"
    # The package of the release, without what it would need to be installed.
    package=$(apt_cache "$apt" depends --important linux-image-amd64 2>"$log" |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n1)
    [[ -n $package ]] || fail "Debian $suite names no Linux kernel: $(tail -n1 "$log")"
    (cd "$work" && apt_get "$apt" download "$package" busybox-static) >"$log" 2>&1 ||
        fail "fetching packages failed: $(grep -m1 '^E:' "$log" || tail -n1 "$log")"
    for file in "$work"/*.deb; do
        dpkg-deb -x "$file" "$tree" >"$log" 2>&1 ||
            fail "unpacking ${file##*/} failed: $(tail -n1 "$log")"
    done

    version=${package#linux-image-}
    kernel=$(find "$tree/boot" -name 'vmlinuz-*' | head -n1)
    [[ -n $kernel ]] || fail "$package has no kernel in it"
    cp "$kernel" "$out/vmlinuz"
    cp "$(find "$tree" -path '*bin/busybox' | head -n1)" "$out/busybox"
    for module in "${modules[@]}"; do
        number=$((number + 1))
        file=$(find "$tree" -name "$module.ko*" | head -n1)
        [[ -n $file ]] || fail "$package has no module $module"
        case $file in
        *.xz) "$out/busybox" xzcat "$file" ;;
        *) cat "$file" ;;
        esac >"$out/modules/$number-$module.ko"
    done
    echo "$version" >"$out/version"
    target=$cache/linux-$version
    # A folder of that name was not complete, or we would not be here.
    [[ ! -e $target ]] || mv -T "$target" "$work/broken"
    mv -T "$out" "$target" || fail "cannot move the kernel to $target"
    echo "$target"
}

if fetched; then
    exit
fi
mkdir -p "$cache" || fail "cannot make $cache"
exec 9>"$cache/lock-linux"
flock -w 900 9 || fail "another get-linux has held $cache/lock-linux for 15 minutes"
# Another one may have fetched it while we waited.
if ! fetched; then
    fetch
fi
