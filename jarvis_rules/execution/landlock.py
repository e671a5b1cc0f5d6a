"""The launcher of the Landlock sandbox: forbids itself nearly everything, then runs a tool.

A program of its own, with the standard library only, because what it does cannot be undone and
must not happen in a process with threads (`LAUNCHER` is how to start it):

    … PARENT r:PATH… w:PATH… [s:unix] -- COMMAND…

`r:` may be read and executed, `w:` also written; a folder stands for all that is in it. `s:unix`
lets Unix sockets be made, which NVIDIA's driver cannot do without: so an action that uses a GPU
can talk to a service whose socket file it finds. The first
process becomes the supervisor: it is not restricted, adopts every orphan of the tool (subreaper),
and ends with the tool only after it has ended all that is left. SIGTERM, or the death of PARENT
(a process identifier), makes it end everything at once.

The second process takes on the restrictions and becomes the tool. Landlock confines files, and
on newer kernels signals. A seccomp filter refuses sockets, io_uring, which would get around it,
and shared memory and queues that are not files: so there is no network of any kind. Neither a
network namespace nor Landlock (as of ABI 7) would stop a connection to a socket file such as
Docker's, and namespaces are what this sandbox does without. Root loses its capabilities.

Not confined: `stat`, `chmod` and the like of files whose path is known.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

# `signal` imports `enum` and would double the time that this program takes to start.
from _signal import signal  # type: ignore[import-not-found]

MINIMUM_ABI = 2  # before, no file could be moved from one folder to another
TRUNCATE_ABI = 3
SIGNAL_SCOPE_ABI = 6

_SIGKILL, _SIGTERM = 9, 15
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE = 1 << 2
_READ = 1 << 0 | _READ_FILE | 1 << 3  # execute, read a file, list a folder
_FILE_RIGHTS = 1 << 0 | 1 << 1 | _READ_FILE | 1 << 14 | 1 << 15  # those that fit what is no folder
# In the tool's own folders all rights but those to make devices and sockets.
_MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 11
_ALL_NETWORK = 0b11  # bind and connect TCP
_ALL_SCOPES = 0b11  # abstract sockets and signals

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # BPF instructions
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13  # EACCES
_X32_CALLS = 0x40000000
_SOCK_STREAM = 1
_AF_UNIX = 1
UNIX_SOCKETS = "s:unix"
# Its name for seccomp, the number of `socketpair`, and those of `socket`, `io_uring_setup`,
# `shmget`, `semget`, `msgget` and `mq_open`.
SECCOMP_MACHINES = {
    "x86_64": (0xC000003E, 53, (41, 425, 29, 64, 68, 240)),
    "aarch64": (0xC00000B7, 199, (198, 425, 194, 190, 186, 180)),
}

# What programs expect everywhere, and what tells them nothing about the rest of the machine.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_CHILDREN = "/proc/self/task/{}/children"


# Imported, not run by path, so that it need not be compiled each time; and by itself, because our
# package takes longer to import than all that it needs.
LAUNCHER = (
    "-I",
    "-S",
    "-c",
    "import sys; sys.path.append(sys.argv.pop(1)); import landlock; landlock.main(sys.argv[1:])",
    os.path.dirname(__file__),  # noqa: PTH120  (pathlib loads slowly)
)


def landlock_abi() -> int:
    """Return the version of Landlock that this kernel speaks; OSError where it has none."""
    return _call(_CREATE_RULESET, None, 0, _RULESET_VERSION)


def main(arguments: list[str]) -> None:
    """Run the command under the rules and exit with its code, 128 and more for a signal."""
    end = arguments.index("--")
    parent, rules, command = int(arguments[0]), arguments[1:end], arguments[end + 1 :]
    if not os.path.exists(_CHILDREN.format(os.getpid())):  # noqa: PTH110
        sys.exit("this kernel does not list the children of a process (CONFIG_PROC_CHILDREN)")
    signal(_SIGTERM, lambda number, _: sys.exit(128 + number))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, _SIGTERM)
    if os.getppid() != parent:
        sys.exit(128 + _SIGTERM)
    try:
        tool = os.fork()
        if tool == 0:
            _become(command, rules)
        ended = status = 0
        while ended != tool:
            ended, status = os.wait()
    finally:
        _end_children()
    code = os.waitstatus_to_exitcode(status)
    # Nothing is left to be flushed or cleaned up, and Python takes its time for that.
    os._exit(128 - code if code < 0 else code)


def _end_children() -> None:
    """End every child; theirs become ours then, until none is left."""
    signal(_SIGTERM, lambda *_: None)
    try:
        while True:
            with open(_CHILDREN.format(os.getpid())) as file:  # noqa: PTH123
                for child in file.read().split():
                    os.kill(int(child), _SIGKILL)
            os.wait()
    except ChildProcessError:
        return


def _become(command: list[str], rules: list[str]) -> None:
    """Take on the restrictions and replace this process, which never returns from here."""
    try:
        restrict(rules)
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot start the tool: {error}\n".encode())
    finally:
        os._exit(126)


def restrict(rules: list[str]) -> None:
    """Confine this process, which must have one thread only; OSError where the kernel refuses."""
    abi = landlock_abi()
    # Each of these versions added one right: to move, to truncate, to control devices.
    files = (1 << 13 + (abi >= 2) + (abi >= TRUNCATE_ABI) + (abi >= 5)) - 1
    attributes = struct.pack(
        "=QQQ", files, _ALL_NETWORK * (abi >= 4), _ALL_SCOPES * (abi >= SIGNAL_SCOPE_ABI)
    )
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    for rule in rules:
        if rule == UNIX_SOCKETS:
            continue
        _allow(ruleset, rule[2:], files & (_READ if rule[0] == "r" else ~_MAKE_SPECIAL))
    _allow(ruleset, "/proc/self", files & _READ)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    _refuse_calls(UNIX_SOCKETS in rules)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    if _LIBC.capset(header, bytes(24)) != 0:
        raise _last_error("capset")


def _allow(ruleset: int, path: str, rights: int) -> None:
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):  # noqa: PTH112
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, file)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(file)


def _refuse_calls(has_unix_sockets: bool) -> None:
    """Install the filter; a machine that it is not written for keeps its network."""
    known = SECCOMP_MACHINES.get(os.uname().machine)
    if known is None:
        return
    machine, socketpair, refused = known
    # Each test skips the one step after it, or does not.
    program = [
        (_LOAD, 0, 0, 4),  # the machine that the call is made for
        (_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_AT_LEAST, 0, 1, _X32_CALLS),
        (_RETURN, 0, 0, _REFUSE),
    ]
    socket, *_ = refused
    if has_unix_sockets:
        program += [
            (_EQUAL, 0, 4, socket),
            (_LOAD, 0, 0, 16),  # its first argument, the family
            (_EQUAL, 0, 1, _AF_UNIX),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _REFUSE),
        ]
    for call in refused:
        program += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _REFUSE)]
    program += [
        (_EQUAL, 1, 0, socketpair),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, 24),  # its second argument, the type: a datagram socket can send anywhere
        (_AND, 0, 0, 0xF),
        (_EQUAL, 0, 1, _SOCK_STREAM),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    _prctl(
        _PR_SET_SECCOMP,
        _SECCOMP_MODE_FILTER,
        struct.pack("@HP", len(program), ctypes.addressof(code)),
    )


def _prctl(option: int, *values: int | bytes) -> None:
    arguments = [ctypes.c_ulong(v) if isinstance(v, int) else v for v in values]
    arguments += [ctypes.c_ulong(0)] * (4 - len(arguments))
    if _LIBC.prctl(option, *arguments) != 0:
        raise _last_error("prctl")


def _call(number: int, *arguments: int | bytes | None) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _LIBC.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise _last_error("landlock")
    return result


def _last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


_LIBC = ctypes.CDLL(None, use_errno=True)
