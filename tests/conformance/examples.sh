#!/usr/bin/env bash
# The clients of `examples` against the real binary. They stream votes while it is killed with -9 again and again, and every vote
# must be counted as they were told; the page of the browser example casts a vote and watches. Also looks whether docs/api.md is
# what the .proto files say. Needs python3, npm and node, else it is skipped. The argument is the path of a built `votestream`.
# Chromium is Debian's; without it that part is skipped.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
root="$(realpath "$here/../..")"
source "$here/tools.sh"
needs python3 npm node

mapfile -t packages <"$root/examples/python/requirements.txt"
from_pypi examples "${packages[@]}"
export PYTHONPATH="$tool"
python3 "$root/proto/api.py" --check

from_npm playwright-core@1.65.1
playwright="$tool/node_modules/playwright-core"
from_lock examples "$root/examples/typescript"

# What a checkout has, below the packages, where Node and npm look for them.
work_in "$(mktemp -d "$tool/run.XXXXXX")"
python="$work/examples/python"
typescript="$work/examples/typescript"
mkdir -p "$python" "$typescript"
cp -r "$root/proto" "$work"
cp "$root"/examples/python/*.* "$python"
(cd "$root/examples/typescript" && cp -r ./*.json ./*.yaml src browser proto "$typescript")
"$python/generate.sh"
npm --prefix "$typescript" run --silent build

mkdir "$work/crash"
python3 "$here/examples/crash.py" "$votestream" "$work/crash" "python=python3 $python/{}.py" \
    "typescript=node $typescript/build/src/{}.js"

from_apt chromium chromium
port="$(free_port)"
start_stack "$votestream" --cors-allow-origins "http://127.0.0.1:$port"
"$votestream" --server "$ingest" poll create --id page --option red --option green --closes-in 1h >/dev/null
mkdir "$work/node_modules"
ln -s "$playwright" "$work/node_modules"
cp "$here/examples/page.mjs" "$work"
timeout 180 node "$work/page.mjs" "$(command -v chromium)" "$typescript/browser" "$port" "$ingest" page green
