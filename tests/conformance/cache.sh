#!/usr/bin/env bash
# A caching proxy of another make: nginx with docs/nginx.conf, as docs/cdn.md recommends it. About 1,000 requests a second for the
# counts of an open poll are about one a second for the service; what only some may see, errors and votes are never kept; a final
# result is served while the service is stopped. Needs python3, nginx and h2load (Debian: nginx-light and nghttp2-client, which are
# installed if they are missing), else it is skipped. The argument is the path of a built `votestream`.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/tools.sh"
PATH="$PATH:/usr/sbin"
needs python3
if ! { command -v nginx && command -v h2load; } >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive timeout "$install_seconds" apt-get install --quiet=2 \
        --no-install-recommends nginx-light nghttp2-client; } >/dev/null 2>&1 || true
fi
needs nginx h2load

work_in "$(mktemp -d)"

# fill NAME VALUE: the only place of NAME in docs/nginx.conf gets VALUE.
fill() {
    [ "$(grep -cF -- "$1" "$work/proxy/votestream.conf")" = 1 ] || { printf 'FAILED: %s in docs/nginx.conf\n' "$1" >&2; exit 1; }
    sed -i "s|$1|$2|" "$work/proxy/votestream.conf"
}

# start_proxy: nginx before the service of `ingest`, with an empty cache. Leaves its URL in `proxy`.
start_proxy() {
    local port as=()
    port="$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    rm -rf "$work/proxy"
    mkdir -p "$work/proxy/cache"
    cp "$here/../../docs/nginx.conf" "$work/proxy/votestream.conf"
    fill 'server 127.0.0.1:50051;' "server ${ingest#http://};"
    fill '/var/cache/nginx/votestream' "$work/proxy/cache"
    fill 'listen 80;' "listen 127.0.0.1:$port;"
    sed "s|@work@|$work/proxy|" "$here/cache/nginx.conf.in" >"$work/proxy/nginx.conf"
    # Without the rights of root, as an nginx of a distribution has its workers.
    if [ "$(id -u)" = 0 ]; then
        chmod 711 "$work"
        chown -R nobody "$work/proxy"
        as=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    fi
    "${as[@]}" nginx -p "$work/proxy" -e stderr -c "$work/proxy/nginx.conf" -g 'daemon off;' 2>"$work/nginx.log" &
    started+=($!)
    proxy="http://127.0.0.1:$port"
    for _ in $(seq 300); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
        kill -0 "${started[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/nginx.log" >&2
    echo 'FAILED: nginx does not start' >&2
    exit 1
}

# judge WHAT TOKEN: a stack with these further arguments, and a proxy before it.
judge() {
    start_stack "$votestream" "${@:3}"
    local service="${started[-1]}"
    start_proxy
    PYTHONDONTWRITEBYTECODE=1 python3 "$here/cache/check.py" "$1" "$proxy" "$ingest" "$work/proxy/asked.log" "$2" "$service" ||
        { cat "$work/nginx.log" >&2; exit 1; }
    kill "${started[@]}" 2>/dev/null || true
    wait
    started=()
}

judge 'without identity' ''
# Its callers without a token may read everything.
"$votestream" auth init "$work/auth" >/dev/null 2>&1
token="$("$votestream" auth token --auth "$work/auth/auth.toml" --scope 'manage:*' --scope 'relay:*' 2>/dev/null)"
judge 'with identity' "$token" --auth "$work/auth/auth.toml"
judge 'with limits' '' --calls-per-address 60/m:8 --trusted-proxies 127.0.0.0/8
