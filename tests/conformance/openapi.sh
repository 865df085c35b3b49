#!/usr/bin/env bash
# The OpenAPI document, as the server serves it: it is valid; schemathesis (PyPI) calls every route with what the document allows
# and what it does not, and no answer may be an error of the server or anything that the document does not have; and a client whose
# types openapi-typescript (npm) made from it takes a poll from its creation to a recount. With and without identity. Needs python3,
# else it is skipped; the client needs npm and node. The argument is the path of a built `votestream`. VOTESTREAM_SEED chooses
# other calls, and OPENAPI another document than the served one, to try changes without a build.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/tools.sh"
needs python3

# So many calls of each operation, beside those at the limits of the document.
calls="${OPENAPI_CALLS:-15}"
# Far longer than a run takes.
run_seconds=300

from_pypi schemathesis schemathesis==4.32.5 openapi-spec-validator==0.9.0
schemathesis="$tool"
python=(env "PYTHONPATH=$schemathesis:$here/openapi" PYTHONDONTWRITEBYTECODE=1 python3)
work_in "$(mktemp -d)"
cd "$work"

# The document that the stack serves, in `document`.
fetch_document() {
    document="${OPENAPI:-$work/openapi.json}"
    [ -n "${OPENAPI:-}" ] || python3 -c 'import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())' \
        "$ingest/openapi.json" >"$document"
}

# attack WHAT TOKEN CALLERS: calls every route of the stack, then looks at the events.
attack() {
    local polls
    polls="$("${python[@]}" "$here/openapi/prepare.py" "$ingest" "$2")"
    if ! POLLS="$polls" CALLERS="$3" SCHEMATHESIS_HOOKS=checks timeout "$run_seconds" "${python[@]}" \
        "$schemathesis/bin/schemathesis" --config-file "$here/openapi/schemathesis.toml" run "$document" --url "$ingest" \
        --seed "${VOTESTREAM_SEED:-1}" --max-examples "$calls" --continue-on-failure --no-color --warnings off \
        --output-sanitize false >"$work/schemathesis.txt" 2>&1; then
        cat "$work/schemathesis.txt" >&2
        printf 'FAILED: %s: schemathesis\n' "$1" >&2
        exit 1
    fi
    grep -E 'generated' "$work/schemathesis.txt" || { cat "$work/schemathesis.txt" >&2; exit 1; }
    "${python[@]}" "$here/openapi/events.py" "$ingest" "$document" "$2"
    printf 'ok: %s: every answer is as documented\n' "$1"
}

start_stack "$votestream"
fetch_document
"${python[@]}" "$schemathesis/bin/openapi-spec-validator" "$document" >/dev/null
printf 'ok: the document is valid\n'
attack 'without identity' '' '[""]'

"$votestream" auth init "$work/auth" >/dev/null 2>&1
token() { "$votestream" auth token --auth "$work/auth/auth.toml" "$@" 2>/dev/null; }
administrator="$(token --scope 'manage:*' --scope 'relay:*')"
callers="[\"Bearer $administrator\", \"\", \"Bearer $(token --user ada --scope 'vote:*' --scope 'read:*')\", \
\"Bearer $(token --scope 'relay:other' --scope 'manage:other')\", \"Bearer no.such.token\", \"Basic YTpi\"]"
start_stack "$votestream" --auth "$work/auth/auth.toml"
attack 'with identity' "$administrator" "$callers"

needs npm node
from_lock openapi "$here/openapi"
# Beside the packages, where TypeScript and Node look for them.
typed="$(mktemp -d "$tool/run.XXXXXX")"
trap 'rm -rf "$typed"; end' EXIT
cp "$here"/openapi/{client.ts,tsconfig.json,package.json} "$typed"
"$tool/node_modules/.bin/openapi-typescript" "$document" --output "$typed/types.ts" >/dev/null 2>&1
"$tool/node_modules/.bin/tsc" --project "$typed"
node "$typed/client.js" "$ingest" "$administrator"
