#!/usr/bin/env bash
# An HTTP load tool (npm: autocannon) sends POST /vote at 1,000 requests/s. Then the same votes are sent over gRPC for another
# poll. Both polls must end in the same result, equal to that of a model of a few lines and to a recount. Needs npm and python3,
# else it is skipped. The argument is the path of a built `votestream`.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/tools.sh"
needs npm node python3
from_npm autocannon@9.0.0

work_in "$(mktemp -d)"
start_stack "$votestream"
vs() { "$votestream" --ingest "$ingest" --results "$results" --json "$@"; }

for poll in http grpc; do
    vs poll create --id "$poll" --option red --option green --option grün --closes-in 1h >/dev/null
done
node "$here/http-load.cjs" "$tool/node_modules/autocannon" "$ingest" http >"$work/http.csv"
sed 's/^http,/grpc,/' "$work/http.csv" >"$work/grpc.csv"
vs cast --file "$work/grpc.csv" >/dev/null
for poll in http grpc; do
    vs poll close "$poll" >/dev/null
    vs results "$poll" --final --wait >"$work/$poll.json"
    vs audit "$poll" >"$work/$poll.audit"
done

python3 - "$work" <<'COMPARE'
import collections, csv, json, sys

work = sys.argv[1]
last = {user: option for _, user, option in csv.reader(open(f"{work}/http.csv", encoding="utf-8"))}
expected = dict(collections.Counter(last.values()))
for poll in ["http", "grpc"]:
    result = json.load(open(f"{work}/{poll}.json"))
    votes = {option["option_id"]: option["votes"] for option in result["options"]}
    if votes != expected or not json.load(open(f"{work}/{poll}.audit"))["matches"]:
        sys.exit(f"FAILED: {poll} ends in {votes}, expected {expected}")
print(f"ok: over HTTP and over gRPC the same exact result, {expected}")
COMPARE
