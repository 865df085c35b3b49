#!/usr/bin/env bash
# Runs the commands of the guides, as a reader would paste them: every block of docs/show.md, of docs/relays.md and of the README's
# section "Who may call" that is indented by four blanks. Blocks between ``` are not run: they need what is not here. Each document
# has an empty directory, one shell, and `votestream` on its PATH. `votestream up` runs in the background until the document ends or
# starts another one, which stops it, as Ctrl-C does. Needs curl, and Linux to have port 50051 to itself: without a network of its own
# it is skipped if the port is taken. The argument is the path of a built `votestream`.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
root="$(realpath "$here/../..")"
source "$here/tools.sh"
needs curl awk

# Ports are fixed in the guides, so they run in a network without anybody else.
if [ -z "${GUIDES_NETWORK:-}" ]; then
    if command -v ip >/dev/null && unshare --map-root-user --net true 2>/dev/null; then
        exec env GUIDES_NETWORK=own unshare --map-root-user --net "$here/guides.sh" "$votestream"
    fi
    for port in 50051 9464; do
        ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || skipped "port $port is taken, and there can be no network of its own"
    done
elif [ "$GUIDES_NETWORK" = own ]; then
    ip link set lo up
fi

work_in "$(mktemp -d)"
mkdir "$work/bin"
ln -s "$votestream" "$work/bin/votestream"

# What a document's shell knows beside its commands.
cat >"$work/prelude" <<'PRELUDE'
stack=
stop_stack() {
    [ -n "$stack" ] || return 0
    local pid="$stack" code=0
    stack=
    kill "$pid" && wait "$pid" || code=$?
    [ "$code" = 0 ] || { cat "$log" >&2; printf '`votestream up` ended with %s\n' "$code" >&2; return 1; }
}

# Starts a stack in the background, and returns once it says where it is.
start_stack() {
    stop_stack || return
    : >"$log"
    command votestream "$@" >"$log" 2>&1 </dev/null &
    stack=$!
    local tries
    for tries in $(seq 300); do
        ! grep -q '^server ' "$log" || { cat "$log"; return 0; }
        kill -0 "$stack" 2>/dev/null || break
        sleep 0.1
    done
    cat "$log" >&2
    return 1
}

votestream() {
    if [ "$1" = up ]; then start_stack "$@" || return; else command votestream "$@" || return; fi
}

trap 'trap - DEBUG; printf "FAILED: %s\n" "$said" >&2' ERR
trap '[ -z "$stack" ] || kill "$stack" 2>/dev/null || true' EXIT
said=
say() {
    said="$document:$1: $2"
    printf '%s\n' "$said"
}
PRELUDE

# commands_of DOCUMENT [SECTION]: a script with every command at the line that it has in the document, whose first line is a title.
commands_of() {
    awk -v section="${2:-}" '
        NR == 1 { print "set -euo pipefail; source \"$prelude\"; trap '\''say \"$LINENO\" \"$BASH_COMMAND\"'\'' DEBUG"; next }
        /^```/ { fenced = !fenced }
        !fenced && /^## / { inside = $0 == "## " section }
        { indented = !fenced && (section == "" || inside) && /^    / && (before == "" || block) }
        { block = indented; before = $0; print indented ? substr($0, 5) : "" }
        END { print "trap - DEBUG; stop_stack" }
    ' "$root/$1"
}

# follow DOCUMENT [SECTION]
follow() {
    local place="$work/${1//\//-}"
    mkdir -p "$place/home" "$place/run"
    commands_of "$@" >"$place/commands"
    grep -q '^votestream up' "$place/commands" || { printf 'FAILED: %s has no commands\n' "$1" >&2; exit 1; }
    printf '\n== %s\n' "$*"
    (
        cd "$place/run"
        env -i PATH="$work/bin:$PATH" HOME="$place/home" LANG=C.UTF-8 document="$1" log="$place/log" prelude="$work/prelude" \
            timeout 600 bash "$place/commands" </dev/null
    ) || { printf 'FAILED: the commands of %s\n' "$1" >&2; exit 1; }
}

follow README.md 'Who may call'
follow docs/show.md
follow docs/relays.md
printf '\nevery command of the guides does what it should\n'
