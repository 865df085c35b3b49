"""Makes polls of every kind, and prints their ids by kind as JSON. Arguments: the server's URL, and an administrator's token or "".
"""

import datetime
import json
import sys
import time
import urllib.error
import urllib.request

server, token = sys.argv[1:]
SECONDS_MAX = 120


def call(path, body=None):
    request = urllib.request.Request(server + path, method="GET" if body is None else "POST")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def create(poll, visibility="LIVE", opens_in=0):
    now = datetime.datetime.now(datetime.UTC)
    body = {
        "poll_id": poll,
        "title": "Gemüse, \"wie immer\"",
        "options": [{"option_id": "a", "title": "A, or not"}, {"option_id": "b"}],
        "closes_at": (now + datetime.timedelta(hours=5)).isoformat(),
        "visibility": f"POLL_VISIBILITY_{visibility}",
    }
    if opens_in:
        body["opens_at"] = (now + datetime.timedelta(hours=opens_in)).isoformat()
    state = call("/v1/polls", body)["poll"]["state"]
    assert state == ("POLL_STATE_SCHEDULED" if opens_in else "POLL_STATE_OPEN"), state
    return poll


kinds = {
    "open": [create("open")],
    "hidden": [create("hidden", "WHEN_FINAL"), create("unreleased", "ON_RELEASE")],
    "scheduled": [create("scheduled", opens_in=1)],
    "spare": [create("spare-1"), create("spare-2", "ON_RELEASE")],
    # Hidden although it is final.
    "closed": [create("kept-back", "ON_RELEASE")],
    "final": [create("final"), create("shown", "WHEN_FINAL")],
}
for poll in ["open", "hidden", "kept-back", "final", "shown"]:
    for user in range(5):
        call(f"/v1/polls/{poll}/votes", {"user_id": f"u{user}", "option_id": "ab"[user % 2]})
for poll in kinds["closed"] + kinds["final"]:
    call(f"/v1/polls/{poll}/close", {})
end = time.monotonic() + SECONDS_MAX
while any(call(f"/v1/polls/{poll}")["poll"]["state"] != "POLL_STATE_FINAL" for poll in kinds["closed"] + kinds["final"]):
    if time.monotonic() > end:
        sys.exit("FAILED: a poll that was closed did not become final")
    time.sleep(0.1)
print(json.dumps(kinds))
