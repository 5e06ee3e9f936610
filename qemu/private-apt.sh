# Debian packages by an apt state of one's own. To be sourced.
#
# Nothing of the machine is changed and no root is needed: apt gets its lists, cache and package
# database from a folder, and the mirrors are those that the machine's own apt uses.

# The Debian release that packages come from.
suite=trixie

# Base addresses of the machine's own Debian archives, best guess first. Before the first
# `apt-get update` of a machine apt knows addresses only, no origins.
mirrors() {
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -F'|' '$1 == "Debian" && $2 == "Debian" { print "0 " $3 }
                   $1 == "" || $1 ~ /^\$/           { print "1 " $3 }' |
        sort -u | cut -d' ' -f2-
}

# write_apt_state DIR MIRROR: an apt state of its own in DIR.
write_apt_state() {
    local dir=$1 mirror=$2 options=
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ ! -r $keyring ]] || options="[signed-by=$keyring] "
    rm -rf "$dir"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/dpkg"
    : >"$dir/dpkg/status"
    printf 'deb %s%s %s main\n' "$options" "$mirror" "$suite" \
        "$options" "$mirror" "$suite-backports" >"$dir/sources.list"
}

# apt_get DIR ARGUMENTS...: apt-get on the state in DIR.
apt_get() { private_apt apt-get "$@"; }

# apt_cache DIR ARGUMENTS...: apt-cache on the state in DIR.
apt_cache() { private_apt apt-cache "$@"; }

private_apt() {
    local program=$1 dir=$2
    shift 2
    "$program" -q -o "Dir::State=$dir" -o "Dir::State::lists=$dir/lists" \
        -o "Dir::State::status=$dir/dpkg/status" -o "Dir::Cache=$dir/cache" \
        -o "Dir::Cache::archives=$dir/cache/archives" -o "Dir::Etc::sourcelist=$dir/sources.list" \
        -o "Dir::Etc::sourceparts=-" -o "Dir::Etc::preferencesparts=-" -o "Dir::Etc::preferences=-" \
        -o "APT::Architecture=amd64" -o "APT::Architectures=amd64" -o "APT::Default-Release=" \
        -o "APT::Sandbox::User=$(id -un)" -o "APT::Install-Recommends=false" \
        -o "Acquire::Retries=3" -o "Acquire::http::Timeout=30" -o "Acquire::https::Timeout=30" \
        -o "Acquire::Languages=none" "$@" </dev/null
}

# Sets up an apt state with the first mirror that carries the suite.
open_mirror() {
    local dir=$1 log=$2 mirror
    for mirror in $(mirrors); do
        write_apt_state "$dir" "$mirror"
        if apt_get "$dir" -o APT::Update::Error-Mode=any update >"$log" 2>&1; then
            return 0
        fi
    done
    return 1
}
