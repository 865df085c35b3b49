"""Asks a service through a caching proxy, and judges what comes back and what reached the service.

Arguments: what to check, the proxy's URL, the service's URL, the log of calls that reached the service, and a token of an
administrator or "". The log has a line for each: time, method, address, status, and what the cache had.
"""

import datetime
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

what, proxy, service, log, token = sys.argv[1:6]
SECONDS_MAX = 120
RATE = 1_000
LOAD_SECONDS = 5
# max-age and stale-while-revalidate; a second more, since nginx counts in whole seconds, and the life of what the service reads.
AGE_MAX = 1 + 5 + 1 + 1
EVENT_SECONDS_MAX = 10

manager = {"Authorization": f"Bearer {token}"} if token else {}


def check(holds, message):
    if not holds:
        sys.exit(f"FAILED: {what}: {message}")


def ok(message):
    print(f"ok: {what}: {message}", flush=True)


def connect(url):
    return http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=SECONDS_MAX)


class Answer:
    def __init__(self, raw):
        self.status, self.headers, self.body = raw.status, raw.headers, raw.read()
        self.cache = raw.headers.get("X-Cache-Status", "")

    def __str__(self):
        return f"{self.status} {self.cache} {self.body[:200]!r}"

    def json(self):
        return json.loads(self.body)


def ask(path, headers={}, body=None, url=proxy, method=None, connection=None):
    connection = connection or connect(url)
    data = None if body is None else json.dumps(body)
    headers = {**headers, **({"Content-Type": "application/json"} if body is not None else {})}
    connection.request(method or ("GET" if body is None else "POST"), path, data, headers)
    return Answer(connection.getresponse())


def until(thing, work):
    end = time.monotonic() + SECONDS_MAX
    while time.monotonic() < end:
        if got := work():
            return got
        time.sleep(0.05)
    check(False, f"{thing} did not come")


def create(poll, visibility="LIVE", headers=manager):
    now = datetime.datetime.now(datetime.UTC)
    body = {
        "poll_id": poll,
        "options": [{"option_id": "a"}, {"option_id": "b"}],
        "closes_at": (now + datetime.timedelta(hours=1)).isoformat(),
        "visibility": f"POLL_VISIBILITY_{visibility}",
    }
    answer = ask("/v1/polls", headers, body)
    check(answer.status == 200, f"creating a poll: {answer}")


def vote(poll, user, option="a", connection=None, headers=manager):
    answer = ask(f"/v1/polls/{poll}/votes", headers, {"user_id": user, "option_id": option}, connection=connection)
    check(answer.status == 200 and not answer.cache, f"a vote: {answer}")


def path_of(poll, kind="interim"):
    return f"/v1/polls/{poll}/results/{kind}"


def asked(path, method="GET", seen=0):
    """Lines of the log about this path, without the first `seen`. nginx writes a line after its answer."""
    with open(log, encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t") for line in file if line.endswith("\n")]
    return [line for line in lines if line[1] == method and line[2].split("?")[0] == path][seen:]


def never_kept(thing, status, path, headers={}, body=None):
    """Asks three times. Each time the service itself answers."""
    method = "GET" if body is None else "POST"
    before = len(asked(path, method))
    for _ in range(3):
        answer = ask(path, headers, body)
        check(answer.status == status, f"{thing}: {answer}")
        check(answer.cache in ("", "MISS", "BYPASS", "EXPIRED"), f"{thing} came from the cache: {answer}")
        check("public" not in answer.headers.get("Cache-Control", ""), f"{thing} may be kept: {answer.headers}")
    until("the log", lambda: len(asked(path, method)) >= before + 3)


def time_of(text):
    return datetime.datetime.fromisoformat(text).timestamp()


class Voter(threading.Thread):
    """Casts a vote of a new user again and again."""

    def __init__(self, poll):
        super().__init__(daemon=True)
        self.poll, self.votes, self.over, self.failure = poll, 0, threading.Event(), None
        self.start()

    def run(self):
        connection = connect(proxy)
        try:
            while not self.over.is_set():
                vote(self.poll, f"u{self.votes}", "ab"[self.votes % 2], connection)
                self.votes += 1
                time.sleep(0.02)
        except SystemExit as failure:
            self.failure = failure

    def end(self):
        self.over.set()
        self.join()
        check(self.failure is None, self.failure)


class Reader(threading.Thread):
    """Reads the counts over one connection, and notes when and what."""

    def __init__(self, poll):
        super().__init__(daemon=True)
        self.poll, self.seen, self.over = poll, [], threading.Event()
        self.start()

    def run(self):
        connection = connect(proxy)
        while not self.over.is_set():
            begun = time.time()
            answer = ask(path_of(self.poll), connection=connection)
            self.seen.append((begun, answer.status, answer.cache, answer.json() if answer.status == 200 else None))
            time.sleep(0.05)

    def end(self):
        self.over.set()
        self.join()
        return self.seen


def many_readers():
    """Thousands of readers are one call a second to the service."""
    create("watched")
    path = path_of("watched")
    until("the poll", lambda: ask(path).status == 200)
    voter, reader = Voter("watched"), Reader("watched")
    before, begun = len(asked(path)), time.monotonic()
    clients = 20
    load = subprocess.run(
        # Parameters that mean nothing must not make a difference, either.
        ["h2load", "--h1", f"--clients={clients}", f"--duration={LOAD_SECONDS}", f"--rps={RATE // clients}", f"{proxy}{path}",
         f"{proxy}{path}?nobody=asks"],
        capture_output=True, text=True, timeout=SECONDS_MAX)
    voter.end()
    seen = reader.end()
    seconds = time.monotonic() - begun
    codes = [int(count) for count in re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", load.stdout).groups()]
    answers = codes[0] + len(seen)
    check(codes[0] > 0 and not any(codes[1:]), f"not every answer is 200:\n{load.stdout}{load.stderr}")
    check({status for _, status, _, _ in seen} == {200}, f"not every answer is 200: {[one[1] for one in seen]}")
    asked_for = asked(path, seen=before)
    check(1 <= len(asked_for) <= seconds * 2 + 3, f"{len(asked_for)} calls in {seconds:.1f} s reached the service")
    ages = [begun - time_of(counts["as_of"]) for begun, _, _, counts in seen]
    check(max(ages) <= AGE_MAX, f"counts were {max(ages):.1f} s old")
    counts = sorted((time_of(counts["as_of"]), counts["total_submitted"]) for _, _, _, counts in seen)
    check(all(a[1] <= b[1] for a, b in zip(counts, counts[1:])), f"counts fell: {counts}")
    in_order = [time_of(counts["as_of"]) for _, _, _, counts in seen]
    check(in_order == sorted(in_order), "older counts came after newer ones")
    check(counts[-1][1] > counts[0][1], f"counts did not grow while {voter.votes} votes were cast")
    rate = answers / seconds
    print(f"{answers} answers in {seconds:.1f} s ({rate:.0f}/s), {len(asked_for)} calls reached the service, {voter.votes} votes "
          f"were cast meanwhile, counts were at most {max(ages):.1f} s old")
    # A copy is not given away for ever: nobody has asked for longer than the service allows.
    last = ask(path).json()
    pause = time_of(last["as_of"]) + AGE_MAX + 0.5 - time.time()
    time.sleep(max(0, pause))
    begun = time.time()
    later = ask(path).json()
    check(begun - time_of(later["as_of"]) < AGE_MAX, f"after a pause, counts are {begun - time_of(later['as_of']):.1f} s old")
    check(later["total_submitted"] == voter.votes, f"{later['total_submitted']} of {voter.votes} votes after a pause")
    ok("many readers are about one call a second, whose counts are fresh and never fall")


def forms():
    """JSON and CSV of one address do not get mixed up, and a client is told that it has the newest version."""
    path = path_of("watched")
    for _ in range(2):
        for accept, kind in [("text/csv", "text/csv"), ("*/*", "application/json"), ("application/json", "application/json")]:
            answer = ask(path, {"Accept": accept})
            check(answer.headers["Content-Type"].startswith(kind), f"{accept} gets {answer.headers['Content-Type']}")
    def unchanged():
        tag = ask(path).headers["ETag"]
        return ask(path, {"If-None-Match": tag}).status == 304
    until("304", unchanged)
    # What nginx would make of this address is that of a poll; the service finds a page.
    answer = ask("/p/..%2fv1%2fpolls%2fwatched")
    poll = ask("/v1/polls/watched")
    check(poll.headers["Content-Type"] == "application/json", f"{answer} was kept for another address: {poll}")
    ok("JSON, CSV and pages stay apart")


def others_are_not_kept():
    never_kept("404", 404, path_of("missing"))
    create("missing")
    check(ask(path_of("missing")).status == 200, "a poll that was missing is not found once it exists")
    never_kept("409", 409, path_of("watched", "final"))
    never_kept("a vote", 200, "/v1/polls/watched/votes", manager, {"user_id": "again", "option_id": "a"})
    create("secret", "ON_RELEASE")
    vote("secret", "u")
    never_kept("hidden results", 409, path_of("secret"))
    never_kept("405", 405, path_of("watched"), body={})
    ok("errors and votes come from the service")


def events():
    """A vote is seen in the stream as soon as it is counted, not when a buffer is full."""
    connection = connect(proxy)
    connection.request("GET", path_of("watched", "events"))
    stream = connection.getresponse()
    check(stream.status == 200, f"events: {stream.status}")
    arrived = []
    def read():
        for line in stream:
            if line.startswith(b"data:") and b"total_submitted" in line:
                arrived.append(json.loads(line[5:])["total_submitted"])
    threading.Thread(target=read, daemon=True).start()
    until("the first event", lambda: arrived)
    before = arrived[-1]
    begun = time.monotonic()
    vote("watched", "seen")
    until("an event after a vote", lambda: arrived[-1] > before)
    took = time.monotonic() - begun
    check(took < EVENT_SECONDS_MAX, f"an event came {took:.1f} s after the vote")
    ok(f"an event came {took:.2f} s after the vote")


def managers():
    """What only a manager may see is never given to anybody else."""
    path = path_of("secret")
    until("the vote", lambda: ask(path, manager, url=service).json()["total_submitted"] == 1)
    for _ in range(3):
        answer = ask(path, manager)
        check(answer.status == 200 and answer.json()["total_submitted"] == 1, f"a manager gets {answer}")
        check(answer.cache == "BYPASS" and "public" not in answer.headers["Cache-Control"], f"a manager's answer is kept: {answer}")
        reader = ask(path)
        check(reader.status == 409, f"a reader gets hidden results after a manager: {reader}")
    for path in ["/v1/polls", "/v1/polls/watched", path_of("watched"), "/v1/status"]:
        ask(path)
        answer = ask(path, manager)
        check(answer.status == 200 and answer.cache == "BYPASS", f"a manager gets a copy of {path}: {answer}")
    never_kept("401", 401, "/v1/status")
    never_kept("401 of a token", 401, path_of("watched"), {"Authorization": "Bearer no.such.token"})
    never_kept("401 of a vote", 401, "/v1/polls/watched/votes", body={"user_id": "u", "option_id": "a"})
    ok("no answer to a manager and no refusal comes from the cache")


def limits():
    """A reader who asks too often is refused, and nobody else is."""
    [friend, pest] = [{"X-Forwarded-For": address} for address in ["203.0.113.1", "203.0.113.2"]]
    create("limited", headers=friend)
    path = path_of("limited")
    check(ask(path, friend).status == 200, "the first call is refused")
    refused = until("429", lambda: (answer := ask(path_of("limited", "final"), pest)).status == 429 and answer)
    check(refused.headers.get("Retry-After", "").isdecimal(), f"no Retry-After: {refused}")
    # By now the copy of the counts is too old, so that the service answers, and refuses.
    old = until("a refusal", lambda: (answer := ask("/v1/polls?page_size=7", pest)).status == 429 and answer)
    check(old.cache != "HIT", f"a refusal came from the cache: {old}")
    other = ask("/v1/polls?page_size=7", friend)
    check(other.status == 200, f"another reader gets {other}")
    ok("429 is for the one who asks too often")


def stopped():
    """A final result is there although the service is not. The process of the service is the last argument."""
    path = path_of("watched", "final")
    answer = ask("/v1/polls/watched/close", manager, {})
    check(answer.status == 200, f"closing: {answer}")
    result = until("the final result", lambda: (answer := ask(path)).status == 200 and answer)
    copy = until("a copy", lambda: (answer := ask(path)).cache == "HIT" and answer)
    pid = int(sys.argv[6])
    os.kill(pid, signal.SIGTERM)
    def is_down():
        try:
            connect(service).connect()
        except ConnectionRefusedError:
            return True
        except ConnectionError:
            # It took the connection, and ends.
            return False
    until("the end of the service", is_down)
    for address in [path, path + "?x=1"]:
        copy = ask(address)
        check((copy.status, copy.cache, copy.body) == (200, "HIT", result.body), f"{address}: {copy}")
    check(ask("/v1/polls/watched/votes", manager, {"user_id": "u", "option_id": "a"}).status == 502, "a vote without a service")
    ok("the final result is served while the service is stopped")


steps = {
    "without identity": [many_readers, forms, others_are_not_kept, events, stopped],
    "with identity": [many_readers, others_are_not_kept, managers, events],
    "with limits": [limits],
}
for step in steps[what]:
    step()
