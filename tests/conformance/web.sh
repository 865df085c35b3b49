#!/usr/bin/env bash
# Clients that browsers use: connect-web calls every RPC that a browser can make, by gRPC-Web, from Node and from pages in
# Chromium. buf generates the client from proto/ with plugins on this machine. Needs npm and node, else it is skipped. The
# argument is the path of a built `votestream`. Chromium is Debian's; without it that part is skipped.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/tools.sh"
needs npm node

from_lock "$here/web"

# The work folder is beside the packages, where Node looks for them.
work_in "$(mktemp -d "$tool/run.XXXXXX")"

cp "$here"/web/*.mjs "$work"
for input in "$here/../../proto" "$here/web/health"; do
    (cd "$tool" && node_modules/.bin/buf generate "$input" --template "$here/web/buf.gen.yaml" --output "$work")
done

# An origin for a page on another port, if the binary can allow other origins.
cors=()
port=
if "$votestream" up --help | grep -q -- --cors-allow-origins; then
    port="$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')"
    cors=(--cors-allow-origins "http://127.0.0.1:$port")
fi
start_stack "$votestream" "${cors[@]}"

(cd "$work" && timeout 120 node node.mjs "$ingest" "$results")

if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive timeout "$install_seconds" apt-get install --quiet=2 \
        --no-install-recommends chromium; } >/dev/null 2>&1 || true
fi
command -v chromium >/dev/null || skipped 'chromium cannot be installed'
(cd "$work" && "$tool/node_modules/.bin/esbuild" calls.mjs --bundle --format=esm --log-level=warning --outfile=page.js)
(cd "$work" && timeout 180 node chromium.mjs "$ingest" "$results" "$(command -v chromium)" "$work/page.js" "$port")
