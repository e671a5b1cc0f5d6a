"""Starts the real tritonserver on a model repository, on this machine's loopback only."""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from jarvis_rules.errors import JarvisError, ToolchainError, UsageError, did_you_mean
from jarvis_rules.triton import server_log
from jarvis_rules.triton.environment import ServingEnvironment, require_numpy_below_2
from jarvis_rules.triton.lint import check_repository
from jarvis_rules.triton.model_folder import Model, read_models
from jarvis_rules.triton.supervise import KEEP_LOG, QUIT

LOOPBACK = "127.0.0.1"
STANDINS = Path(__file__).with_name("standin")
SUPERVISOR = Path(__file__).with_name("supervise.py")
SIGNATURE = Path(__file__).with_name("onnx_signature.py")
POLL_SECONDS = 0.03
EXIT_SECONDS = 5
"""How long the server may finish requests in flight before it exits by itself."""
GRACE_SECONDS = EXIT_SECONDS + 4


class TritonServer:
    """A running server as a context manager.

    `models` are loaded with all they depend on: by default every ensemble, or every model where
    there is no ensemble. A port of 0 means a free one. Time-outs are in seconds.

    Entering raises `JarvisError`: `repository.lint` and `repository.missing` before anything is
    started, `serve.unknown-model`, `serve.port-in-use`, `serve.start-failed` with the meaningful
    lines of the log, `serve.start-timeout`; `ToolchainError`: `serving.numpy2`,
    `serve.backend-missing`.
    """

    def __init__(
        self,
        repository: Path,
        environment: ServingEnvironment,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        models: Sequence[str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        # Not resolved: a published repository is a symlink that Triton must follow each time.
        self.repository = repository.absolute()
        self.environment = environment
        self.models = tuple(models or ())
        self.start_timeout = start_timeout
        self._called: tuple[str, ...] = ()
        self.start_seconds = 0.0
        self._ports = (http_port, grpc_port, metrics_port)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None

    @property
    def http_url(self) -> str:
        """`HOST:PORT` of the HTTP endpoint."""
        return f"{LOOPBACK}:{self._ports[0]}"

    @property
    def grpc_url(self) -> str:
        """`HOST:PORT` of the gRPC endpoint, as `tritonclient.grpc` takes it."""
        return f"{LOOPBACK}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        """`HOST:PORT` of the Prometheus metrics."""
        return f"{LOOPBACK}:{self._ports[2]}"

    @property
    def log(self) -> Path:
        """The server's log; it is removed when a server that had started is stopped."""
        if self._scratch is None:
            raise RuntimeError("the server was not started")
        return self._scratch / "server.log"

    def __enter__(self) -> TritonServer:
        check_repository(self.repository)
        require_numpy_below_2(self.environment)
        self.models = models_to_load(self.repository, self.models)
        require_backends(self.repository, self.models)
        self._called = called_models(self.repository, self.models)
        self._ports = choose_ports(self._ports)
        began = time.monotonic()
        try:
            self._start()
            self._wait_until_ready()
        except BaseException as fault:
            self._stop(keep_log=isinstance(fault, JarvisError))
            raise
        self.start_seconds = time.monotonic() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop(keep_log=False)

    def require_running(self) -> None:
        """Raise `JarvisError` `serve.died` when the server has ended by itself."""
        if self._ended():
            raise self._failure("Triton ended unexpectedly", "serve.died")

    def _start(self) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="jarvis-triton-"))
        prefix = f"jarvis_triton_{os.getpid()}_{secrets.token_hex(4)}_"
        backends = assemble_backends(self.environment, self._scratch / "backends")
        # Triton's Python backend cannot take a path with a space or beyond ASCII.
        models = self._scratch / "models"
        models.symlink_to(self.repository.absolute(), target_is_directory=True)
        with self.log.open("wb") as log:
            self._supervisor = subprocess.Popen(
                [
                    *(str(self.environment.python), "-I", "-S", str(SUPERVISOR)),
                    *(str(GRACE_SECONDS), prefix, str(self._scratch)),
                    *self._command(models, backends, prefix),
                ],
                env=self.environment.variables(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _command(self, models: Path, backends: Path, prefix: str) -> list[str]:
        addresses = [
            f"--{name}-{part}={value}"
            for name, port in zip(("http", "grpc", "metrics"), self._ports, strict=True)
            for part, value in (("address", LOOPBACK), ("port", port))
        ]
        return [
            str(self.environment.server),
            f"--model-repository={models}",
            f"--backend-directory={backends}",
            *addresses,
            f"--exit-timeout-secs={EXIT_SECONDS}",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in (*self._called, *self.models)),
            *(
                f"--backend-config={backend.name},shm-region-prefix-name={prefix}"
                for backend in sorted(backends.iterdir())
            ),
        ]

    def _wait_until_ready(self) -> None:
        paths = [
            "/v2/health/ready",
            *(f"/v2/models/{model}/ready" for model in (*self._called, *self.models)),
        ]
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            while paths and _answers_ok(self._ports[0], paths[0]):
                paths.pop(0)
            if self._ended():
                raise self._start_failure()
            if not paths:
                return
            time.sleep(POLL_SECONDS)
        raise self._too_slow()

    def _ended(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is not None

    def _start_failure(self) -> JarvisError:
        port = server_log.port_in_use(self.log)
        if port is not None:
            return _port_in_use(port)
        return self._failure("Triton did not start", "serve.start-failed")

    def _too_slow(self) -> JarvisError:
        models = ", ".join(f"`{model}`" for model in server_log.still_loading(self.log))
        error = self._failure(
            f"Triton was not ready after {self.start_timeout:g} s"
            + (f", still loading {models}" if models else ""),
            "serve.start-timeout",
        )
        error.hint = "raise the limit with `--start-timeout`, or see in the log what it waits for"
        return error

    def _failure(self, message: str, slug: str) -> JarvisError:
        lines = [f"  {line}" for line in server_log.reasons(self.log)]
        return JarvisError(
            "\n".join([f"{message}, its log says:", *lines, f"log: {self.log}"]),
            slug=slug,
            where=str(self.repository),
        )

    def _stop(self, *, keep_log: bool) -> None:
        """Stop the server and wait until all its processes are gone."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)
            return
        try:
            supervisor.communicate(KEEP_LOG if keep_log else QUIT, timeout=GRACE_SECONDS + 10)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        if self._scratch is not None and not keep_log:
            shutil.rmtree(self._scratch, ignore_errors=True)


def models_to_load(repository: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return `wanted` when all are there, else the ensembles, else every model.

    Raises `UsageError` `serve.unknown-model`.
    """
    models = read_models(repository)
    for name in wanted:
        if name not in models:
            raise UsageError(
                f"no model `{name}` in the repository",
                slug="serve.unknown-model",
                where=str(repository),
                hint=did_you_mean(name, models) or f"it has {', '.join(models)}",
            )
    ensembles = [name for name, model in models.items() if model.is_ensemble]
    return tuple(wanted or ensembles or models)


def choose_ports(wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the ports with each 0 replaced by a free one.

    Raises `JarvisError` `serve.port-in-use` for a port that another program listens on.
    """
    # All are held open until all are chosen, so that no two are the same.
    sockets = [_bind(port) for port in wanted]
    http_port, grpc_port, metrics_port = (held.getsockname()[1] for held in sockets)
    for held in sockets:
        held.close()
    return http_port, grpc_port, metrics_port


def require_backends(repository: Path, models: Sequence[str]) -> None:
    """Refuse models, or members of ensembles, whose backend this server does not have.

    Raises `ToolchainError` `serve.backend-missing`.
    """
    present = {"python", *(folder.name for folder in _standins())}
    for model in _needed(repository, models):
        if not model.is_ensemble and model.backend not in present:
            raise ToolchainError(
                f"model `{model.name}` needs the backend `{model.backend}`, which the bundled "
                f"server does not have, only {', '.join(f'`{b}`' for b in sorted(present))}",
                slug="serve.backend-missing",
                where=str(repository),
                hint="build the pipeline with `GPU=cpu`, or serve it with NVIDIA's Triton "
                "container",
            )


def called_models(repository: Path, models: Sequence[str]) -> tuple[str, ...]:
    """Return what the members of `models` call by themselves.

    Triton loads the members of an ensemble with it, but not those.
    """
    called = {model.calls for model in _needed(repository, models) if model.calls}
    return tuple(sorted(called - set(models)))


def _needed(repository: Path, models: Sequence[str]) -> list[Model]:
    """Return `models`, members of ensembles and called models, as far as they are there."""
    known = read_models(repository)
    waiting, found = list(models), dict[str, Model]()
    while waiting:
        name = waiting.pop()
        if name in found or name not in known:
            continue
        model = found[name] = known[name]
        waiting += [step.model_name for step in model.config.ensemble_scheduling.step]
        waiting += [model.calls] if model.calls else []
    return list(found.values())


def assemble_backends(environment: ServingEnvironment, destination: Path) -> Path:
    """Lay out a backend directory: the wheel's Python backend and our stand-ins."""
    destination.mkdir()
    # The folder and not its files: Triton refuses a library whose real path lies elsewhere.
    (destination / "python").symlink_to(environment.python_backend)
    for standin in _standins():
        folder = destination / standin.name
        folder.mkdir()
        shutil.copy2(standin / "model.py", folder / "model.py")
        shutil.copy2(SIGNATURE, folder / SIGNATURE.name)
    return destination


def _standins() -> list[Path]:
    return sorted(model.parent for model in STANDINS.glob("*/model.py"))


def _bind(port: int) -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((LOOPBACK, port))
    except OSError as fault:
        held.close()
        raise _port_in_use(port, fault) from fault
    return held


def _port_in_use(port: int, fault: OSError | None = None) -> JarvisError:
    if isinstance(fault, PermissionError):
        return UsageError(
            f"not allowed to listen on port {port}",
            slug="serve.port-in-use",
            hint="choose a port above 1023",
        )
    return JarvisError(
        f"port {port} of {LOOPBACK} is in use by another program",
        slug="serve.port-in-use",
        hint="stop that program, or choose others with `--http-port`, `--grpc-port` and "
        "`--metrics-port` (0 takes a free one)",
    )


def _answers_ok(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
