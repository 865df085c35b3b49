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

# from_lock FOLDER: the packages of its lock file.
from_lock() {
    tool="$tools/$(basename "$1")-$(cat "$1/package.json" "$1/package-lock.json" | cksum | cut -d ' ' -f 1)"
    [ ! -d "$tool" ] || return 0
    local half
    mkdir -p "$tools"
    half="$(mktemp -d "$tools/half.XXXXXX")"
    cp "$1"/package*.json "$half"
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
    # Those of a stack before.
    rm -f "$work/addresses"
    "$1" up --ephemeral --json --addr 127.0.0.1:0 "${@:2}" \
        >"$work/addresses" 2>"$work/log" &
    started+=($!)
    for _ in $(seq 300); do
        [ -s "$work/addresses" ] && break
        sleep 0.1
    done
    [ -s "$work/addresses" ] || { cat "$work/log" >&2; exit 1; }
    ingest="$(sed -n 's/.*"ingest":"\([^"]*\)".*/\1/p' "$work/addresses")"
    results="$(sed -n 's/.*"results":"\([^"]*\)".*/\1/p' "$work/addresses")"
}
