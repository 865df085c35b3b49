# Tools of other projects, for the scripts beside this file, which source it. Each tool is installed once, at the version named,
# into a cache outside the checkout. If it cannot be installed here, the script is skipped, with the reason.

tools="${XDG_CACHE_HOME:-$HOME/.cache}/votestream-tools"
# Longest time for one installation.
install_seconds=300

skipped() {
    printf 'skipped: %s\n' "$1"
    exit 0
}

needs() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || skipped "$tool is not installed"
    done
}

# These functions install into a temporary folder and then rename it, so that nobody finds half of a tool. They set `tool` to the
# place.

# from_npm PACKAGE@VERSION
from_npm() {
    tool="$tools/node-$1"
    [ ! -d "$tool" ] || return 0
    local half
    mkdir -p "$tools"
    half="$(mktemp -d "$tools/half.XXXXXX")"
    if ! timeout "$install_seconds" npm install --prefix "$half" --silent --no-audit --no-fund \
        --fetch-retries 1 --fetch-timeout 15000 "$1"; then
        rm -rf "$half"
        skipped "npm cannot install $1 from its registry"
    fi
    mv -T "$half" "$tool"
}

# from_lock NAME FOLDER: what package-lock.json in the folder has.
from_lock() {
    tool="$tools/$1-$(cat "$2/package.json" "$2/package-lock.json" | cksum | cut -d ' ' -f 1)"
    [ ! -d "$tool" ] || return 0
    local half
    mkdir -p "$tools"
    half="$(mktemp -d "$tools/half.XXXXXX")"
    cp "$2"/package.json "$2"/package-lock.json "$half"
    if ! timeout "$install_seconds" npm ci --prefix "$half" --silent --no-audit --no-fund --fetch-retries 1 \
        --fetch-timeout 15000; then
        rm -rf "$half"
        skipped "npm cannot install the packages of $1 from its registry"
    fi
    mv -T "$half" "$tool"
}

# from_pypi NAME PACKAGE==VERSION ...: for PYTHONPATH.
from_pypi() {
    local half packages=("${@:2}")
    tool="$tools/python-$1-$(cksum <<<"${packages[*]} $(python3 --version)" | cut -d ' ' -f 1)"
    [ ! -d "$tool" ] || return 0
    mkdir -p "$tools"
    half="$(mktemp -d "$tools/half.XXXXXX")"
    # In a virtual environment: pip itself may be missing, or may not be allowed to install.
    if ! python3 -m venv "$half/venv" >/dev/null || ! timeout "$install_seconds" "$half/venv/bin/python" -m pip --quiet \
        --disable-pip-version-check install --retries 1 --timeout 15 --target "$half/site" "${packages[@]}"; then
        rm -rf "$half"
        skipped "pip cannot install ${packages[*]} from its index"
    fi
    mv -T "$half/site" "$tool"
    rm -rf "$half"
}

# from_apt COMMAND PACKAGE: on Debian, as root. Nothing of it is started.
from_apt() {
    command -v "$1" >/dev/null && return 0
    command -v apt-get >/dev/null || skipped "$1 is not installed, and there is no apt-get"
    [ "$(id -u)" = 0 ] || skipped "$1 is not installed; only root may install $2"
    if ! { apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive timeout "$install_seconds" \
        apt-get install --quiet=2 --no-install-recommends "$2"; } >/dev/null 2>&1; then
        skipped "apt-get cannot install $2"
    fi
    command -v "$1" >/dev/null || skipped "$2 has no $1"
}

# free_port: prints a port that nobody listens on.
free_port() {
    node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })'
}

# work_in FOLDER: leaves the folder in `work`. When the script ends, the processes in `started` are ended, and then the folder is
# removed.
started=()
work_in() {
    work="$1"
    trap end EXIT
    trap 'exit 130' INT TERM
}

end() {
    [ "${#started[@]}" = 0 ] || kill "${started[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}

# start_stack VOTESTREAM [ARGUMENT ...]: a stack on free ports and a temporary directory. Leaves the URLs of its services in
# `ingest` and `results`. Needs `work_in`.
start_stack() {
    "$1" up --ephemeral --json --addr 127.0.0.1:0 "${@:2}" \
        >"$work/addresses" 2>"$work/log" &
    started+=($!)
    for _ in $(seq 1200); do
        [ -s "$work/addresses" ] && break
        sleep 0.1
    done
    [ -s "$work/addresses" ] || { cat "$work/log" >&2; exit 1; }
    ingest="$(sed -n 's/.*"ingest":"\([^"]*\)".*/\1/p' "$work/addresses")"
    results="$(sed -n 's/.*"results":"\([^"]*\)".*/\1/p' "$work/addresses")"
}
