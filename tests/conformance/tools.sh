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

# Both functions install into a temporary folder and then rename it, so that nobody finds half of a tool. They set `tool` to the
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
