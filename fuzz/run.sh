#!/usr/bin/env bash
# Fuzzes every target for some seconds (10, or the first argument). Needs cargo-fuzz; what it finds is in fuzz/artifacts.
# Works with a stable compiler: nothing is looked for that only a sanitizer sees, since all code of ours is safe Rust.
set -euo pipefail
cd "$(dirname "$0")"
export RUSTC_BOOTSTRAP=1
# Inputs that lead further are kept apart from the small corpus that is committed.
found="$(mktemp -d)"
trap 'rm -rf "$found"' EXIT
for target in record json aggregate votes poll; do
    mkdir "$found/$target"
    cargo fuzz run --sanitizer none "$target" "$found/$target" "corpus/$target" -- \
        -max_total_time="${1:-10}" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1
done
