#!/usr/bin/env bash
# Prints two lines: the files of OVMF, UEFI for QEMU's machines: its code, and its variables as they are
# at first, to be copied.
#
# The machine's own are used where it has them; else those fetched before; else they are fetched from the
# Debian mirror that this machine's apt already uses, into
# ${XDG_CACHE_HOME:-~/.cache}/longshore/ovmf-VERSION. Nothing of the machine is changed and no root is
# needed. Status 2, with one line that names the package, where none can be had.
set -euo pipefail

# shellcheck source=private-apt.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/private-apt.sh"
cache="${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/longshore"
work=

fail() {
    echo "get-ovmf: $*: install ovmf" >&2
    exit 2
}

cleanup() { [[ -z "$work" ]] || rm -rf "$work"; }
trap cleanup EXIT

# found CODE VARIABLES: both are there, and told.
found() {
    [[ -r $1 && -r $2 ]] || return 1
    printf '%s\n' "$1" "$2"
}

# The newest ones fetched before.
fetched() {
    local folder
    while IFS= read -r folder; do
        found "$folder/code.fd" "$folder/variables.fd" && return 0
    done < <(ls -d "$cache"/ovmf-* 2>/dev/null | sort -rV)
    return 1
}

fetch() {
    local tool log apt tree out package version target
    for tool in apt-get dpkg-deb flock; do
        command -v "$tool" >/dev/null || fail "no UEFI for QEMU here, and no $tool to fetch one"
    done
    work=$(mktemp -d "$cache/.fetch.XXXXXX") || fail "cannot write to $cache"
    log=$work/log apt=$work/apt tree=$work/tree out=$work/out
    echo "get-ovmf: this machine has no UEFI for QEMU: fetching one into $cache (about 12 MB, once)" >&2
    open_mirror "$apt" "$log" || fail "none of this machine's apt mirrors offers Debian $suite"
    (cd "$work" && apt_get "$apt" download ovmf) >"$log" 2>&1 ||
        fail "fetching the package failed ($(grep -m1 '^E:' "$log" || tail -n1 "$log"))"
    package=$(echo "$work"/ovmf_*.deb)
    dpkg-deb -x "$package" "$tree" >"$log" 2>&1 || fail "unpacking failed ($(tail -n1 "$log"))"
    mkdir "$out"
    mv "$tree/usr/share/OVMF/OVMF_CODE_4M.fd" "$out/code.fd" &&
        mv "$tree/usr/share/OVMF/OVMF_VARS_4M.fd" "$out/variables.fd" ||
        fail "Debian's package lacks something"
    version=$(basename "$package" | cut -d_ -f2)
    target=$cache/ovmf-$version
    # A folder of that name was not complete, or we would not be here.
    [[ ! -e $target ]] || mv -T "$target" "$work/broken"
    mv -T "$out" "$target" || fail "cannot move it to $target"
    fetched
}

# Where Debian, Arch and Fedora put them.
for own in OVMF/OVMF_{CODE,VARS}_4M.fd edk2/x64/OVMF_{CODE,VARS}.4m.fd edk2/ovmf/OVMF_{CODE,VARS}.fd; do
    case $own in
    *CODE*) code=/usr/share/$own ;;
    *) if found "$code" "/usr/share/$own"; then exit; fi ;;
    esac
done
if fetched; then
    exit
fi
mkdir -p "$cache" || fail "cannot make $cache"
exec 9>"$cache/lock-ovmf"
flock -w 900 9 || fail "another get-ovmf has held $cache/lock-ovmf for 15 minutes"
# Another one may have fetched them while we waited.
if ! fetched; then
    fetch
fi
