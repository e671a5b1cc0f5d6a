"""Actions: what would run, as data. The key of an action is the digest of its REAPI message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jarvis_rules.core.canonical_json import dump_canonical_json
from jarvis_rules.core.digest import Digest, digest_bytes
from jarvis_rules.core.reapi import encode_action, encode_command, encode_input_root
from jarvis_rules.core.secret import Secret
from jarvis_rules.core.toolchain import Toolchain

REQUEST = "request.json"
# Keys come to a tool on its standard input: no file, argument or variable holds them.
KEY_DESCRIPTOR = 0
INPUTS = "inputs"
OUTPUTS = "outputs"
DEFAULT_TIMEOUT = 3600
MAX_TREE_PATH = 1024

# What a tool sees: nothing of the caller's environment, nothing that varies between machines.
ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/tmp",  # noqa: S108  (inside the action's own file system)
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONUTF8": "1",
    "TZ": "UTC",
}


@dataclass(frozen=True, slots=True)
class FileInput:
    """A file on disk."""

    path: Path


@dataclass(frozen=True, slots=True)
class MemberInput:
    """One member of an archive: its own digest stands in the key, not the archive's.

    A graph's weights that lie in a member beside it, `*.onnx.data`, come with it. The plaintext of
    an encrypted archive's member, for which `key` is needed, is staged and never stored.
    """

    path: Path
    member: str
    key: Secret | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TreeInput:
    """The files that a manifest lists, found under `directory`."""

    manifest: Path
    directory: Path


@dataclass(frozen=True, slots=True)
class StoredInput:
    """A blob that the content store already holds."""

    digest: Digest


Input = FileInput | MemberInput | TreeInput | StoredInput


def is_tree_path(name: str) -> bool:
    """Return whether `name` is a relative path that stays where it is put, and prints safely.

    Manifests and cached results name files; whoever wrote them must not choose the place.
    """
    parts = name.split("/")
    return name.isprintable() and len(name) <= MAX_TREE_PATH and not {"", ".", ".."} & {*parts}


@dataclass(frozen=True, slots=True)
class Output:
    """What an action declares: one file, or a manifest and the tree of the files that it lists."""

    file: str
    tree: str | None = None

    def paths(self) -> tuple[str, ...]:
        """Return the declared output paths, relative to the action's folder."""
        names = (self.file,) if self.tree is None else (self.file, self.tree)
        return tuple(f"{OUTPUTS}/{name}" for name in names)


@dataclass(frozen=True, slots=True)
class Resources:
    """What an action needs of the machine that runs it; no part of its key."""

    cpus: int = 1
    memory_mib: int = 512
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """A fully resolved action: everything that its result may depend on."""

    mnemonic: str
    argv: tuple[str, ...]
    inputs: Mapping[str, Digest]
    output: Output
    environment: Mapping[str, str]
    platform: Mapping[str, str]
    timeout: int = DEFAULT_TIMEOUT
    description: str = field(default="", compare=False)

    def key(self) -> Digest:
        """Return the action key: the digest of the REAPI `Action` message."""
        return digest_bytes(self.messages()[0])

    def messages(self) -> tuple[bytes, bytes, dict[Digest, bytes]]:
        """Return the `Action` and `Command` messages and the `Directory` messages by digest."""
        command = encode_command(self.argv, self.environment, self.output.paths(), self.platform)
        root, directories = encode_input_root(self.inputs)
        action = encode_action(digest_bytes(command), root, self.timeout, self.platform)
        return action, command, directories


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """What a rule declares: an action whose input digests are not known yet.

    `inputs` maps the path under `inputs/` that the tool sees to where the content comes from.
    `target` names the result for people. `keys` are those that the tool needs, by the name that
    it knows them by. `confidential` outputs hold what an encrypted input holds, in plain. Where
    outputs have other bytes every time, `not_reproducible` says why, and what would not have.
    """

    mnemonic: str
    tool: str
    request: Mapping[str, Any]
    inputs: Mapping[str, Input]
    output: Output
    toolchain: Toolchain
    target: str
    platform: Mapping[str, str] = field(default_factory=dict)
    timeout: int = DEFAULT_TIMEOUT
    resources: Resources = Resources()
    keys: Mapping[str, Secret] = field(default_factory=dict, repr=False)
    confidential: bool = False
    not_reproducible: str | None = None

    def argv(self) -> tuple[str, ...]:
        """Return the command line; the toolchain is found at a fixed place by whoever runs it."""
        return ("/toolchain/bin/python", "-m", f"jarvis_rules.tools.{self.tool}", REQUEST)

    def full_request(self) -> dict[str, Any]:
        """Return the request with what may be said of the keys, and where the tool finds them."""
        if not self.keys:
            return dict(self.request)
        fingerprints = {name: key.fingerprint for name, key in self.keys.items()}
        keys = {"descriptor": KEY_DESCRIPTOR, "fingerprints": fingerprints}
        return {**self.request, "keys": keys}

    def request_bytes(self) -> bytes:
        """Return the request file's content."""
        return dump_canonical_json(self.full_request())

    def properties(self) -> dict[str, str]:
        """Return the platform properties, the toolchain's fingerprint among them."""
        return {**self.platform, "toolchain": self.toolchain.fingerprint}

    def resolve(self, digests: Mapping[str, Digest]) -> Action:
        """Return the action, given the digest of every file under `inputs/`."""
        inputs = {f"{INPUTS}/{name}": digest for name, digest in digests.items()}
        inputs[REQUEST] = digest_bytes(self.request_bytes())
        return Action(
            mnemonic=self.mnemonic,
            argv=self.argv(),
            inputs=inputs,
            output=self.output,
            environment=ENVIRONMENT,
            platform=self.properties(),
            timeout=self.timeout,
            description=f"{self.mnemonic} {self.target}",
        )

    def static_key(self) -> str:
        """Return a digest of all that is known before any input has been read."""
        document = {
            "mnemonic": self.mnemonic,
            "argv": self.argv(),
            "request": self.full_request(),
            "inputs": {name: _describe(source) for name, source in self.inputs.items()},
            "outputs": self.output.paths(),
            "environment": dict(ENVIRONMENT),
            "platform": self.properties(),
            "timeout": self.timeout,
        }
        return digest_bytes(dump_canonical_json(document)).sha256


def _describe(source: Input) -> str:
    match source:
        case MemberInput(member=member):
            return f"member {member}"
        case StoredInput(digest=digest):
            return f"blob {digest}"
        case TreeInput():
            return "tree"
    return "file"


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What came out: digests of the output files, relative to `outputs/`.

    For an output with a tree, `outputs` holds the manifest and every file of the tree. `confined`
    tells that a sandbox kept everything undeclared away: other results are for builds like theirs.
    `peak_memory_mib` is the peak resident memory of the tool's largest process, if known.
    """

    outputs: Mapping[str, Digest]
    log: Digest
    seconds: float = field(default=0.0, compare=False)
    confined: bool = field(default=True, compare=False)
    peak_memory_mib: int | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that the action cache stores."""
        return {
            "version": 1,
            "outputs": {name: digest.to_json() for name, digest in sorted(self.outputs.items())},
            "log": self.log.to_json(),
            "seconds": round(self.seconds, 3),
            "confined": self.confined,
            "peak_memory_mib": self.peak_memory_mib,
        }

    @classmethod
    def from_json(cls, document: Any) -> ActionResult:
        """Return the result that `to_json` wrote; ValueError for anything else."""
        match document:
            case {
                "version": 1,
                "outputs": dict(outputs),
                "log": log,
                "seconds": int() | float() as seconds,
                "confined": bool(confined),
            } if all(is_tree_path(name) for name in outputs):
                peak = document.get("peak_memory_mib")
                return cls(
                    {name: Digest.from_json(digest) for name, digest in outputs.items()},
                    Digest.from_json(log),
                    float(seconds),
                    confined,
                    peak if isinstance(peak, int) else None,
                )
        raise ValueError("not an action result of version 1")
