#!/usr/bin/env bash
# Rules for crates that no lint knows: every one takes the workspace's lints, and all but those
# that touch the machine forbid unsafe code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Crates that may have unsafe code; each block has its reason beside it (a clippy lint).
may_be_unsafe=" boot kernel drivers/hal "
status=0
complain() {
    echo "check: $*" >&2
    status=1
}

while IFS= read -r manifest; do
    crate=${manifest%/Cargo.toml}
    grep -A1 -x '\[lints\]' "$manifest" | grep -qx 'workspace = true' ||
        complain "$manifest lacks [lints] workspace = true"
    [[ "$may_be_unsafe" != *" $crate "* ]] || continue
    for root in "$crate"/src/lib.rs "$crate"/src/main.rs "$crate"/src/bin/*.rs "$crate"/tests/*.rs; do
        [[ ! -e $root ]] || grep -qx '#!\[forbid(unsafe_code)\]' "$root" ||
            complain "$root lacks #![forbid(unsafe_code)]"
    done
done < <(git ls-files '*/Cargo.toml')

exit $status
