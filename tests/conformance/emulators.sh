#!/usr/bin/env bash
# Runs the contract suite over stand-ins for AWS of other makes than those in the tests' own process: ministack (PyPI) for both
# services, kinesis-local (npm) for resharding, and a foreign producer in Python (boto3, aws-kinesis-agg). Needs cargo, python3
# and npm, else it is skipped. Everything listens on loopback, on free ports, and is stopped at the end. adapters/aws/README.md
# says for which tests each stand-in is trusted, and why.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/tools.sh"
needs python3 npm node
from_pypi emulators ministack==1.5.33 boto3==1.43.106 aws-kinesis-agg==1.2.3
export PYTHONPATH="$tool" PYTHONDONTWRITEBYTECODE=1
from_npm kinesis-local@0.6.2
module="$tool/node_modules/kinesis-local"

work_in "$(mktemp -d)"

free_ports() {
    python3 -c 'import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in held))' "$1"
}
# listening WHAT PID PORT: waits until the process listens on the port.
listening() {
    for _ in $(seq 300); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$3") 2>/dev/null; then return; fi
        kill -0 "$2" 2>/dev/null || break
        sleep 0.1
    done
    printf 'FAILED: %s does not start:\n' "$1" >&2
    tail -n 20 "$work/$1.log" >&2
    exit 1
}

# Stand-ins accept any credentials. The caller's own must not reach them, and no call may leave this machine.
unset "${!AWS_@}"
export AWS_ACCESS_KEY_ID=stand-in AWS_SECRET_ACCESS_KEY=stand-in AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1

read -r ministack_port plain_port tls_port <<<"$(free_ports 3)"
BIND_HOST=127.0.0.1 IOT_MTLS_ENABLED=0 GATEWAY_PORT="$ministack_port" TMPDIR="$work" \
    python3 "$here/run_ministack.py" >"$work/ministack.log" 2>&1 &
started+=($!)
ministack_pid=$!
KINESIS_MOCK_CERT_PATH="$module/server.json" KINESIS_MOCK_PLAIN_PORT="$plain_port" KINESIS_MOCK_TLS_PORT="$tls_port" \
    SHARD_LIMIT=200 LOG_LEVEL=ERROR node --require "$here/loopback.cjs" "$module/main.js" >"$work/kinesis-local.log" 2>&1 &
started+=($!)
kinesis_local_pid=$!

# conforms NAME WANTED KINESIS_URL DYNAMODB_URL
conforms() {
    printf '\n-- %s: %s\n' "$1" "$2"
    VOTESTREAM_TEST_AWS="$2" AWS_ENDPOINT_URL_KINESIS="$3" AWS_ENDPOINT_URL_DYNAMODB="$4" \
        cargo test --quiet --locked --workspace --test endpoint -- --test-threads 3
}

cd "$here/../.."
cargo test --quiet --locked --workspace --test endpoint --no-run
listening ministack "$ministack_pid" "$ministack_port"
listening kinesis-local "$kinesis_local_pid" "$plain_port"
url="http://127.0.0.1:$ministack_port"
# One after the other, since each of them keeps a processor busy.
conforms ministack kinesis,fan-out,dynamodb,foreign "$url" "$url"
conforms kinesis-local kinesis,resharding,foreign "http://127.0.0.1:$plain_port" "$url"
