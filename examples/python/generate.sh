#!/usr/bin/env bash
# Makes the package `votestream` beside this script from the .proto files, with the protoc of grpcio-tools.
set -euo pipefail
cd "$(dirname "$0")"
proto=../../proto
"${PYTHON:-python3}" -m grpc_tools.protoc --proto_path="$proto" --python_out=. --pyi_out=. --grpc_python_out=. \
    "$proto"/votestream/v1/*.proto
