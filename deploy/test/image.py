"""Builds the images of the three services as the Dockerfile says, and runs them as ECS would: another user than root, root file
system read-only, no capabilities. Asks their health, and stops each by SIGTERM under load; no acknowledged vote may be lost. The
image of the command is built, too: it makes an auth file, and runs the whole stack on a volume, with every vote there after a
restart. That of the fleet votes in it.

No registry is asked: the binaries are those that cargo builds here, and a base with this machine's C library stands in for the
one that the Dockerfile names. Needs root, buildah, runc and cargo. Must never leave an image or a container behind.
"""

import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

from rig import ROOT, SERVICES, Command, Failed, build, environment, expect, free_ports, listening, main, say, tail, wait_for

BASE = "gcr.io/distroless/cc-debian12:nonroot"
USER, GROUP = 65532, 65532
# Longest drain and what comes after it, as in deploy/lib/service.ts; and as README.md tells Docker for the stack in one.
STOP_SECONDS = {"ingest": 36, "persist": 39, "tally": 39, "up": 30}
# Votes of the load during which ingest is stopped, votes of the load during which persist and tally are, and votes a second. Each
# is the only vote of its user.
INTERRUPTED, WHOLE, RATE = 2_000_000, 100_000, 2_000
# Votes of the image of the fleet.
FLEET = 2_000
# The stop comes in the middle of the load: when this many votes are counted.
STARTED = 4_000


class Images:
    """Builds and unpacks images in a storage of its own."""

    def __init__(self, work):
        self.work = work
        self.storage = ["--root", work / "storage", "--runroot", work / "run", "--storage-driver", "vfs"]

    def buildah(self, *arguments):
        ran = subprocess.run(["buildah", *self.storage, *arguments], text=True, capture_output=True, check=False)
        if ran.returncode != 0:
            raise Failed(f"buildah {' '.join(map(str, arguments))}:\n{ran.stdout}{ran.stderr}")
        return ran.stdout.strip()

    def from_folder(self, folder, name):
        """An image that holds a folder and nothing else."""
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, folder, "/")
        self.buildah("commit", "--quiet", container, name)
        self.buildah("rm", container)

    def base(self, binary):
        """The C library that the binary was linked with, certificates, and a place in /tmp."""
        root = self.work / "base"
        linked = subprocess.run(["ldd", binary], text=True, capture_output=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", linked):
            target = root / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
        certificates = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
        (root / "etc/ssl/certs").mkdir(parents=True)
        if certificates.exists():
            shutil.copy(certificates, root / "etc/ssl/certs")
        (root / "etc/passwd").write_text(f"nonroot:x:{USER}:{GROUP}:nonroot:/home/nonroot:/sbin/nologin\n")
        (root / "etc/group").write_text(f"nonroot:x:{GROUP}:\n")
        for folder in ("tmp", "proc", "dev", "sys"):
            (root / folder).mkdir()
        self.from_folder(root, BASE)

    def service(self, service, binary):
        """Builds the Dockerfile for one service; returns its root and its configuration."""
        stage = self.work / f"binaries-{service}"
        (stage / "out").mkdir(parents=True)
        # Symbols of a debug build are many times the program.
        subprocess.run(["strip", "--strip-debug", "-o", stage / "out/service", binary], check=True)
        self.from_folder(stage, f"localhost/binaries:{service}")
        shutil.rmtree(stage)
        root, made = self.built(service, SERVICE=service, BINARIES=f"localhost/binaries:{service}")
        expect("signal that stops it", made["StopSignal"], "SIGTERM")
        return root, made

    def built(self, name, *options, **arguments):
        """Builds an image of the Dockerfile; returns its root and its configuration."""
        tag = f"localhost/votestream:{name}"
        given = [word for one, value in arguments.items() for word in ("--build-arg", f"{one}={value}")]
        self.buildah(
            "build", "--quiet", "--format", "docker", "--pull-never", "--file", ROOT / "deploy/Dockerfile",
            "--ignorefile", ROOT / "deploy/Dockerfile.dockerignore", *options, *given, "--tag", tag, ROOT,
        )
        made = json.loads(self.buildah("inspect", "--type", "image", tag))["Docker"]["config"]
        expect(f"user of the {name} image", made["User"], f"{USER}:{GROUP}")
        container = self.buildah("from", "--pull-never", tag)
        return pathlib.Path(self.buildah("mount", container)), made

    def command(self, binary):
        """Builds the image of the `votestream` command, and lets it write its first auth file, as compose.yaml does. Returns its
        root, where that file is, and its configuration.
        """
        stage = self.work / "binaries-command"
        for folder in ("auth", "data"):
            (stage / "out" / folder).mkdir(parents=True)
        subprocess.run(["strip", "--strip-debug", "-o", stage / "out/votestream", binary], check=True)
        self.from_folder(stage, "localhost/binaries:command")
        shutil.rmtree(stage)
        root, made = self.built("command", "--target", "command", COMMAND="localhost/binaries:command")
        expect("signal that stops it", made["StopSignal"], "SIGTERM")
        # A volume takes the owner of the folder that it is mounted on.
        for folder in ("auth", "data"):
            owner = (root / folder).stat()
            expect(f"owner of its folder /{folder}", (owner.st_uid, owner.st_gid), (USER, GROUP))
        compose = (ROOT / "compose.yaml").read_text()
        words = re.search(r"command: \[(auth, init, .*)\]", compose)[1].split(", ")
        for _ in ("the first start", "a later one"):
            ran = in_image(root, made, *words)
            expect("what makes an auth file ends with", (ran.returncode, ran.stderr if ran.returncode else ""), (0, ""))
        expect("what it has made", sorted(file.name for file in (root / "auth").iterdir()), ["auth.toml", "keys.json"])
        return root, made

    def fleet(self):
        """Builds the image of the fleet, with the same binary as that of the command; returns its root and its configuration."""
        root, made = self.built("load", "--target", "load", COMMAND="localhost/binaries:command")
        ran = in_image(root, made, *made["Cmd"])
        expect("what it does without an order", (ran.returncode, "--poll" in ran.stdout), (0, True))
        return root, made

    def context(self):
        """What the build stage gets is enough for cargo: the ignore file lets every member of the workspace through."""
        container = self.buildah("from", "scratch")
        self.buildah(
            "copy", "--quiet", "--ignorefile", ROOT / "deploy/Dockerfile.dockerignore", "--contextdir", ROOT,
            container, ROOT, "/src",
        )
        source = pathlib.Path(self.buildah("mount", container)) / "src"
        metadata = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
        found = subprocess.run(metadata, cwd=source, capture_output=True, text=True, check=True).stdout
        members = {one["name"] for one in json.loads(found)["packages"]}
        expect("services in the build context", {f"votestream-{one}" for one in SERVICES} <= members, True)
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        if size > 50_000_000:
            raise Failed(f"the build context has {size} bytes: something is built into it")
        self.buildah("rm", container)


def in_image(root, image, *arguments, **variables):
    """Runs what an image holds, as its user, until it ends."""
    env = {**dict(one.split("=", 1) for one in image["Env"] or []), **variables}
    command = [shutil.which("chroot"), "--userspec", f"{USER}:{GROUP}", root, *image["Entrypoint"], *arguments]
    return subprocess.run(command, env=env, text=True, capture_output=True, check=False, timeout=60)


class Container:
    """One service under runc: only what its image holds, nothing of it writable, nothing allowed that root could do. `volumes` are
    folders of this machine by their place in the container. Without a health check in the image, `healthy` asks.
    """

    def __init__(self, rig, service, root, image, volumes=None, healthy=None):
        self.rig, self.service, self.root, self.image = rig, service, root, image
        self.volumes, self.asked = volumes or {}, healthy or self.by_the_image
        self.starts = 0
        self.state = rig.work / "runc"

    def runc(self, *arguments, **how):
        return subprocess.run(["runc", "--root", self.state, *arguments], text=True, check=False, capture_output=True, **how)

    def start(self, variables):
        self.starts += 1
        # Control groups have the name of their container, and are shared by everything on this machine.
        self.id = f"{self.rig.work.name}-{self.service}-{self.starts}"
        bundle = self.rig.work / self.id
        bundle.mkdir()
        self.rig.leftovers.append(lambda id=self.id: self.delete(id))
        given = dict(one.split("=", 1) for one in self.image["Env"] or [])
        variables = {"PATH": "/", "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt", **given, **variables}
        (bundle / "config.json").write_text(json.dumps({
            "ociVersion": "1.0.2",
            "root": {"path": str(self.root), "readonly": True},
            "process": {
                "user": {"uid": USER, "gid": GROUP},
                "args": [*self.image["Entrypoint"], *(self.image["Cmd"] or [])],
                "env": [f"{name}={value}" for name, value in variables.items()],
                "cwd": "/",
                "noNewPrivileges": True,
                "capabilities": {},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
                *({"destination": place, "type": "bind", "source": str(folder), "options": ["rbind", "rw"]}
                  for place, folder in self.volumes.items()),
            ],
            # The network is this machine's loopback.
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
        }))
        self.rig.start(self.id, ["runc", "--root", self.state, "run", "--bundle", bundle, self.id], None)
        self.rig.ready(self.id, self.asked)
        self.is_locked_up()

    def delete(self, id):
        """Whatever state it is in. A control group may be busy for a moment after its last process has ended."""
        self.runc("delete", "--force", id)
        for _ in range(50):
            groups = list(pathlib.Path("/sys/fs/cgroup").rglob(id))
            for group in groups:
                with contextlib.suppress(OSError):
                    group.rmdir()
            if not groups:
                return
            time.sleep(0.1)

    def by_the_image(self):
        test = self.image["Healthcheck"]["Test"]
        assert test[0] == "CMD", test
        return self.runc("exec", self.id, *test[1:]).returncode == 0

    def is_locked_up(self):
        pid = json.loads(self.runc("state", self.id).stdout)["pid"]
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        uids = re.search(r"^Uid:\s+(.*)$", status, re.MULTILINE)[1].split()
        capabilities = {int(one, 16) for one in re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\s+(\w+)$", status, re.MULTILINE)}
        if set(uids) != {str(USER)} or capabilities != {0}:
            raise Failed(f"{self.service} runs as {uids} with the capabilities {capabilities}")
        for folder in ("", "tmp/"):
            try:
                pathlib.Path(f"/proc/{pid}/root/{folder}written").write_text("")
            except OSError as error:
                if error.strerror != "Read-only file system":
                    raise
            else:
                raise Failed(f"{self.service} has a root that can be written")

    def stop(self):
        """By SIGTERM; returns the seconds that it took."""
        before = time.monotonic()
        told = self.runc("kill", self.id, "TERM")
        if told.returncode != 0:
            raise Failed(f"{self.id}: {told.stderr}")
        code = self.rig.ended(self.id, patience=STOP_SECONDS[self.service])
        seconds = time.monotonic() - before
        if code != 0:
            raise Failed(f"{self.id} ended with {code}:\n{tail(self.rig.work / f'{self.id}.log')}")
        say(f"ok: {self.service} stopped {seconds:.1f} s after SIGTERM, with everything finished")
        return seconds


class Page:
    """The HTTP side of a running stack, as browsers and curl see it."""

    def __init__(self, port, token):
        self.address, self.token = f"http://127.0.0.1:{port}", token

    def __call__(self, path, body=None):
        """Status, content type and body of an answer. With a body, or an empty one, it is a POST."""
        headers = {"Authorization": f"Bearer {self.token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read().decode()

    def json(self, path, body=None):
        status, _, text = self(path, body)
        if status != 200:
            raise Failed(f"{path}: {status}: {text}")
        return json.loads(text)

    def counted(self, poll):
        return self.json(f"/v1/polls/{poll}/results/interim")["total_counted"]


def up(rig, root, image, fleet):
    """The whole stack in one container, as README.md runs it: closed until somebody says who may call, and with every vote after
    a restart on the same volume. The image of the fleet votes there.
    """
    ran = in_image(root, image, *image["Cmd"])
    expect("exit code of `up` before anybody has said who may call", ran.returncode, 2)
    expect("the message names the flag", "--auth" in ran.stderr, True)
    expect("what it has written", list((root / "data").iterdir()), [])

    auth = {"VOTESTREAM_AUTH": "/auth/auth.toml"}
    rights = ["--user", "ops", "--scope", "manage:*", "--scope", "relay:*", "--expires-in", "1h"]
    ran = in_image(root, image, "auth", "token", *rights, **auth)
    expect("exit code of `auth token`", (ran.returncode, ran.stderr if ran.returncode else ""), (0, ""))
    # A new volume belongs to the owner of the folder that it is mounted on.
    volume = rig.work / "volume"
    volume.mkdir()
    shutil.chown(volume, USER, GROUP)
    (port,) = free_ports(1)
    page = Page(port, ran.stdout.strip())
    container = Container(rig, "up", root, image, {"/data": volume}, lambda: listening(port))
    # Here, nothing listens but on loopback.
    variables = {**auth, "VOTESTREAM_ADDR": f"127.0.0.1:{port}"}

    container.start(variables)
    for path in ("/", "/p/hall", "/p/hall/screen"):
        status, kind, text = page(path)
        expect(f"the page at {path}", (status, kind, "<script" in text), (200, "text/html; charset=utf-8", True))
    closes_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 7200))
    options = [{"option_id": one, "title": one} for one in ("yes", "no")]
    page.json("/v1/polls", {"poll_id": "hall", "title": "In the hall", "options": options, "closes_at": closes_at})
    expect("answer to a vote", page.json("/v1/polls/hall/votes", {"user_id": "ada", "option_id": "yes"}), {})
    container.stop()

    container.start(variables)
    wait_for("the vote of before is counted", lambda: page.counted("hall") == 1)
    expect("answer to a vote of somebody else", page.json("/v1/polls/hall/votes", {"user_id": "bob", "option_id": "no"}), {})
    page.json("/v1/polls/hall/close", {})
    wait_for("the result is final", lambda: page("/v1/polls/hall/results/final")[0] == 200)
    expect("votes in it", page.json("/v1/polls/hall/results/final")["total_votes"], 2)

    page.json("/v1/polls", {"poll_id": "rehearsal", "title": "Rehearsal", "options": options, "closes_at": closes_at})
    # As a task of the fleet is told: where by a variable, the token by another, and how on its command line.
    told = {"VOTESTREAM_SERVER": f"http://127.0.0.1:{port}", "VOTESTREAM_TOKEN": page.token}
    how = ["--unary", "--new-connections", "--rate", "500", "--votes", str(FLEET), "--seed", "7"]
    ran = in_image(*fleet, "load", "--json", "--poll", "rehearsal", *how, **told)
    # 1 if votes were refused: a machine that is busy with other things does not keep up, and the report says so.
    expect("the fleet ends with its report", ran.returncode in (0, 1) and ran.stdout != "", True)
    report = json.loads(ran.stdout)
    accepted = report["accepted"]
    # The fate of one that was answered too late is not known.
    fates = sum(report.get(fate, 0) for fate in ("accepted", "rejected", "not_sent", "unknown"))
    expect("votes of the fleet, each with its fate", fates, FLEET)
    expect("some were accepted", accepted > 0, True)
    # A vote whose answer came too late may be stored; no accepted one may be missing.
    wait_for("they are counted", lambda: accepted <= page.counted("rehearsal") <= FLEET)
    container.stop()


def check(rig):
    binaries = build()
    images = Images(rig.work)
    images.context()
    images.base(binaries / "ingest-svc")
    command = images.command(binaries / "votestream")
    up(rig, *command, images.fleet())
    containers = {}
    for service in SERVICES:
        root, image = images.service(service, binaries / f"{service}-svc")
        expect(f"files of the {service} image beside its base", (root / "service").is_file(), True)
        say(f"{service}: {(root / 'service').stat().st_size / 1e6:.0f} MB")
        containers[service] = Container(rig, service, root, image)

    kinesis, dynamodb, *ports = free_ports(5)
    listen = dict(zip(SERVICES, ports))
    stand_ins = ["--json", "dev-aws", "--kinesis-addr", f"127.0.0.1:{kinesis}", "--dynamodb-addr", f"127.0.0.1:{dynamodb}"]
    rig.start("dev-aws", [binaries / "votestream", *stand_ins], environment())
    rig.ready("dev-aws", lambda: "AWS_ENDPOINT_URL_KINESIS" in rig.log("dev-aws"))
    stand_in = json.loads(next(line for line in rig.log("dev-aws").splitlines() if line.startswith("{")))

    def start(service):
        containers[service].start({
            **stand_in, "VOTESTREAM_CREATE_TABLES": "true", "VOTESTREAM_LISTEN": f"127.0.0.1:{listen[service]}",
        })

    for service in SERVICES:
        start(service)
    say("ok: all three answer health, run as another user, and can write nothing")

    command = Command(binaries / "votestream", listen["ingest"], listen["tally"])
    command.create_poll("show", ["a", "b", "c"])

    def load(seed, votes):
        log = open(rig.work / f"load-{seed}.log", "wb")
        arguments = ["load", "--poll", "show", "--votes", str(votes), "--rate", str(RATE), "--seed", str(seed)]
        running = command.popen(*arguments, stdout=subprocess.PIPE, stderr=log)
        log.close()
        rig.running[f"load-{seed}"] = running
        return running

    def finished(seed, running):
        report = json.loads(running.communicate(timeout=1200)[0])
        del rig.running[f"load-{seed}"]
        return report

    cut = load(1, INTERRUPTED)
    wait_for("the load is on", lambda: (command.submitted("show") or 0) >= STARTED)
    expect("the load goes on when ingest is told to stop", cut.poll(), None)
    containers["ingest"].stop()
    first = finished(1, cut)["accepted"]
    expect("the load was cut off by it", STARTED <= first < INTERRUPTED, True)

    start("ingest")
    whole = load(2, WHOLE)
    wait_for("the load is on", lambda: (command.submitted("show") or 0) >= first + STARTED)
    for service in ("persist", "tally"):
        expect(f"the load goes on when {service} is told to stop", whole.poll(), None)
        containers[service].stop()
        start(service)
    report = finished(2, whole)
    # A stand-in that is slow makes ingest refuse votes; its client knows that they do not count.
    second = report["accepted"]
    expect("votes of the second load, each acknowledged or refused", second + report["rejected"], WHOLE)
    expect("most of them acknowledged", second > WHOLE / 2, True)

    final = command.finish("show")
    total, submitted = final["total_votes"], command.submitted("show")
    say(f"acknowledged {first} + {second}, submitted {submitted}, counted {total}")
    # Votes whose answer was lost with the connection may have been stored; no acknowledged one may be missing.
    if not first + second <= total == submitted < INTERRUPTED + WHOLE:
        raise Failed("acknowledged votes are missing, or votes are counted twice")
    say("ok: no acknowledged vote is missing, and none is counted twice")
    for service in SERVICES:
        containers[service].stop()


main(check)
