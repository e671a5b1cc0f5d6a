"""Canonical bytes of the four Remote Execution API v2 messages that make an action key.

Field numbers and the rules for canonical directories (sorted by name) and environment
variables (sorted by name) are those of `build/bazel/remote/execution/v2/remote_execution.proto`.
Protocol buffers guarantee no canonical form across implementations, so the bytes are written
here: fields in ascending order, defaults omitted, varints minimal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jarvis_rules.core.digest import Digest, digest_bytes

_VARINT, _LENGTH_DELIMITED = 0, 2


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value) if value else b""


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(len(data)) + data


def _string(field: int, text: str) -> bytes:
    return _message(field, text.encode()) if text else b""


def _element(field: int, text: str) -> bytes:
    """Encode an element of a repeated string, which is written even when empty."""
    return _message(field, text.encode())


def _pairs(field: int, pairs: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(
        _message(field, _string(1, name) + _string(2, value)) for name, value in sorted(pairs)
    )


def encode_digest(digest: Digest) -> bytes:
    """Return the `Digest` message: hash 1, size_bytes 2."""
    return _string(1, digest.sha256) + _integer(2, digest.size)


def encode_platform(properties: Mapping[str, str]) -> bytes:
    """Return the `Platform` message: properties 1, sorted by name and then value."""
    return _pairs(1, properties.items())


def encode_command(
    arguments: Iterable[str],
    environment: Mapping[str, str],
    output_paths: Iterable[str],
    platform: Mapping[str, str],
) -> bytes:
    """Return the `Command` message: arguments 1, environment 2, platform 5, output_paths 7."""
    return (
        b"".join(_element(1, argument) for argument in arguments)
        + _pairs(2, environment.items())
        + (_message(5, encode_platform(platform)) if platform else b"")
        + b"".join(_element(7, path) for path in sorted(output_paths))
    )


def encode_action(
    command: Digest,
    input_root: Digest,
    timeout_seconds: int,
    platform: Mapping[str, str],
    salt: bytes = b"",
) -> bytes:
    """Return the `Action` message: digests 1 and 2, timeout 6, salt 9, platform 10."""
    return (
        _message(1, encode_digest(command))
        + _message(2, encode_digest(input_root))
        + (_message(6, _integer(1, timeout_seconds)) if timeout_seconds else b"")
        + (_message(9, salt) if salt else b"")
        + (_message(10, encode_platform(platform)) if platform else b"")
    )


def encode_input_root(files: Mapping[str, Digest]) -> tuple[Digest, dict[Digest, bytes]]:
    """Return the digest of the input root and every `Directory` message of its Merkle tree.

    `files` maps relative paths with `/` to digests. A `Directory` holds files 1 (name 1,
    digest 2) and directories 2 (name 1, digest 2), each sorted by name.
    ValueError where a path is absolute, has an empty, `.` or `..` part, or is a file and a
    directory at once.
    """
    messages: dict[Digest, bytes] = {}

    def directory(prefix: str, entries: Mapping[str, Digest]) -> Digest:
        nodes: dict[str, Digest] = {}
        children: dict[str, dict[str, Digest]] = {}
        for path, digest in entries.items():
            name, _, rest = path.partition("/")
            if name in ("", ".", ".."):
                raise ValueError(f"not a relative path: {prefix + path!r}")
            if rest:
                children.setdefault(name, {})[rest] = digest
            elif path.endswith("/"):
                raise ValueError(f"not a relative path: {prefix + path!r}")
            else:
                nodes[name] = digest
        if clash := nodes.keys() & children.keys():
            raise ValueError(f"file and directory at once: {prefix + min(clash)!r}")
        data = b"".join(
            _message(1, _string(1, name) + _message(2, encode_digest(nodes[name])))
            for name in sorted(nodes, key=str.encode)
        ) + b"".join(
            _message(
                2,
                _string(1, name)
                + _message(2, encode_digest(directory(f"{prefix}{name}/", children[name]))),
            )
            for name in sorted(children, key=str.encode)
        )
        digest = digest_bytes(data)
        messages[digest] = data
        return digest

    return directory("", files), messages
