"""What the checks on this machine share: binaries, processes, the `votestream` command, and an election with a known result.

Owns every process that it starts, and ends them all. Must never use the credentials of whoever runs it, nor listen anywhere
but on loopback.
"""

import contextlib
import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVICES = ("ingest", "persist", "tally")
# For a machine that is busy with other things.
PATIENCE_SECONDS = 300
# How often votes that an overloaded engine refused are cast again.
CAST_MAX = 20

# Spreads the votes over many partitions: an emulator reads a large one slowly.
EXPECTED_PEAK = 100_000

# The mayoral election of Minneapolis in 2013, not part of this repository: see tests/e2e/tests/exact.rs.
BALLOTS = ROOT.parent / "shared" / "data" / "minneapolis-mayor-2013-cast-vote-record.csv"
OFFICIAL = {"BETSY HODGES": 28_962, "MARK ANDREW": 19_648, "DON SAMUELS": 8_350, "CAM WINTON": 7_533}
OFFICIAL_TOTAL, OFFICIAL_SUBMITTED = 79_415, 209_426


class Failed(Exception):
    """The check has found something wrong."""


def say(text):
    print(f"   {text}", flush=True)


def expect(what, found, wanted):
    if found != wanted:
        raise Failed(f"{what}: {found!r} instead of {wanted!r}")
    say(f"ok: {what}: {found!r}")


def wait_for(what, check, patience=PATIENCE_SECONDS):
    """Until `check` returns something, asked again and again."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.1)
    raise Failed(f"{what}: still not so after {patience} s")


def free_ports(count):
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def listening(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def build():
    """The services with their adapters, and the command with its stand-ins; returns where they are."""
    packages = [word for one in ("votestream", *(f"votestream-{one}" for one in SERVICES)) for word in ("-p", one)]
    # Together: each choice of packages and features compiles a hundred crates anew.
    features = ",".join([*(f"votestream-{one}/aws" for one in SERVICES), "votestream/dev-aws"])
    subprocess.run(["cargo", "build", "--quiet", "--locked", *packages, "--features", features], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return (ROOT / target / "debug").resolve()


def environment(**more):
    """A clean one: nothing of the caller's own account or settings gets in."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "PYTHONPATH") if name in os.environ}
    return {
        **kept,
        "AWS_ACCESS_KEY_ID": "stand-in", "AWS_SECRET_ACCESS_KEY": "stand-in", "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


class Rig:
    """Processes in a working directory; used as a context, at whose end they are all gone."""

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="votestream-")
        self.work = pathlib.Path(self.directory.name)
        self.running = {}
        # What else there is to clear away at the end.
        self.leftovers = []
        # An end by signal must clean up, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
        return self

    def __exit__(self, kind, error, trace):
        for clear in self.leftovers:
            clear()
        for process in self.running.values():
            process.kill()
            process.wait()
        if kind is not None and kind is not SystemExit:
            for log in sorted(self.work.glob("*.log")):
                print(f"-- {log.name}\n{tail(log)}", file=sys.stderr)
        self.directory.cleanup()

    def start(self, name, command, env):
        log = open(self.work / f"{name}.log", "ab")
        self.running[name] = subprocess.Popen(command, env=env, cwd=self.work, stdout=log, stderr=log)
        log.close()
        return self.running[name]

    def log(self, name):
        return (self.work / f"{name}.log").read_text(errors="replace")

    def ready(self, name, check, patience=PATIENCE_SECONDS):
        process = self.running[name]

        def ready():
            if process.poll() is not None:
                raise Failed(f"{name} ended with {process.returncode} instead of starting")
            return check()

        wait_for(f"{name} is ready", ready, patience)

    def ended(self, name, patience=PATIENCE_SECONDS):
        """Exit code of a process that is about to end."""
        process = self.running[name]
        try:
            code = process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            raise Failed(f"{name} has not ended after {patience} s") from None
        del self.running[name]
        return code

    def stop(self, name, patience=PATIENCE_SECONDS):
        self.running[name].send_signal(signal.SIGTERM)
        return self.ended(name, patience)


def tail(path, lines=15):
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


class Command:
    """The `votestream` command, as an operator uses it."""

    def __init__(self, binary, ingest_port, results_port, certificates=None, key=None):
        self.binary = binary
        scheme = "https" if certificates else "http"
        self.env = environment(
            VOTESTREAM_INGEST=f"{scheme}://127.0.0.1:{ingest_port}", VOTESTREAM_RESULTS=f"{scheme}://127.0.0.1:{results_port}",
            **({"VOTESTREAM_TLS_CA": str(certificates)} if certificates else {}), **({"VOTESTREAM_TOKEN": key} if key else {}),
        )

    def popen(self, *arguments, **how):
        return subprocess.Popen([self.binary, "--json", *arguments], env=self.env, text=True, **how)

    def __call__(self, *arguments, given=None, answers=(0,), otherwise=""):
        """The object that the command prints, if it ends with one of these exit codes; `otherwise` if it prints none."""
        ran = subprocess.run(
            [self.binary, "--json", *arguments], env=self.env, text=True, input=given, capture_output=True,
            timeout=4 * PATIENCE_SECONDS, check=False,
        )
        if ran.returncode not in answers:
            raise Failed(f"votestream {' '.join(arguments)}: {ran.returncode}: {ran.stdout[:1_000]}{ran.stderr[-1_000:]}")
        return json.loads(ran.stdout) if ran.stdout else otherwise

    def create_poll(self, poll, options):
        flags = [word for one in options for word in ("--option", one)]
        return self("poll", "create", "--id", poll, "--closes-in", "2h", "--expected-peak", str(EXPECTED_PEAK), *flags)

    def finish(self, poll):
        """Closes a poll; returns what is final, after a recount has confirmed it."""
        self("poll", "close", poll)
        final = self("results", poll, "--final", "--wait", "--timeout", f"{PATIENCE_SECONDS}s")
        audit = wait_for("the votes are counted anew", lambda: self("audit", poll, answers=(0, 1, 3), otherwise=None))
        expect("the recount equals the tallies", audit["matches"], True)
        return final

    def submitted(self, poll):
        """None if nobody answers at the moment."""
        answer = self("results", poll, answers=(0, 3), otherwise=None)
        return answer and int(answer["total_submitted"])


def an_election():
    """Choices of every voter in order, the options, and what must come out: votes, voters, votes of some options."""
    if not BALLOTS.exists():
        say(f"{BALLOTS.name} is not there: an invented election takes its place")
        options = ("red", "green", "blue")
        voters = [[options[at % 3], options[(at + 1) % 3]] for at in range(30_000)]
        return voters, options, 60_000, 30_000, dict.fromkeys(options, 10_000)
    with open(BALLOTS, newline="") as file:
        ballots = csv.reader(file)
        next(ballots)
        # Each voter casts the third choice, then the second, then the first.
        voters = [[one for one in reversed(ballot) if one not in ("undervote", "overvote")] for ballot in ballots]
    options = sorted({option for choices in voters for option in choices})
    return voters, options, OFFICIAL_SUBMITTED, OFFICIAL_TOTAL, OFFICIAL


def in_turns(voters, first):
    """Votes of some voters: everybody's first in time, then everybody's second, and so on."""
    turns = range(max(map(len, voters)))
    return [(f"voter-{first + at}", voter[turn]) for turn in turns for at, voter in enumerate(voters) if turn < len(voter)]


def cast(command, poll, votes):
    """Casts votes in their order until each is acknowledged; returns how many acknowledgements that took."""
    lines = "".join(json.dumps({"poll_id": poll, "user_id": user, "option_id": option}) + "\n" for user, option in votes)
    acknowledged = 0
    for _ in range(CAST_MAX):
        # 1 if votes were refused: an emulator that is busy does not answer in time, and ingest then takes no vote. All are
        # cast again, so that each voter's last vote is the last one in any case.
        answer = command("cast", "--file", "-", given=lines, answers=(0, 1))
        acknowledged += answer["accepted"]
        if answer["rejected"] == 0:
            return acknowledged
        codes = {one["code"] for one in answer["rejections"]}
        if codes != {"REJECTION_CODE_UNAVAILABLE"}:
            raise Failed(f"votes were refused for other reasons than an engine that is slow: {codes}")
    raise Failed(f"votes were refused {CAST_MAX} times")


def run_an_election(command, voters_at_once, poll="mayor"):
    """Lets that many voters vote at a time, and waits until they are counted."""
    voters, options, submitted, counted, known = an_election()
    command.create_poll(poll, options)
    acknowledged = 0
    for start in range(0, len(voters), voters_at_once):
        acknowledged += cast(command, poll, in_turns(voters[start:start + voters_at_once], start + 1))
        wait_for("the votes are counted", lambda: command.submitted(poll) == acknowledged)
    if acknowledged == submitted:
        say(f"ok: {submitted} votes were acknowledged at once, and are counted as submitted")
    else:
        say(f"ok: {acknowledged} votes are counted as submitted, {acknowledged - submitted} of them cast again after a refusal")
    final = command.finish(poll)
    counts = {option["option_id"]: option["votes"] for option in final["options"]}
    expect("voters counted", final["total_votes"], counted)
    expect("the result", {option: counts.get(option) for option in known}, dict(known))


def main(check):
    """Runs a check, and ends the process with what it found."""
    try:
        with Rig() as rig:
            check(rig)
    except (Failed, subprocess.CalledProcessError) as failure:
        sys.exit(f"FAILED: {failure}")
