"""Sends a vote with each token, and compares the HTTP status. Ends with 1 if one differs."""

import json
import sys
import urllib.error
import urllib.request

ingest, *files = sys.argv[1:]
wrong, sent = [], 0
for tokens in files:
    for row in json.load(open(tokens)):
        request = urllib.request.Request(
            f"{ingest}/v1/polls/p/votes",
            data=b'{"option_id": "a"}',
            headers={"content-type": "application/json", "authorization": f"Bearer {row['token']}"},
        )
        try:
            status, body = urllib.request.urlopen(request, timeout=30).status, ""
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read().decode()
        sent += 1
        if status != row["status"]:
            wrong.append(f"{row['name']}: {status} {body}, expected {row['status']}")
print(f"{sent} tokens sent")
if wrong or sent == 0:
    print("FAILED:\n" + "\n".join(wrong), file=sys.stderr)
    sys.exit(1)
