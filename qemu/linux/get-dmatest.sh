#!/usr/bin/env bash
# Prints the path of Linux's dmatest module for the kernel that get-linux.sh gives, for the benchmark
# to compare with. Debian builds its kernels without it (CONFIG_DMATEST), so it is built here: from
# Debian's own source package, with Debian's headers for that kernel and Debian's compiler, all of the
# very version. One that was built before is used.
#
# Nothing of the machine is changed and no root is needed: packages are unpacked into a temporary
# folder, and their programs run there with the C library that they were built for. What stays is
# dmatest.ko, beside the kernel. Status 1, with one line of reason, where none can be had.
set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=../private-apt.sh
source "$here/../private-apt.sh"
cache="${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/longshore"
work=

fail() {
    echo "get-dmatest: $*" >&2
    exit 1
}

cleanup() { [[ -z "$work" ]] || rm -rf "$work"; }
trap cleanup EXIT

# wrap TREE: has every program of TREE run by the tree's own loader, with its own libraries. gcc finds
# its parts relative to the name that it was called by.
wrap() {
    local tree=$1 file
    local loader=$tree/usr/lib64/ld-linux-x86-64.so.2 libs=$tree/usr/lib/x86_64-linux-gnu
    while IFS= read -r file; do
        [[ $(head -c4 "$file") == $'\x7fELF' ]] || continue
        mv "$file" "$file.elf"
        printf '#!/bin/sh\nexec "%s" --library-path "%s" --argv0 "$0" "%s" "$@"\n' \
            "$loader" "$libs" "$file.elf" >"$file"
        chmod +x "$file"
    done < <(find "$tree/usr/bin" "$tree/usr/libexec" "$tree"/usr/lib/linux-kbuild-* \
        -type f -executable ! -name '*.so*')
}

build() {
    local tool apt log tree module common packages file
    for tool in apt-get dpkg-deb make tar xz; do
        command -v "$tool" >/dev/null || fail "no $tool to build dmatest with"
    done
    work=$(mktemp -d "$cache/.fetch.XXXXXX") || fail "cannot write to $cache"
    log=$work/log apt=$work/apt tree=$work/tree module=$work/module
    echo "get-dmatest: fetching Debian's headers, compiler and source of Linux $version, to build dmatest (about 260 MB, once)" >&2
    open_mirror "$apt" "$log" || fail "none of this machine's apt mirrors offers Debian $suite"
    # 6.12.107+deb13-amd64: the flavour's headers, those of all flavours, and the series' source.
    common=${version%-amd64}
    packages=("linux-headers-$version" "linux-headers-$common-common")
    [[ -n $(apt_cache "$apt" show "${packages[0]}" 2>/dev/null) ]] ||
        fail "Debian $suite has no headers for Linux $version any more; remove $linux for a newer kernel"
    apt_get "$apt" -y --download-only install gcc-14-x86-64-linux-gnu "linux-kbuild-$common" \
        >"$log" 2>&1 || fail "fetching packages failed: $(grep -m1 '^E:' "$log" || tail -n1 "$log")"
    (cd "$work" && apt_get "$apt" download "${packages[@]}" \
        "linux-source-$(cut -d. -f1,2 <<<"$version")=${common%%+*}-1") >"$log" 2>&1 ||
        fail "fetching packages failed: $(grep -m1 '^E:' "$log" || tail -n1 "$log")"
    mkdir -p "$tree" "$module"
    for file in "$apt"/cache/archives/*.deb "$work"/linux-headers-*.deb; do
        dpkg-deb -x "$file" "$tree" >"$log" 2>&1 ||
            fail "unpacking ${file##*/} failed: $(tail -n1 "$log")"
    done
    dpkg-deb --fsys-tarfile "$work"/linux-source-*.deb |
        tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
        tar -xJO --wildcards '*/drivers/dma/dmatest.c' >"$module/dmatest.c" ||
        fail "no dmatest in the source package"
    echo 'obj-m := dmatest.o' >"$module/Makefile"
    wrap "$tree"
    # The flavour's headers name the common ones by an absolute path.
    sed -i "s# /usr/src/# $tree/usr/src/#" "$tree/usr/src/linux-headers-$version/Makefile"
    # make test runs under make itself, whose variables are not meant for this one.
    env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS PATH="$tree/usr/bin:$PATH" \
        make -C "$tree/usr/src/linux-headers-$version" M="$module" modules >"$log" 2>&1 ||
        fail "building dmatest failed: $(grep -m1 -i 'error' "$log" || tail -n1 "$log")"
    mv "$module/dmatest.ko" "$linux/dmatest.ko"
}

linux=$("$here/get-linux.sh")
version=$(<"$linux/version")
if [[ ! -r $linux/dmatest.ko ]]; then
    exec 9>"$cache/lock-dmatest"
    flock -w 900 9 || fail "another get-dmatest has held $cache/lock-dmatest for 15 minutes"
    # Another one may have built it while we waited.
    [[ -r $linux/dmatest.ko ]] || build
fi
echo "$linux/dmatest.ko"
