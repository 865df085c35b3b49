"""Reads metrics as text, and asks a Prometheus that scrapes them. For metrics.sh, which says what it expects."""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# Longest wait for a condition, on a busy machine.
PATIENCE_SECONDS = 120


def text(admin):
    request = urllib.request.Request(f"{admin}/metrics", headers={"Accept": "text/plain"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        print(answer.read().decode(), end="")


class Server:
    def __init__(self, url):
        self.url = url

    def get(self, path, **parameters):
        """The data of an answer, or None while the server starts."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refused:
            if refused.code == 503:
                return None
            sys.exit(f"FAILED: {path} {parameters}: {refused.read().decode()}")
        except urllib.error.URLError:
            return None

    def series(self, query):
        return (self.get("query", query=query) or {}).get("result", [])

    def until(self, what, holds):
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := holds()):
            if time.monotonic() > end:
                sys.exit(f"FAILED: {what}, not within {PATIENCE_SECONDS} s: {self.get('targets')}")
            time.sleep(0.1)
        print(f"ok: {what}")
        return found


def queries(panels):
    for panel in panels:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")


def server(url, dashboard, votes):
    asked = Server(url)
    asked.until("up is 1", lambda: asked.series('up{job="votestream"} == 1'))
    asked.until("the votes are counted", lambda: asked.series(f"votestream_ingest_votes_accepted_total == {votes}"))
    asked.until("they are stored", lambda: asked.series(f'votestream_group_votes_applied_total{{group="persist"}} == {votes}'))
    # A rate needs several scrapes.
    asked.until("it was scraped several times", lambda: asked.series('count_over_time(up{job="votestream"}[1m]) >= 5'))

    with open(dashboard, encoding="utf-8") as file:
        panels = json.load(file)["panels"]
    count = 0
    for title, query in queries(panels):
        # A filter may leave nothing over, and a system that is well has no such series.
        if not asked.series(query) and not query.endswith(" > 0"):
            sys.exit(f"FAILED: the panel {title!r} shows nothing: {query}")
        count += 1
    print(f"ok: {count} queries of the dashboard")

    def evaluated():
        groups = (asked.get("rules") or {}).get("groups", [])
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if rules and all(rule["lastEvaluation"] > "1" for rule in rules) else None

    rules = asked.until("the alarms are evaluated", evaluated)
    for rule in rules:
        if rule["health"] != "ok" or rule["state"] == "firing":
            sys.exit(f"FAILED: {rule}")
    print(f"ok: {len(rules)} alarms, and none is on")
    for target in asked.get("targets")["activeTargets"]:
        if target["health"] != "up" or target["lastError"]:
            sys.exit(f"FAILED: {target}")


if sys.argv[1] == "text":
    text(sys.argv[2])
else:
    server(sys.argv[2], sys.argv[3], int(sys.argv[4]))
