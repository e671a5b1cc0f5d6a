"""The canonical encoder against protobuf's own serialiser."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from jarvis_rules.core import reapi
from jarvis_rules.core.digest import Digest, digest_bytes

STRING, INT64, BYTES, MESSAGE = 9, 3, 12, 11
# (field name, number, type, repeated, message type), after remote_execution.proto v2.
MESSAGES = {
    "Digest": [("hash", 1, STRING, False, None), ("size_bytes", 2, INT64, False, None)],
    "Property": [("name", 1, STRING, False, None), ("value", 2, STRING, False, None)],
    "Platform": [("properties", 1, MESSAGE, True, "Property")],
    "Command": [
        ("arguments", 1, STRING, True, None),
        ("environment_variables", 2, MESSAGE, True, "Property"),
        ("platform", 5, MESSAGE, False, "Platform"),
        ("output_paths", 7, STRING, True, None),
    ],
    "Duration": [("seconds", 1, INT64, False, None)],
    "Action": [
        ("command_digest", 1, MESSAGE, False, "Digest"),
        ("input_root_digest", 2, MESSAGE, False, "Digest"),
        ("timeout", 6, MESSAGE, False, "Duration"),
        ("salt", 9, BYTES, False, None),
        ("platform", 10, MESSAGE, False, "Platform"),
    ],
    "FileNode": [("name", 1, STRING, False, None), ("digest", 2, MESSAGE, False, "Digest")],
    "DirectoryNode": [("name", 1, STRING, False, None), ("digest", 2, MESSAGE, False, "Digest")],
    "Directory": [
        ("files", 1, MESSAGE, True, "FileNode"),
        ("directories", 2, MESSAGE, True, "DirectoryNode"),
    ],
}


@pytest.fixture(scope="session")
def proto():
    file = descriptor_pb2.FileDescriptorProto(name="reapi.proto", package="reapi", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, type_name in fields:
            message.field.add(
                name=field,
                number=number,
                type=kind,
                label=3 if repeated else 1,
                type_name=f".reapi.{type_name}" if type_name else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"reapi.{name}"))
        for name in MESSAGES
    }


TEXTS = st.text(max_size=200)
PAIRS = st.dictionaries(st.text(min_size=1, max_size=20), TEXTS, max_size=8)
DIGESTS = st.builds(
    lambda data, size: Digest(digest_bytes(data).sha256, size),
    st.binary(max_size=8),
    st.integers(0, 2**62),
)
NAMES = st.text(min_size=1, max_size=8).filter(
    lambda name: "/" not in name and name not in ("..", ".")
)


def pairs(proto, properties):
    return [proto["Property"](name=n, value=v) for n, v in sorted(properties.items())]


@given(st.lists(TEXTS, max_size=5), PAIRS, st.lists(TEXTS, max_size=4), PAIRS)
def test_command(proto, arguments, environment, outputs, platform):
    message = proto["Command"](
        arguments=arguments,
        environment_variables=pairs(proto, environment),
        output_paths=sorted(outputs),
    )
    if platform:
        message.platform.properties.extend(pairs(proto, platform))
    assert reapi.encode_command(arguments, environment, outputs, platform) == (
        message.SerializeToString(deterministic=True)
    )


@given(DIGESTS, DIGESTS, st.integers(0, 2**40), PAIRS, st.binary(max_size=20))
def test_action(proto, command, root, timeout, platform, salt):
    message = proto["Action"](salt=salt)
    for field, digest in ((message.command_digest, command), (message.input_root_digest, root)):
        field.SetInParent()
        field.hash, field.size_bytes = digest.sha256, digest.size
    if timeout:
        message.timeout.seconds = timeout
    if platform:
        message.platform.properties.extend(pairs(proto, platform))
    assert reapi.encode_action(command, root, timeout, platform, salt) == (
        message.SerializeToString(deterministic=True)
    )


@given(st.dictionaries(NAMES, DIGESTS, max_size=6), st.dictionaries(NAMES, DIGESTS, max_size=4))
def test_input_root(proto, files, nested):
    names = {name: digest for name, digest in files.items() if name != "sub"}
    tree = {**names, **{f"sub/{name}": digest for name, digest in nested.items()}}

    def node(kind, name, digest):
        return proto[kind](
            name=name, digest=proto["Digest"](hash=digest.sha256, size_bytes=digest.size)
        )

    def directory(entries, directories=()):
        message = proto["Directory"](
            files=[node("FileNode", n, entries[n]) for n in sorted(entries, key=str.encode)],
            directories=list(directories),
        )
        data = message.SerializeToString(deterministic=True)
        return digest_bytes(data), data

    inner, inner_data = directory(nested)
    outer, outer_data = directory(names, [node("DirectoryNode", "sub", inner)] if nested else [])
    root, messages = reapi.encode_input_root(tree)
    assert root == outer
    assert messages[root] == outer_data
    if nested:
        assert messages[inner] == inner_data


@pytest.mark.parametrize("path", ["/a", "a//b", "a/", "../a", "a/../b", "./a", ""])
def test_input_root_refuses(path):
    with pytest.raises(ValueError, match="not a relative path"):
        reapi.encode_input_root({path: digest_bytes(b"")})


def test_input_root_refuses_file_and_directory():
    empty = digest_bytes(b"")
    with pytest.raises(ValueError, match="file and directory at once: 'a'"):
        reapi.encode_input_root({"a": empty, "a/b": empty})
