"""Where keys come from: the KEY of `FILE:KEY`, of `--key KEY` and of `key="KEY"` in a SConscript.

KEY is `env:NAME`, `file:PATH`, or the key itself. A key is never shown: not in `repr`, in a
message, in an argument of a process that we start, or in its environment.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jarvis_rules.errors import UsageError

SUFFIXES = (".nemo", ".tlt", ".etlt", ".ejrvs", ".jmir", ".riva", ".rmir")
MAX_KEY_SIZE = 4096
PUBLIC_KEYS = (b"tlt_encode",)
# As strong as what archives are encrypted with: an action's record shows the fingerprint.
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20, "dklen": 16}
_FINGERPRINT_SALT = b"jarvis-rules key fingerprint 1"


class Key:
    """A key's bytes, which only `reveal` gives, and for people where it came from.

    Two keys are equal if their bytes are.
    """

    __slots__ = ("__bytes", "_source")

    def __init__(self, data: bytes, source: str = "given") -> None:
        self.__bytes = data
        self._source = source

    def reveal(self) -> bytes:
        """Return the key's bytes: for encryption, and for the pipe to a tool."""
        return self.__bytes

    @property
    def fingerprint(self) -> str:
        """What tells this key from others and may be published; see the threat model."""
        return _fingerprint(self.__bytes)

    @property
    def warning(self) -> str | None:
        """What the user must know of this key before relying on it."""
        if self.__bytes in PUBLIC_KEYS:
            return (
                f"the key `{self.__bytes.decode()}` is printed in NVIDIA's documentation: whoever "
                "has the archive can read it"
            )
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.__bytes == other.__bytes

    def __hash__(self) -> int:
        return hash(self.__bytes)

    def __repr__(self) -> str:
        return f"Key({self._source})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not written anywhere")


@functools.lru_cache(maxsize=32)
def _fingerprint(key: bytes) -> str:
    return hashlib.scrypt(key, salt=_FINGERPRINT_SALT, **_SCRYPT).hex()


def parse_file_and_key(text: str, suffixes: Sequence[str] = SUFFIXES) -> tuple[Path, Key | None]:
    """Return the path and the key of `FILE[:KEY]`, split at the first `:` after a known suffix.

    UsageError where there is a KEY that `read_key` refuses.
    """
    ends = "|".join(map(re.escape, suffixes))
    match = re.match(f"(.*?(?:{ends})):(.*)", text, re.DOTALL)
    if match is None:
        return Path(text), None
    return Path(match[1]), read_key(match[2], match[1])


def read_key(text: str, where: str | None = None) -> Key:
    """Return the key that KEY stands for; `where` is what it is for.

    UsageError for an empty key, a variable or file that is not there, and for a key that is the
    name of a file: whoever writes that means the file's content.
    """
    kind, colon, name = text.partition(":")
    if colon and kind == "env":
        data, source = _from_environment(name, where), f"env:{name}"
    elif colon and kind == "file":
        data, source = _from_file(Path(name), where), f"file:{name}"
    else:
        _refuse_file_name(text, where)
        data, source = os.fsencode(text), "literal"
    if not data:
        raise _refused("key.empty", "the key is empty", where, "give a key, or leave out the `:`")
    if len(data) > MAX_KEY_SIZE:
        message = f"the key has {len(data)} bytes or more, at most {MAX_KEY_SIZE}"
        raise _refused("key.size", message, where, "a good key: `openssl rand -hex 32`")
    return Key(data, source)


def _from_environment(name: str, where: str | None) -> bytes:
    data = os.environb.get(os.fsencode(name))
    if data is None:
        message = f"the environment variable `{name}` is not set"
        raise _refused("key.environment", message, where, f"`export {name}=…`, or `file:PATH`")
    return data


def _from_file(path: Path, where: str | None) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_SIZE + 3)
    except OSError as error:
        message = f"the key file `{path}` cannot be read: {error.strerror}"
        raise _refused("key.file", message, where, "check the path and its permissions") from None
    # Editors end a file with a line break, which nobody takes for a part of the key.
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _refuse_file_name(text: str, where: str | None) -> None:
    try:
        exists = bool(text) and Path(text).exists()
    except (OSError, ValueError):
        return
    if exists:
        raise _refused(
            "key.file-name",
            "the key that was given is the name of a file",
            where,
            "for the content of the file write `file:` before its name; a key that is meant "
            "literally must not be a file's name",
        )


def _refused(slug: str, message: str, where: str | None, hint: str) -> UsageError:
    return UsageError(message, slug=slug, where=where, hint=hint)
