#!/usr/bin/env bash
# Checks that a report is whole: no part failed, every chart that it shows exists, and every chart is well-formed XML.
set -euo pipefail
directory="${1:?usage: check.sh DIRECTORY}"
report="$directory/report.md"

if grep -n '^\*\*.*failed' "$report"; then
    echo "$report reports failures" >&2
    exit 1
fi
charts=0
while read -r chart; do
    [ -s "$directory/$chart" ] || { echo "$report shows $chart, which is not there" >&2; exit 1; }
    charts=$((charts + 1))
done < <(grep -o '([a-z0-9-]*\.svg)' "$report" | tr -d '()')
[ "$charts" -gt 0 ] || { echo "$report shows no chart" >&2; exit 1; }
if command -v python3 >/dev/null; then
    python3 -c '
import sys, xml.etree.ElementTree as tree
for path in sys.argv[1:]:
    root = tree.parse(path).getroot()
    assert root.tag.endswith("svg") and any(child.tag.endswith("text") for child in root), path
' "$directory"/*.svg
else
    echo 'python3 is missing: the charts are not parsed'
fi
echo "$charts charts"
