"""GPUs in sandboxes, with plain files in the place of devices: no test needs a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jarvis_rules.execution import bubblewrap, gpu_devices
from jarvis_rules.execution.gpu_devices import GpuDevices, driver_version, find_gpu_devices
from jarvis_rules.execution.process import run_process
from jarvis_rules.execution.sandbox import try_sandbox

LISTING = """\
3 libs found in cache `/etc/ld.so.cache'
\tlibcudart.so.12 (libc6,x86-64) => {0}/other/libcudart.so.12
\tlibcuda.so.1 (libc6) => {0}/lib32/libcuda.so.1
\tlibcuda.so.1 (libc6,AArch64) => {0}/arm/libcuda.so.1
\tlibcuda.so.1 (libc6,x86-64) => {0}/lib64/libcuda.so.1
"""
DEVICES = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A tree with what a machine with two GPUs has."""
    monkeypatch.setattr(gpu_devices, "_list_libraries", str)
    for name in (*(f"dev/{device}" for device in DEVICES), "dev/null", "proc/devices"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: …\n")
    return tmp_path


def put_library(folder):
    folder.mkdir(parents=True)
    (folder / "libcuda.so.1").touch()
    return folder


def test_every_device_and_fact_is_found(root):
    found = find_gpu_devices(root)
    names = ["nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl", "nvidia-caps/nvidia-cap1"]
    assert found.devices == tuple(root / "dev" / name for name in names)
    assert found.readable == (root / "proc/driver/nvidia", root / "proc/devices")
    assert found.library_path is None


def test_a_machine_without_devices_has_no_gpu(tmp_path):
    (tmp_path / "dev").mkdir()
    assert find_gpu_devices(tmp_path) is None


def test_the_library_is_that_of_this_machine(root, monkeypatch):
    listing = LISTING.format(root)
    monkeypatch.setattr(gpu_devices, "_list_libraries", lambda: listing)
    assert find_gpu_devices(root).readable[2:] == ()
    for name in ("lib32", "arm", "lib64"):
        put_library(root / name)
    for machine, folder in (("x86_64", "lib64"), ("aarch64", "arm")):
        assert gpu_devices._listed_folder(listing, machine) == root / folder
    assert gpu_devices._listed_folder(listing, "riscv64") is None


def test_the_loader_is_told_of_a_library_that_it_does_not_know(root, monkeypatch):
    folder = put_library(root / "usr/local/nvidia/lib64")
    found = find_gpu_devices(root)
    assert (found.readable[2:], found.library_path) == ((folder,), folder)
    # One that it knows stays where it comes in its own order: other libraries lie there too.
    known = put_library(root / "lib64")
    mark = gpu_devices._MACHINES[gpu_devices.os.uname().machine]
    listing = f"\tlibcuda.so.1 (libc6,{mark}) => {known}/libcuda.so.1\n"
    monkeypatch.setattr(gpu_devices, "_list_libraries", lambda: listing)
    found = find_gpu_devices(root)
    assert (found.readable[2:], found.library_path) == ((known,), None)


def test_a_linked_library_comes_with_where_it_lies(root):
    real, folder = put_library(root / "store"), root / "run/opengl-driver/lib"
    folder.mkdir(parents=True)
    (folder / "libcuda.so.1").symlink_to(real / "libcuda.so.1")
    assert find_gpu_devices(root).readable[2:] == (folder, real)


def test_the_loader_s_list_can_be_read():
    listing = gpu_devices._list_libraries()
    if not listing:
        pytest.skip("no `ldconfig` here")
    assert "libc.so" in "".join(name for name, _, _ in gpu_devices._LISTED.findall(listing))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC\n"
            "GCC version:  gcc version 12.3.0\n",
            "550.54.15",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
            "580.95.05",
        ),
        ("NVRM version: something else\n", None),
        ("", None),
    ],
)
def test_driver_version(tmp_path, text, version):
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path) == version
    assert driver_version(tmp_path / "absent") is None


# In a sandbox

TOUCH = """
import json, os, sys
def text_of(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        return type(error).__name__
device, fact, library = sys.argv[1:]
found = [text_of(device), text_of(fact), os.environ.get("LD_LIBRARY_PATH")]
try:
    with open(device, "r+") as file:
        file.write("used")
except OSError:
    pass
with open("outputs/out", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(params=["bwrap", "landlock", "none"])
def sandbox(request):
    attempt = try_sandbox(request.param)
    if attempt.sandbox is None:
        pytest.skip(f"{request.param} does not work here: {attempt.reason}")
    return attempt.sandbox


@pytest.mark.parametrize("given", [True, False])
def test_a_gpu_is_for_those_who_ask(root, sandbox, given):
    folder = root / "action"
    for name in ("inputs", "outputs"):
        (folder / name).mkdir(parents=True)
    (folder / "request.json").touch()
    library = put_library(root / "usr/local/nvidia/lib64")
    gpu = find_gpu_devices(root)
    device, fact = gpu.devices[0], gpu.readable[1]
    argv = [sys.executable, "-c", TOUCH, *map(str, (device, fact, library))]
    launch = sandbox.command(argv, folder, {}, gpu=gpu if given else None)
    code = run_process(
        launch.argv,
        cwd=launch.cwd,
        environment=launch.environment,
        log=folder / "log.txt",
        timeout=60,
    )
    assert code == 0, (folder / "log.txt").read_text()
    found = json.loads((folder / "outputs/out").read_text())
    opens = given or sandbox.name == "none"
    assert (device.read_text()[:4] == "used") is opens
    if opens:
        assert found[:2] == ["dev/nvidia-uvm", "proc/devices"]
    else:
        refusal = {"bwrap": "FileNotFoundError", "landlock": "PermissionError"}[sandbox.name]
        assert found[:2] == [refusal] * 2
    assert found[2] == (str(library) if given else None)


DRIVER = """
import ctypes, os, socket, subprocess, sys
def tried(family):
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError as error:
        return type(error).__name__
    return "made"
code = (
    "open(f'/proc/self/task/{__import__(\\"os\\").getpid()}/comm', 'w').write('cuda')"
)
named = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0
print(tried(socket.AF_UNIX), tried(socket.AF_INET), named)
"""


@pytest.mark.parametrize("given", [True, False])
def test_landlock_lets_the_driver_do_what_it_cannot_do_without(root, given):
    """Seen on an H100: `cuInit` makes a Unix socket and names threads, in a tool's children too."""
    attempt = try_sandbox("landlock")
    if attempt.sandbox is None:
        pytest.skip(attempt.reason)
    folder = root / "action"
    for name in ("inputs", "outputs"):
        (folder / name).mkdir(parents=True)
    (folder / "request.json").touch()
    gpu = find_gpu_devices(root) if given else None
    launch = attempt.sandbox.command([sys.executable, "-c", DRIVER], folder, {}, gpu=gpu)
    log = folder / "log.txt"
    run_process(launch.argv, cwd=launch.cwd, environment=launch.environment, log=log, timeout=60)
    unix = "made" if given else "PermissionError"
    assert log.read_text().split() == [unix, "PermissionError", str(given)]


def options_of(used, tmp_path, gpu=None):
    argv = used.command(["tool"], tmp_path, {}, gpu=gpu).argv
    return " ".join(argv)


def test_bubblewrap_mounts_what_lies_outside_of_the_system(tmp_path):
    used = bubblewrap.BubblewrapSandbox(Path("bwrap"), {})
    gpu = GpuDevices(
        (Path("/dev/nvidia0"), Path("/dev/nvidiactl")),
        (Path("/proc/driver/nvidia"), Path("/usr/lib/x86_64-linux-gnu"), Path("/opt/driver")),
        Path("/opt/driver"),
    )
    options = options_of(used, tmp_path, gpu)
    devices = "--dev-bind /dev/nvidia0 /dev/nvidia0 --dev-bind /dev/nvidiactl /dev/nvidiactl"
    facts = "--ro-bind /proc/driver/nvidia /proc/driver/nvidia --ro-bind /opt/driver /opt/driver"
    assert "--dev /dev --tmpfs /tmp" in options
    assert options.index("--dev /dev") < options.index(f"{devices} {facts}")
    assert "/usr/lib/x86_64-linux-gnu" not in options
    assert " LD_LIBRARY_PATH=/opt/driver " in options
    plain = options_of(used, tmp_path)
    assert "nvidia" not in plain.replace(str(gpu_devices.DRIVER_FACTS), "")
    assert "LD_LIBRARY_PATH" not in plain


def test_bubblewrap_hides_the_driver_from_other_actions(root, monkeypatch):
    """A fresh /proc tells of the driver: here of something else that every kernel has."""
    attempt = try_sandbox("bwrap")
    if attempt.sandbox is None:
        pytest.skip(f"bwrap does not work here: {attempt.reason}")
    facts = Path("/proc/tty")
    folder = root / "action"
    for name in ("inputs", "outputs"):
        (folder / name).mkdir(parents=True)
    (folder / "request.json").touch()
    code = f"import os; open('outputs/out', 'w').write(str(len(os.listdir({str(facts)!r}))))"
    for hidden in (False, True):
        if hidden:
            monkeypatch.setattr(bubblewrap, "DRIVER_FACTS", facts)
        launch = attempt.sandbox.command([sys.executable, "-c", code], folder, {})
        log = folder / "log.txt"
        log.unlink(missing_ok=True)
        ended = run_process(launch.argv, cwd=launch.cwd, environment={}, log=log, timeout=60)
        assert ended == 0, log.read_text()
        assert ((folder / "outputs/out").read_text() == "0") is hidden
