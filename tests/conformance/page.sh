#!/usr/bin/env bash
# The web page, in Chromium: voting and creating a poll by keyboard alone, results that come in by themselves, a connection that
# breaks, a thousand options, titles in any script, tokens, and axe on every view in light and dark. Needs npm and node, else it is
# skipped. Chromium is Debian's; without it the script is skipped. The argument is the path of a built `votestream`; with
# PAGE_SERVER=URL a server that already runs is used instead.
set -euo pipefail
votestream="${1:-}"
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/tools.sh"
needs npm node

if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive timeout "$install_seconds" apt-get install --quiet=2 \
        --no-install-recommends chromium; } >/dev/null 2>&1 || true
fi
command -v chromium >/dev/null || skipped 'chromium cannot be installed'

# The packages of the lock file, installed outside the checkout.
tool="$tools/page-$(cat "$here/page/package.json" "$here/page/package-lock.json" | cksum | cut -d ' ' -f 1)"
if [ ! -d "$tool" ]; then
    mkdir -p "$tools"
    half="$(mktemp -d "$tools/half.XXXXXX")"
    cp "$here"/page/package*.json "$half"
    if ! timeout "$install_seconds" npm ci --prefix "$half" --silent --no-audit --no-fund --fetch-retries 1 \
        --fetch-timeout 15000; then
        rm -rf "$half"
        skipped 'npm cannot install playwright-core and axe-core from its registry'
    fi
    mv -T "$half" "$tool"
fi

# The work folder is beside the packages, where Node looks for them.
work_in "$(mktemp -d "$tool/run.XXXXXX")"
cp "$here"/page/*.mjs "$work"

server="${PAGE_SERVER:-}"
if [ -z "$server" ]; then
    "$votestream" up --ephemeral --addr 127.0.0.1:0 --json >"$work/addresses" 2>"$work/log" &
    started+=($!)
    for _ in $(seq 300); do
        [ -s "$work/addresses" ] && break
        kill -0 "${started[0]}" 2>/dev/null || break
        sleep 0.1
    done
    server="$(sed -n 's/.*"server":"\([^"]*\)".*/\1/p' "$work/addresses")"
    [ -n "$server" ] || { cat "$work/log" >&2; exit 1; }
fi

(cd "$work" && timeout 1200 node run.mjs "$server" "$(command -v chromium)")
