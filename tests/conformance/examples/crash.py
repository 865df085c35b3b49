"""Programs of `examples` cast votes while the service is killed with -9. What they say must be what is counted.

Arguments: the path of a built `votestream`, a folder for data, and for each example its name and the command of its programs.
"""

import argparse
import collections
import csv
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

VOTES = 100_000
OPTIONS = ["red", "green", "blue"]
# Every hundredth vote is for an option that the poll does not have.
NO_OPTION = "nothing"
# The service is killed after so many votes were fed to the example.
KILLS_AFTER = [12_000, 28_000, 44_000, 60_000, 76_000, 92_000]
# Of these kills, so many must meet votes that are under way.
KILLS_MIN = 3
LINES_AT_ONCE = 500
# Longest wait for anything on a busy machine.
PATIENCE_SECONDS = 120
COPIES_LAND_SECONDS = 15
# Everything that was started.
processes = []
UNANSWERED = re.compile(r"^([1-9]\d*) votes have no answer", re.MULTILINE)


def expect(what, good, seen):
    if not good:
        sys.exit(f"FAILED: {what}: {seen}")


def wait_for(what, condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        expect(f"waited for {what}", time.monotonic() < end, "it did not come")
        time.sleep(0.005)
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Stack:
    """`votestream up` on the same address and the same data after every kill."""

    def __init__(self, votestream, folder):
        self.votestream, self.folder, self.process = votestream, folder, None
        self.address = f"127.0.0.1:{free_port()}"
        self.server = f"http://{self.address}"

    def start(self):
        self.out = self.folder / "addresses"
        with open(self.out, "w") as out, open(self.folder / "log", "a") as log:
            command = [self.votestream, "up", "--json", "--data-dir", self.folder / "data", "--addr", self.address]
            self.process = subprocess.Popen(command, stdout=out, stderr=log)
        processes.append(self.process)

    def serves(self):
        expect("the stack runs", self.process.poll() is None, (self.folder / "log").read_text())
        return self.out.stat().st_size > 0

    def stands_still(self):
        threads = pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)

    def kill(self):
        wait_for("the stack", self.serves)
        self.process.kill()
        self.process.wait()

    def ask(self, *words):
        """Runs a command of `votestream`."""
        command = [self.votestream, "--server", self.server, "--json", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        expect(" ".join(words), done.returncode == 0, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def create(self, poll):
        options = [word for option in OPTIONS for word in ("--option", option)]
        self.ask("poll", "create", "--id", poll, *options, "--closes-in", "1h")


class Example:
    """The programs of one example. The command of a program has its name for {}."""

    def __init__(self, stack, folder, name, command):
        self.stack, self.name, self.command = stack, name, command
        self.folder = folder / name
        self.folder.mkdir()

    def run(self, program, *words, **options):
        command = [*self.command.replace("{}", program).split(), "--server", self.stack.server, *words]
        process = subprocess.Popen(command, text=True, **options)
        processes.append(process)
        return process

    def result(self, program, *words):
        process = self.run(program, *words, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, out.strip()


class Stream:
    """A stream of votes that reads from us what it casts."""

    def __init__(self, example, name):
        self.report = example.folder / f"{name}.csv"
        self.errors = example.folder / f"{name}.log"
        with open(self.errors, "w") as errors:
            words = ["stream", "--file", "-", "--report", self.report]
            self.process = example.run(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    def feed(self, lines):
        self.process.stdin.writelines(lines)
        self.process.stdin.flush()

    def unanswered(self):
        """How many votes were under way at each break that met any."""
        return [int(votes) for votes in UNANSWERED.findall(self.errors.read_text())]

    def end(self):
        """Its last word, and the votes that are not durable by their lines."""
        out, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        expect("the stream says how it ended", out.strip(), self.errors.read_text())
        with open(self.report, encoding="utf-8", newline="") as report:
            bad = {int(line): (kind, code) for line, kind, code, _ in csv.reader(report)}
        return json.loads(out.splitlines()[-1]), bad


def under_kills(example):
    """Streams votes under kills, and returns how many of each option must be counted at least, and at most."""
    stack, poll = example.stack, example.name
    stack.create(poll)
    watching = example.run("watch", "--poll", poll, stdout=subprocess.PIPE)
    code, out = example.result("cast", "--poll", poll, "--user", "one", "--option", "blue")
    expect("one vote is cast", (code, out) == (0, "durable"), (code, out))
    code, out = example.result("cast", "--poll", poll, "--user", "two", "--option", NO_OPTION)
    expect("a vote for no option is refused", code == 1 and out.startswith("rejected"), (code, out))

    chosen = {at: NO_OPTION if at % 100 == 37 else OPTIONS[at * at % 7 % 3] for at in range(1, VOTES + 1)}
    lines = [f"{poll},user-{at},{option}\n" for at, option in chosen.items()]
    stream = Stream(example, "kills")
    for start in range(0, VOTES, LINES_AT_ONCE):
        stream.feed(lines[start : start + LINES_AT_ONCE])
        if start + LINES_AT_ONCE in KILLS_AFTER:
            stack.kill()
            stack.start()
    last, bad = stream.end()

    hits = stream.unanswered()
    expect("kills met votes under way", len(hits) >= KILLS_MIN, stream.errors.read_text())
    wrong = {at for at, option in chosen.items() if option == NO_OPTION}
    rejected = {at for at, outcome in bad.items() if outcome == ("rejected", "OPTION_NOT_FOUND")}
    unknown = {at for at, (kind, _) in bad.items() if kind == "unknown"}
    expect("every vote has one outcome", last["durable"] + last["rejected"] + last["unknown"] == VOTES, last)
    expect("votes for no option are rejected, and no others", rejected == wrong, rejected ^ wrong)
    expect("the rest is durable or unknown", rejected | unknown == set(bad), bad)
    expect("counts and report agree", (last["rejected"], last["unknown"]) == (len(rejected), len(unknown)), last)
    durable = collections.Counter({"blue": 1}) + collections.Counter(chosen[at] for at in chosen.keys() - bad.keys())
    at_most = durable + collections.Counter(chosen[at] for at in unknown)
    summary = f"{last['durable']} durable, {last['rejected']} rejected, {last['unknown']} unknown"
    print(f"ok: {example.name}: {summary}; {len(hits)} of {len(KILLS_AFTER)} kills met votes under way: {hits}", flush=True)
    return watching, durable, at_most


def generated(example):
    poll = f"{example.name}-generated"
    example.stack.create(poll)
    code, out = example.result("stream", "--generate", "2000", "--poll", poll)
    expect("all generated votes are durable", code == 0 and json.loads(out)["durable"] == 2000, (code, out))


def arrived(address):
    """Bytes that each connection has brought to this address, and that nobody has read."""
    rows = [row.split() for row in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f":{int(address.rsplit(':', 1)[1]):04X}"
    return [int(row[4].split(":")[1], 16) for row in rows if row[1].endswith(port) and row[3] == "01"]


def change_of_mind(examples):
    """A vote was under way at a break. The same user's next vote waits until the old one cannot be stored any more."""
    stack = examples[0].stack
    streams = {f"{example.name}-change": Stream(example, "change") for example in examples}
    # So long that its vote is told from everything else that a connection brings.
    user = "u" * 250
    for poll, stream in streams.items():
        stack.create(poll)
        stream.feed([f"{poll},first,blue\n"])
    for poll in streams:
        wait_for("the first vote", lambda poll=poll: stack.ask("results", poll)["total_counted"])
    stack.process.send_signal(signal.SIGSTOP)
    wait_for("every thread to stand still", stack.stands_still)
    for poll, stream in streams.items():
        stream.feed([f"{poll},{user},red\n"])
    wait_for("the votes", lambda: sum(size > len(user) for size in arrived(stack.address)) == len(streams))
    stack.kill()
    broke = time.monotonic()
    stack.start()
    for poll, stream in streams.items():
        stream.feed([f"{poll},{user},green\n"])
    for poll, stream in streams.items():
        last, bad = stream.end()
        waited = time.monotonic() - broke
        expect("both votes are durable", not bad and last["durable"] == 3, (last, bad))
        expect("one of them was under way", stream.unanswered() == [1], stream.errors.read_text())
        expect("the other one waited", waited > COPIES_LAND_SECONDS - 1, waited)
    for poll in streams:
        counted, _ = result_of(stack, poll)
        expect("the last vote counts", counted == {"blue": 1, "red": 0, "green": 1}, counted)
    print("ok: while a vote may still be stored, the same user's next one waits", flush=True)


def result_of(stack, poll):
    """The final result of a poll, and whether a recount agrees."""
    stack.ask("poll", "close", poll)
    final = stack.ask("results", poll, "--final", "--wait")
    audit = stack.ask("audit", poll)
    counted = {option["option_id"]: option["votes"] for option in final["options"]}
    recounted = {option["option_id"]: option["recounted"] for option in audit["options"]}
    return counted, audit["matches"] and audit["final"] and counted == recounted


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("votestream")
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("examples", nargs="+", metavar="NAME=COMMAND", help="the program's name comes for {}")
    arguments = arguments.parse_args()
    stack = Stack(arguments.votestream, arguments.folder)
    stack.start()
    try:
        wait_for("the stack", stack.serves)
        examples = [Example(stack, arguments.folder, *example.split("=", 1)) for example in arguments.examples]
        done = [(example, *under_kills(example)) for example in examples]
        for example, watching, at_least, at_most in done:
            counted, is_exact = result_of(stack, example.name)
            expect("a recount agrees", is_exact, counted)
            expect(
                "as many are counted as are durable, or unknown",
                all(at_least[option] <= counted[option] <= at_most[option] for option in OPTIONS),
                (at_least, counted, at_most),
            )
            out, _ = watching.communicate(timeout=PATIENCE_SECONDS)
            seen = "final: " + ", ".join(f"{option} {votes}" for option, votes in counted.items())
            expect("whoever watches sees the result", out.splitlines()[-1] == seen, out)
            print(f"ok: {example.name}: the final result is exact, {counted}", flush=True)
            generated(example)
        change_of_mind(examples)
    finally:
        for process in processes:
            process.kill()


main()
