#!/usr/bin/env bash
# Fuzzes every target for some seconds (10, or the first argument). Needs a C++ compiler and no other tool: the layout is that of
# cargo-fuzz, which is not used. A finding is written to tests/fuzz/artifacts. There is no sanitizer, because all our code is safe
# Rust, and overflows and failed assertions panic.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v c++ >/dev/null; then
    echo 'skipped: libFuzzer needs a C++ compiler'
    exit 0
fi
# What libFuzzer asks of a compiler (LLVM, "SanitizerCoverage"): a counter for each edge, its place, and traced comparisons.
export RUSTFLAGS='--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares'
RUSTFLAGS="$(tr -s '\n ' '  ' <<<"$RUSTFLAGS")"
# The host is named as the target, so that build scripts are not instrumented.
host="$(rustc -vV | sed -n 's/^host: //p')"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/fuzz"
cargo build --release --locked --target "$host"

# New inputs that reach more code are kept apart from the small corpus that is committed.
found="$(mktemp -d)"
trap 'rm -rf "$found"' EXIT
for target in record json aggregate votes poll; do
    mkdir -p "$found/$target" "artifacts/$target"
    printf '%s: ' "$target"
    "$CARGO_TARGET_DIR/$host/release/$target" "$found/$target" "corpus/$target" "-artifact_prefix=artifacts/$target/" \
        -max_total_time="${1:-10}" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 2>&1 |
        tee "$found/log" | sed -n 's/^stat::number_of_executed_units: *\(.*\)/\1 runs/p'
    if grep -q 'SUMMARY:' "$found/log"; then cat "$found/log"; exit 1; fi
done
