#!/usr/bin/env bash
# systemd reads the unit of deploy/systemd, and rates how much its process may do. Needs systemd, which root gets by apt on Debian,
# else it is skipped. The argument is the path of a built `votestream`.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/tools.sh"
from_apt systemd-analyze systemd

# Tenths of what `systemd-analyze security` calls exposure, from 0 to 100.
exposure_max=20

work_in "$(mktemp -d)"
# The binary is not installed here. Everything else stays.
sed "s|/usr/local/bin/votestream |$votestream |" "$here/../../deploy/systemd/votestream.service" >"$work/votestream.service"
grep -q "^ExecStart=$votestream up " "$work/votestream.service"
found="$(systemd-analyze verify "$work/votestream.service" 2>&1)" || { printf 'FAILED: %s\n' "$found" >&2; exit 1; }
# It also says what it does not know, and goes on.
if [ -n "$found" ]; then
    printf 'FAILED: %s\n' "$found" >&2
    exit 1
fi
echo 'ok: systemd understands every line of the unit'
if ! rated="$(systemd-analyze security --offline=true --threshold="$exposure_max" "$work/votestream.service" 2>&1)"; then
    if grep -q 'unrecognized option' <<<"$rated"; then
        skipped 'this systemd cannot rate a unit that is not loaded'
    fi
    printf 'FAILED: the unit allows too much:\n%s\n' "$rated" >&2
    exit 1
fi
tail -n 1 <<<"$rated"
# The flags of the unit are those of the binary.
"$votestream" up --help | grep -q -- '--data-dir'
