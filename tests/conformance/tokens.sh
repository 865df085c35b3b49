#!/usr/bin/env bash
# Tokens of other makes: PyJWT and jose sign them, right and wrong, with every algorithm that they know. Each must get the answer
# that it deserves. Needs python3, and npm and node, else it is skipped. The argument is the path of a built `votestream`.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/tools.sh"
needs python3 npm node

from_pypi jwt pyjwt==2.10.1 cryptography==45.0.7
python=(env "PYTHONPATH=$tool" python3)
from_npm jose@6.2.18
work_in "$(mktemp -d "$tool/run.XXXXXX")"
cp "$here/tokens/sign.mjs" "$work"
"${python[@]}" "$here/tokens/sign.py" "$work"
node "$work/sign.mjs" "$work"

algorithms='algorithms = ["ES256", "ES384", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"'
cat >"$work/auth.toml" <<TOML
[[issuer]]
iss = "https://pyjwt.test"
aud = "votestream"
keys = "pyjwt.jwks.json"
$algorithms, "HS256"]
scopes = ["vote:*", "read:*"]
namespace = "one"

[[issuer]]
iss = "https://jose.test"
aud = "votestream"
keys = "jose.jwks.json"
$algorithms]
scopes = ["vote:*", "read:*"]
namespace = "two"

[[key]]
id = "operator"
sha256 = "$(printf 'a-key-for-this-script' | sha256sum | cut -d ' ' -f 1)"
scopes = ["manage:*"]
TOML
start_stack "$votestream" --auth "$work/auth.toml"
export VOTESTREAM_TOKEN='a-key-for-this-script'
"$votestream" --ingest "$ingest" --results "$results" poll create --id p --option a --closes-in 1h
unset VOTESTREAM_TOKEN
"${python[@]}" "$here/tokens/send.py" "$ingest" "$work/pyjwt.tokens.json" "$work/jose.tokens.json"
