#!/usr/bin/env bash
# Prometheus itself: promtool reads the metrics of a running stack and finds nothing to complain of, and so does a server that
# scrapes them. It evaluates every alarm and every query of the dashboard. Needs python3, and Debian's prometheus, which root
# gets by apt, else it is skipped. The argument is the path of a built `votestream`.
set -euo pipefail
votestream="$(realpath "$1")"
here="$(cd "$(dirname "$0")" && pwd)"
deploy="$here/../../deploy"
source "$here/tools.sh"
needs python3
from_apt prometheus prometheus
needs promtool

promtool check rules "$deploy/prometheus/votestream.rules.yml"
work_in "$(mktemp -d)"
start_stack "$votestream" --admin-addr 127.0.0.1:0
admin="$(sed -n 's/.*"admin":"\([^"]*\)".*/\1/p' "$work/addresses")"
"$votestream" --ingest "$ingest" --results "$results" poll create --id p --option a --option b --closes-in 1h >/dev/null
python3 - >"$work/votes.csv" <<'VOTES'
for user in range(1000):
    print(f"p,user {user},{'ab'[user % 2]}")
VOTES
"$votestream" --ingest "$ingest" --results "$results" cast --file "$work/votes.csv"
python3 "$here/metrics.py" text "$admin" >"$work/metrics"
# promtool reads the text format. Its lints are about names, units and help.
promtool check metrics <"$work/metrics"
echo 'ok: promtool finds nothing'

port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
cat >"$work/prometheus.yml" <<YAML
global: {scrape_interval: 1s, evaluation_interval: 1s}
scrape_configs:
  - job_name: votestream
    static_configs: [{targets: ["${admin#http://}"]}]
rule_files: ["$(realpath "$deploy/prometheus/votestream.rules.yml")"]
YAML
prometheus --config.file "$work/prometheus.yml" --storage.tsdb.path "$work/data" --web.listen-address "127.0.0.1:$port" \
    >"$work/prometheus.log" 2>&1 &
started+=($!)
python3 "$here/metrics.py" server "http://127.0.0.1:$port" "$deploy/grafana/votestream.json" 1000 ||
    { tail -n 20 "$work/prometheus.log" >&2; exit 1; }
# What a scrape does not understand, it says there.
if grep -E 'level=(warn|error)' "$work/prometheus.log"; then
    echo 'FAILED: Prometheus complains' >&2
    exit 1
fi
echo 'ok: Prometheus scrapes without a complaint'
