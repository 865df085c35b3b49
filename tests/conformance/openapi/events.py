"""Results as events: what the document says of them, in words and by the schemas of their data. Arguments: the server's URL, the
document, and an administrator's token or "". Needs the polls of prepare.py.
"""

import http.client
import json
import sys
import urllib.parse

import jsonschema

server, document, token = sys.argv[1:]
SECONDS_MAX = 60
SCHEMAS = {"poll": "PollEvent", "interim": "Interim", "final": "Final"}

with open(document, encoding="utf-8") as file:
    schemas = json.load(file)
credentials = {"Authorization": f"Bearer {token}"} if token else {}


def fail(message):
    sys.exit(f"FAILED: {message}")


def call(method, path, headers={}, body=None):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server).netloc, timeout=SECONDS_MAX)
    headers = {**headers, **({"Content-Type": "application/json"} if body is not None else {})}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    return connection.getresponse()


def post(path, body):
    answer = call("POST", path, credentials, body)
    if answer.status != 200:
        fail(f"POST {path}: {answer.status} {answer.read()!r}")


def path_of(poll):
    return f"/v1/polls/{poll}/results/events"


def events(poll, headers={}):
    """The events of a stream, each with its kind, id and data. They fit the document. Ends with the stream."""
    answer = call("GET", path_of(poll), headers)
    got = (answer.status, answer.headers["Content-Type"], answer.headers["Cache-Control"])
    if got != (200, "text/event-stream", "no-store"):
        fail(f"the stream of {poll} begins with {got}")
    event = {}
    for line in answer:
        line = line.decode().rstrip("\n")
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value
            continue
        if "event" in event:
            data = json.loads(event["data"])
            reference = {"$ref": f"#/components/schemas/{SCHEMAS[event['event']]}"}
            jsonschema.Draft202012Validator({**reference, "components": schemas["components"]}).validate(data)
            yield event["event"], event.get("id"), data
        event = {}


def until(poll, stream, what, wanted):
    for kind, ident, data in stream:
        if wanted(kind, data):
            return ident, data
    fail(f"the stream of {poll} ended before {what}")


# A poll that is final: its stream ends, and whoever has seen the end gets nothing more.
seen = list(events("final"))
if [kind for kind, _, _ in seen] != ["poll", "final"]:
    fail(f"the stream of a final poll has {seen}")
again = call("GET", path_of("final"), {"Last-Event-ID": seen[-1][1]})
if (again.status, again.read()) != (204, b""):
    fail(f"{again.status} for a client that has the final result")
if [kind for kind, _, _ in events("final", {"Last-Event-ID": "0"})] != ["poll", "final"]:
    fail("a client with an unknown id does not get the final result")

# A poll that is open: counts come as votes do.
stream = events("open")
_, first = until("open", stream, "the first counts", lambda kind, data: kind == "interim")
post("/v1/polls/open/votes", {"user_id": "watched", "option_id": "a"})
until("open", stream, "new counts", lambda kind, data: kind == "interim" and data["total_submitted"] > first["total_submitted"])

# A poll that hides its results: a reader gets counts once they are released, and none before.
stream = events("unreleased")
kind, _, data = next(stream)
if kind != "poll" or not data["hidden"]:
    fail(f"the stream of a poll with hidden results begins with {kind} {data}")
post("/v1/polls/unreleased/votes", {"user_id": "watched", "option_id": "a"})
post("/v1/polls/unreleased/release", {})
is_hidden = True
for kind, _, data in stream:
    if kind == "poll":
        is_hidden = bool(data["hidden"])
    elif is_hidden:
        fail(f"{kind} came while the results were hidden")
    else:
        break
else:
    fail("the stream ended although the poll is open")

missing = call("GET", path_of("missing"))
if missing.status != 404 or json.load(missing)["error"]["code"] != "NOT_FOUND":
    fail(f"{missing.status} for a poll that does not exist")
print("ok: events are as documented, and end with the final result")
